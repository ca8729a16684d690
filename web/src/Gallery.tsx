import { dataUrl } from "./api";
import { Chip } from "./Chip";
import { isLeft, verdictOf, type Item } from "./items";
import { save } from "./report";
import { ANSWERS } from "./words";

interface Props {
  items: Item[];
  selected: number | undefined;
  onSelect: (id: number) => void;
  onRemove: (item: Item) => void;
  onClear: () => void;
  onCancel: () => void;
  onResume: () => void;
  onUnshowable: (item: Item) => void;
}

/** All files with their verdicts; the selected one is shown in detail below. */
export function Gallery({ items, selected, onSelect, onRemove, onClear, onCancel, onResume, onUnshowable }: Props) {
  const open = items.filter(({ status }) => status === "waiting" || status === "working").length;
  return (
    <section className="gallery" aria-label="Your files">
      <div className="gallery-head">
        {open > 0 && <Progress done={items.length - open} all={items.length} />}
        <p role="status" className={open > 0 ? "unseen" : ""}>
          {open === 0 && summary(items)}
        </p>
        {open > 0 && (
          <button type="button" className="quiet" onClick={onCancel}>
            Cancel
          </button>
        )}
        {open === 0 && items.some(isLeft) && (
          <button type="button" className="quiet" onClick={onResume}>
            Check the rest
          </button>
        )}
        {open === 0 && (
          <button type="button" className="quiet" onClick={() => save(items)}>
            Save as JSON
          </button>
        )}
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
              <Thumbnail item={item} onUnshowable={onUnshowable} />
              <span className="name">{item.file.name}</span>
              <Chip item={item} />
            </button>
            <button
              type="button"
              className="remove"
              aria-label={`Remove ${item.file.name}`}
              onClick={(event) => {
                focusBeside(event.currentTarget.closest("li")!);
                onRemove(item);
              }}
            >
              ×
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

/** Move the focus to the file after this one, which goes away, or to the one before it. */
function focusBeside(entry: HTMLElement) {
  const beside = entry.nextElementSibling ?? entry.previousElementSibling;
  (beside?.querySelector<HTMLElement>(".thumb") ?? document.getElementById("main"))?.focus();
}

function Progress({ done, all }: { done: number; all: number }) {
  return (
    <p className="progress">
      <progress value={done} max={all} aria-label="Files checked" /> {done} of {all}
    </p>
  );
}

function summary(items: Item[]): string {
  const words = ANSWERS.map((answer) => [answer, items.filter((item) => verdictOf(item) === answer).length] as const)
    .filter(([, count]) => count)
    .map(([answer, count]) => `${count} ${answer}`);
  for (const [status, word] of [["failed", "not checked"], ["cancelled", "cancelled"]] as const) {
    const count = items.filter((item) => item.status === status).length;
    if (count) words.push(`${count} ${word}`);
  }
  return words.join(" · ");
}

function Thumbnail({ item, onUnshowable }: { item: Item; onUnshowable: (item: Item) => void }) {
  const frame = item.video?.tracks[0]?.picture;
  if (frame) return <img src={dataUrl(frame)} alt="" />;
  if (item.isVideo) return <NoPicture>▶</NoPicture>;
  if (item.status === "failed" || !item.url) return <NoPicture>?</NoPicture>;
  return <img src={item.url} alt="" loading="lazy" decoding="async" onError={() => onUnshowable(item)} />;
}

const NoPicture = ({ children }: { children: string }) => (
  <span className="picture" aria-hidden="true">
    {children}
  </span>
);
