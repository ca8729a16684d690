import type { Verdict } from "./api";
import type { Item } from "./items";

/** A shape for each verdict, so that colour is not the only cue. */
export function Sign({ verdict }: { verdict: Verdict }) {
  return (
    <svg className={`sign ${verdict}`} viewBox="0 0 16 16" aria-hidden="true">
      {verdict === "real" && <circle cx="8" cy="8" r="6" />}
      {verdict === "fake" && <path d="M8 1.5 15 14H1z" />}
      {verdict === "unsure" && <path d="M8 1 15 8 8 15 1 8z" className="open" />}
    </svg>
  );
}

/** The state of a picture in one word. */
export function Chip({ item }: { item: Item }) {
  if (item.status === "failed") return <span className="chip failed">unreadable</span>;
  if (!item.scored) return <span className="chip busy">checking</span>;
  return (
    <span className={`chip ${item.scored.verdict}`}>
      <Sign verdict={item.scored.verdict} />
      {item.scored.verdict}
    </span>
  );
}
