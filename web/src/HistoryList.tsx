import { Sign } from "./Chip";
import { forget, useHistory } from "./history";
import { percent } from "./words";

/** Earlier verdicts of this browser. */
export function HistoryList() {
  const past = useHistory();
  if (!past.length) return null;
  return (
    <details className="panel history">
      <summary>Earlier verdicts ({past.length})</summary>
      <p>
        Kept in this browser only, with a small copy of each picture.{" "}
        <button type="button" className="quiet" onClick={forget}>
          Delete them
        </button>
      </p>
      <ul>
        {past.map((entry) => (
          <li key={`${entry.time} ${entry.name}`}>
            {entry.thumbnail ? <img src={entry.thumbnail} alt="" /> : <span className="picture" aria-hidden="true" />}
            <span className="name">{entry.name}</span>
            <span className="chip">
              <Sign verdict={entry.verdict} />
              {entry.verdict}
            </span>
            <span className="when">
              {entry.p_fake !== null && `${percent(entry.p_fake)} · `}
              {entry.model} · {new Date(entry.time).toLocaleString()}
            </span>
          </li>
        ))}
      </ul>
    </details>
  );
}
