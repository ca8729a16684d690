import type { CSSProperties } from "react";

import type { Decision, Verdict } from "./api";
import { band, percent } from "./words";

/** Where a score lies on the scale, which is 200 wide. */
const place = (value: number) => 4 + 192 * Math.min(1, Math.max(0, value));

/** The score on a scale from real to fake, with the unsure range. */
export function Meter({ p, verdict, decision }: { p: number; verdict: Verdict; decision: Decision }) {
  const [low, high] = band(decision);
  const label = `${percent(p)} on a scale from real to fake; fake from ${percent(high)}, real below ${percent(low)}`;
  return (
    <div className="meter">
      <Track p={p} verdict={verdict} decision={decision} label={label} />
      <div className="ends" aria-hidden="true">
        <span>real</span>
        {high - low > 0.02 && (
          <span className="shaded" style={{ "--middle": `${place((low + high) / 2) / 2}%` } as CSSProperties}>
            shaded: unsure
          </span>
        )}
        <span>fake</span>
      </div>
    </div>
  );
}

interface TrackProps {
  p: number;
  verdict: Verdict;
  decision: Decision;
  label?: string;
}

export function Track({ p, verdict, decision, label }: TrackProps) {
  const [low, high] = band(decision);
  const x = place(p);
  return (
    <svg className="track" viewBox="0 0 200 12" {...(label ? { role: "img", "aria-label": label } : { "aria-hidden": true })}>
      <rect className="rail" x="0" y="4" width="200" height="4" rx="2" />
      <rect className="band" x={place(low)} y="2" width={Math.max(0.8, place(high) - place(low))} height="8" rx="0.4" />
      {verdict === "real" && <circle className="dot real" cx={x} cy="6" r="4" />}
      {verdict === "fake" && <path className="dot fake" d={`M${x} 1.6 ${x + 4.6} 9.8H${x - 4.6}z`} />}
      {verdict === "unsure" && <path className="dot unsure" d={`M${x} 1.2 ${x + 4.8} 6 ${x} 10.8 ${x - 4.8} 6z`} />}
    </svg>
  );
}
