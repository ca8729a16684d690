import { VERDICTS } from "./words";
import { save } from "./report";
import type { Item } from "./items";
import { Chip } from "./Chip";

interface Props {
  items: Item[];
  selected: number | undefined;
  onSelect: (id: number) => void;
  onRemove: (item: Item) => void;
  onClear: () => void;
}

/** All pictures with their verdicts; the selected one is shown in detail below. */
export function Gallery({ items, selected, onSelect, onRemove, onClear }: Props) {
  const open = items.filter((item) => item.status === "waiting" || item.status === "working").length;
  const failed = items.filter((item) => item.status === "failed").length;
  const counts = VERDICTS.map((verdict) => [verdict, items.filter((item) => item.scored?.verdict === verdict).length]);
  const words = [
    ...counts.filter(([, count]) => count).map(([verdict, count]) => `${count} ${verdict}`),
    ...(failed ? [`${failed} could not be read`] : []),
    ...(open ? [`${open} to go`] : []),
  ];
  return (
    <section className="gallery" aria-label="Pictures">
      <div className="gallery-head">
        <p role="status">{words.join(" · ")}</p>
        <button type="button" className="quiet" disabled={open === items.length} onClick={() => save(items)}>
          Save as JSON
        </button>
        <button type="button" className="quiet" onClick={onClear}>
          Remove all
        </button>
      </div>
      <ul>
        {items.map((item) => (
          <li key={item.id} className={item.id === selected ? "selected" : ""}>
            <button
              type="button"
              className="thumb"
              aria-current={item.id === selected || undefined}
              onClick={() => onSelect(item.id)}
            >
              {item.status === "failed" ? <span className="picture">?</span> : <img src={item.url} alt="" />}
              <span className="name">{item.file.name}</span>
              <Chip item={item} />
            </button>
            <button type="button" className="remove" aria-label={`Remove ${item.file.name}`} onClick={() => onRemove(item)}>
              ×
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
