import { useState } from "react";

import type { FaceBox, Scores } from "./api";
import type { Item } from "./items";
import { percent } from "./words";

const START = 60; // per cent opacity of the heat map at the start

const TALLEST = 34; // rem

const METHODS: Record<string, string> = {
  gradcam: "where the network's last features speak for the verdict (Grad-CAM)",
  occlusion: "how much the verdict weakens when a place is blurred (occlusion)",
};

/** The picture, the faces in it, and the heat map over it with a slider. */
export function Overlay({ item }: { item: Item }) {
  const [strength, setStrength] = useState(START);
  const { scored, explanation } = item;
  const found = typeof explanation === "object" ? explanation : undefined;
  const label = found && !found.all_zero ? `, with a heat map of the evidence for ${found.target}` : "";
  return (
    <figure className="overlay">
      <div className="stack" style={scored && frame(scored.width / scored.height)}>
        {item.status === "failed" ? (
          <div className="no-picture" aria-hidden="true">
            ?
          </div>
        ) : (
          <img src={item.url} alt={`${item.file.name}${label}`} />
        )}
        {found && !found.all_zero && (
          <img
            className="heat"
            alt=""
            src={`data:${found.overlay.media_type};base64,${found.overlay.base64}`}
            style={{ opacity: strength / 100 }}
          />
        )}
        {scored && scored.faces.length > 0 && (
          <Faces faces={scored.faces} width={scored.width} height={scored.height} />
        )}
      </div>
      {scored && (
        <figcaption>
          {!explanation && <p>Looking for the evidence …</p>}
          {typeof explanation === "string" && <p>There is no heat map: {explanation}</p>}
          {found?.all_zero && <p>No single region supports this verdict, so there is no heat map.</p>}
          {found && !found.all_zero && (
            <>
              <label className="slider">
                <span>Picture</span>
                <input
                  type="range"
                  min="0"
                  max="100"
                  value={strength}
                  aria-label="Strength of the heat map"
                  onChange={(event) => setStrength(Number(event.target.value))}
                />
                <span>Heat map</span>
              </label>
              <p className="legend">
                <span className="scale" aria-hidden="true" /> Brighter: stronger evidence for “{found.target}”. Shown is{" "}
                {METHODS[found.method] ?? found.method}. Darkened parts are not seen by the detector.
              </p>
            </>
          )}
        </figcaption>
      )}
    </figure>
  );
}

/** The shape of the picture, so that the layout does not shift when layers load; at most as tall as the screen. */
const frame = (aspect: number) => ({ aspectRatio: aspect, width: `min(100%, ${(TALLEST * aspect).toFixed(1)}rem)` });

function Faces({ faces, width, height }: { faces: (FaceBox & Scores)[]; width: number; height: number }) {
  const unit = Math.max(width, height) / 100;
  return (
    <svg className="faces" viewBox={`0 0 ${width} ${height}`} role="img" aria-label={describe(faces)}>
      {faces.map((face) => (
        <g key={`${face.left} ${face.top}`} className={face.verdict}>
          <rect
            x={face.left}
            y={face.top}
            width={Math.min(face.side, width - face.left)}
            height={Math.min(face.side, height - face.top)}
            rx={unit}
            strokeWidth={0.7 * unit}
          />
          <text x={face.left + 2 * unit} y={face.top + 6 * unit} fontSize={4.5 * unit} strokeWidth={unit}>
            {face.verdict} · {percent(face.p_fake)} fake
          </text>
        </g>
      ))}
    </svg>
  );
}

const describe = (faces: Scores[]) =>
  `${faces.length} ${faces.length === 1 ? "face" : "faces"}: ${faces
    .map((face) => `${face.verdict}, ${percent(face.p_fake)} probability of a fake`)
    .join("; ")}`;
