import { useEffect, useState } from "react";

import { dataUrl, explain, type Explanation } from "./api";
import type { Shown } from "./faces";
import { reasonOf, type Item } from "./items";
import { frame } from "./Picture";

const START = 60; // per cent opacity of the heat map at the start

const METHODS: Record<string, string> = {
  gradcam: "where the network's last features support the verdict (Grad-CAM)",
  occlusion: "how much the verdict weakens when a place is blurred (occlusion)",
};

interface Props {
  item: Item;
  shown: Shown;
  model: string;
  onChange: (change: Partial<Item>) => void;
}

/** A close-up of what the detector looked at, with a heat map over it. */
export function HeatMap({ item, shown, model, onChange }: Props) {
  const { file, whole, explanations } = item;
  const { key, face } = shown;
  const explanation = explanations[key];
  const [busy, setBusy] = useState(explanation === undefined);

  useEffect(() => {
    if (!busy) return;
    const controller = new AbortController();
    explain({ file, model, whole, face: face && key }, controller.signal)
      .catch((error) => reasonOf(error))
      .then((found) => {
        if (controller.signal.aborted) return;
        setBusy(false);
        onChange({ explanations: { ...explanations, [key]: found } });
      });
    return () => controller.abort();
  }, [busy, file, model, whole, face, key, explanations, onChange]);

  if (explanation === undefined) return <p className="waiting">Looking for the evidence …</p>;
  if (typeof explanation === "object") return <CloseUp item={item} explanation={explanation} />;
  return (
    <div className="texts">
      <p role="alert">There is no heat map: {explanation}</p>
      <div className="buttons">
        <button type="button" disabled={busy} onClick={() => setBusy(true)}>
          {busy ? "Looking …" : "Try again"}
        </button>
      </div>
    </div>
  );
}

function CloseUp({ item, explanation }: { item: Item; explanation: Explanation }) {
  const [strength, setStrength] = useState(START);
  const { view, overlay, target, method, all_zero } = explanation;
  const { width, height } = item.scored!;
  const percent = (value: number, whole: number) => `${((100 * value) / whole).toFixed(3)}%`;
  return (
    <figure className="close-up">
      <div className="stack" style={frame(view.width / view.height)}>
        {item.url && (
          <img
            className="under"
            src={item.url}
            alt={`Close-up${all_zero ? "" : `, with a heat map of the evidence for ${target}`}`}
            style={{
              width: percent(width, view.width),
              height: percent(height, view.height),
              left: percent(-view.left, view.width),
              top: percent(-view.top, view.height),
            }}
          />
        )}
        {!all_zero && (
          <img
            className="heat"
            alt=""
            src={dataUrl(overlay)}
            style={{ opacity: item.url ? strength / 100 : 1 }}
          />
        )}
      </div>
      <figcaption>
        {all_zero ? (
          <p>No single region supports this verdict, so there is no heat map.</p>
        ) : (
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
              <span className="scale" aria-hidden="true" /> Brighter: stronger evidence for “{target}”. It shows{" "}
              {METHODS[method] ?? method}. The detector does not see the darkened parts.
            </p>
          </>
        )}
      </figcaption>
    </figure>
  );
}
