import type { Decision, Track } from "./api";
import { band, clock, percent } from "./words";

const WIDTH = 300;
const HEIGHT = 64;
const EDGE = 4; // px around the plot, so that markers are not cut off

interface Props {
  track: Track;
  seconds: number; // of the whole video
  decision: Decision;
}

/** The scores of a face over the time of the video: higher means more suspicious. */
export function Timeline({ track, seconds, decision }: Props) {
  const [low, high] = band(decision);
  const x = (time: number) => EDGE + (WIDTH - 2 * EDGE) * Math.min(1, time / (seconds || 1));
  const y = (p: number) => EDGE + (HEIGHT - 2 * EDGE) * (1 - p);
  const scores = track.points.map(([, p]) => p);
  const label =
    `Scores from ${clock(track.start_s)} to ${clock(track.end_s)}: ` +
    `lowest ${percent(Math.min(...scores))}, highest ${percent(Math.max(...scores))}`;
  return (
    <div className="timeline">
      <div className="ends" aria-hidden="true">
        <span>fake</span>
        <span>real</span>
      </div>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={label}>
        <rect className="rail" width={WIDTH} height={HEIGHT} rx="3" />
        <rect className="band" x="0" y={y(high)} width={WIDTH} height={Math.max(1, y(low) - y(high))} />
        {[low, high].map((p, index) => (
          <line key={index} x1="0" x2={WIDTH} y1={y(p)} y2={y(p)} />
        ))}
        <polyline points={track.points.map(([time, p]) => `${x(time).toFixed(1)},${y(p).toFixed(1)}`).join(" ")} />
        {track.points.map(([time, p]) => (
          <circle key={time} cx={x(time)} cy={y(p)} r="2.2" />
        ))}
      </svg>
      <div className="times" aria-hidden="true">
        <span>0:00</span>
        <span>{clock(seconds)}</span>
      </div>
    </div>
  );
}
