import { useState } from "react";

import { keepCase } from "./api";
import { reasonOf } from "./items";

const LABELS = ["real", "fake"] as const;

/** Keep a picture with the right answer in the case folder of the server. */
export function KeepCase({ file }: { file: File }) {
  const [state, setState] = useState<{ busy?: boolean; saved?: string; problem?: string }>({});

  const keep = (label: (typeof LABELS)[number]) => {
    setState({ busy: true });
    keepCase(file, label)
      .then(({ saved }) => setState({ saved: `Kept as ${label}: ${saved}` }))
      .catch((error) => setState({ problem: reasonOf(error) }));
  };

  return (
    <section className="keep" aria-label="Keep as a case">
      <h3>Do you know the answer?</h3>
      <p>
        Keep this picture as a case, so that the people who run this server can test their detectors on it. It is stored
        in the case folder on the server, with your answer, and sent nowhere else.
      </p>
      {state.saved ? (
        <p role="status">{state.saved}</p>
      ) : (
        <div className="buttons" role="group" aria-label="Keep as a case">
          {LABELS.map((label) => (
            <button key={label} type="button" disabled={state.busy} onClick={() => keep(label)}>
              Keep: it is {label}
            </button>
          ))}
        </div>
      )}
      {state.problem && <p role="alert">{state.problem}</p>}
    </section>
  );
}
