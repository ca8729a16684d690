import { Fragment, useEffect, useState } from "react";

import { stress as runStress, type Step, type Stress } from "./api";
import type { Shown } from "./faces";
import { reasonOf, type Item } from "./items";
import { Track } from "./Meter";
import { percent } from "./words";

const GROUPS: Partial<Record<Step["kind"], string>> = {
  jpeg: "Compressed again",
  resize: "Scaled down",
  screenshot: "Captured from a screen",
  shared: "Sent through a service",
};

interface Props {
  item: Item;
  shown: Shown;
  model: string;
  onChange: (change: Partial<Item>) => void;
}

/** Stress test of the chosen face as a chart that is also a table. */
export function StressTable({ item, shown, model, onChange }: Props) {
  const { file, whole, stress } = item;
  const { key, face } = shown;
  const [busy, setBusy] = useState(false);
  const result = stress[key];

  useEffect(() => {
    if (!busy) return;
    const controller = new AbortController();
    runStress({ file, model, whole, face: face && key }, controller.signal)
      .catch((error) => reasonOf(error))
      .then((found) => {
        if (controller.signal.aborted) return;
        setBusy(false);
        onChange({ stress: { ...stress, [key]: found } });
      });
    return () => controller.abort();
  }, [busy, file, model, whole, face, key, stress, onChange]);

  return (
    <section className="stress" aria-label="Stress test">
      <h3>Would this verdict survive sharing?</h3>
      {typeof result === "object" ? (
        <Chart stress={result} />
      ) : (
        <>
          <p>
            Messengers and social networks scale and compress pictures, which removes traces. See how that changes the
            score of your picture.
          </p>
          {result && <p role="alert">{result}</p>}
          <button type="button" disabled={busy} onClick={() => setBusy(true)}>
            {busy ? "Testing …" : "Run the stress test"}
          </button>
        </>
      )}
    </section>
  );
}

function Chart({ stress }: { stress: Stress }) {
  const { original, steps, held } = stress;
  const words = held === steps.length ? "It does, every time" : held > steps.length / 2 ? "Mostly" : "Not reliably";
  return (
    <>
      <p role="status">
        <strong>{words}:</strong> the verdict “{original.verdict}” is the same after {held} of {steps.length} ways to
        share the picture.
      </p>
      <table>
        <thead>
          <tr>
            <th scope="col">What happens to it</th>
            <th scope="col">
              <span className="ends" aria-hidden="true">
                <span>real</span>
                <span>fake</span>
              </span>
              <span className="unseen">Chart</span>
            </th>
            <th scope="col">Score</th>
            <th scope="col">Verdict</th>
          </tr>
        </thead>
        <tbody>
          <Row step={original} stress={stress} />
          {steps.map((step, index) => (
            <Fragment key={step.label}>
              {step.kind !== steps[index - 1]?.kind && (
                <tr className="group">
                  <th colSpan={4} scope="colgroup">
                    {GROUPS[step.kind]}
                  </th>
                </tr>
              )}
              <Row step={step} stress={stress} />
            </Fragment>
          ))}
        </tbody>
      </table>
    </>
  );
}

function Row({ step, stress }: { step: Step; stress: Stress }) {
  return (
    <tr className={step.verdict === stress.original.verdict ? "" : "moved"}>
      <th scope="row">{step.label}</th>
      <td className="chart">
        <Track p={step.p_fake} verdict={step.verdict} decision={stress} />
      </td>
      <td className="number">{percent(step.p_fake).replace("over ", "> ").replace("under ", "< ")}</td>
      <td>{step.verdict}</td>
    </tr>
  );
}
