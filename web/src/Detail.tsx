import { useEffect } from "react";

import { explain, stress, type Card, type Choice } from "./api";
import { Sign } from "./Chip";
import { FileSays } from "./FileSays";
import { reasonOf, type Item } from "./items";
import { Meter } from "./Meter";
import { Overlay } from "./Overlay";
import { save } from "./report";
import { StressTable } from "./StressTable";
import { FINDERS, meaning, percent, TITLES } from "./words";

interface Props {
  item: Item;
  card: Card | undefined;
  choice: Choice;
  onChange: (id: number, change: Partial<Item>) => void;
}

/** One picture in detail: verdict, evidence and stress test. */
export function Detail({ item, card, choice, onChange }: Props) {
  const { id, file, scored, prediction, explanation } = item;
  const stressWanted = item.stress === "";

  useEffect(() => {
    if (!scored || explanation) return;
    let gone = false;
    explain(file, choice)
      .then((found) => gone || onChange(id, { explanation: found }))
      .catch((error) => gone || onChange(id, { explanation: reasonOf(error) }));
    return () => {
      gone = true;
    };
  }, [id, file, scored, explanation, choice, onChange]);

  useEffect(() => {
    if (!stressWanted) return;
    let gone = false;
    stress(file, choice)
      .then((found) => gone || onChange(id, { stress: found }))
      .catch((error) => gone || onChange(id, { stress: reasonOf(error) }));
    return () => {
      gone = true;
    };
  }, [id, file, stressWanted, choice, onChange]);

  return (
    <article className="detail" aria-labelledby="verdict">
      <Overlay item={item} />
      <div className="verdict">
        <p className="file">{file.name}</p>
        {item.status === "failed" && (
          <>
            <h2 id="verdict">This picture could not be checked</h2>
            <p role="alert">{item.error}</p>
          </>
        )}
        {item.status !== "failed" && !scored && (
          <h2 id="verdict" className="waiting">
            Looking at it …
          </h2>
        )}
        {scored && prediction && (
          <>
            <h2 id="verdict" className={scored.verdict} role="status">
              <Sign verdict={scored.verdict} />
              {TITLES[scored.verdict]}
            </h2>
            <p className="score">
              <strong>{percent(scored.p_fake)}</strong> probability of a fake
            </p>
            <Meter p={scored.p_fake} verdict={scored.verdict} decision={prediction} />
            <p>{meaning(scored.verdict, scored.p_fake, card)}</p>
            {scored.framed === "face" && scored.faces.length === 1 && <p>Face found by {FINDERS[scored.finder!]}.</p>}
            {scored.framed === "whole" && (
              <p>No face found by {FINDERS[scored.finder!]}: the whole picture was scored.</p>
            )}
            {scored.faces.length > 1 && (
              <p>
                {scored.faces.length} faces were found and judged one by one; this is the verdict on the most suspicious
                of them.
              </p>
            )}
            <div className="buttons">
              <button type="button" onClick={() => window.print()}>
                Print or save as PDF
              </button>
              <button type="button" onClick={() => save([item])}>
                Save as JSON
              </button>
            </div>
          </>
        )}
      </div>
      {scored && <StressTable stress={item.stress} onStart={() => onChange(id, { stress: "" })} />}
      {scored && <FileSays metadata={scored.metadata} />}
      {scored && card && (
        <p className="printed">
          Detector {card.name} ({card.model}), threshold {card.threshold.toFixed(3)}, {new Date().toLocaleString()}. A
          verdict is a hint to look closer, not proof.
        </p>
      )}
    </article>
  );
}
