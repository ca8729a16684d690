import type { Answer } from "./api";
import { verdictOf, type Item } from "./items";

/** A shape for each verdict, so that colour is not the only cue. */
export function Sign({ verdict }: { verdict: Answer }) {
  return (
    <svg className={`sign ${nameOf(verdict)}`} viewBox="0 0 16 16" aria-hidden="true">
      {verdict === "real" && <circle cx="8" cy="8" r="6" />}
      {verdict === "fake" && <path d="M8 1.5 15 14H1z" />}
      {verdict === "unsure" && <path d="M8 1 15 8 8 15 1 8z" className="open" />}
      {verdict === "no face" && <path d="M2 8h12" className="open" />}
    </svg>
  );
}

/** Class of a verdict in the style sheet. */
export const nameOf = (verdict: Answer) => verdict.replace(" ", "-");

const STATES: Record<Item["status"], string> = {
  waiting: "waiting",
  working: "checking",
  done: "",
  failed: "not checked",
  cancelled: "cancelled",
};

// By error code.
const REASONS: Record<string, string> = {
  too_many_bytes: "too large",
  too_many_pixels: "too large",
  not_an_image: "wrong format",
  not_a_video: "wrong format",
  too_complex: "too complex",
  unreachable: "no connection",
};

/** The state of a file that has no verdict, or why it has none. */
function stateOf({ status, code = "", isVideo }: Item): string {
  if (status !== "failed") return STATES[status];
  if (code === "unreadable" && !isVideo) return "damaged"; // a video may only have an unknown codec
  return REASONS[code] ?? STATES.failed;
}

/** The state of a picture in one or two words. */
export function Chip({ item }: { item: Item }) {
  const verdict = verdictOf(item);
  if (!verdict) return <span className={`chip ${item.status}`}>{stateOf(item)}</span>;
  return (
    <span className={`chip ${nameOf(verdict)}`}>
      <Sign verdict={verdict} />
      {verdict}
    </span>
  );
}
