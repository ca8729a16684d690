import { useCallback, useEffect, useMemo, useState } from "react";

import { ApiError, getServer, setToken, type Choice, type Server } from "./api";
import { Detail } from "./Detail";
import { DropZone } from "./DropZone";
import { Gallery } from "./Gallery";
import { HistoryList } from "./HistoryList";
import { reasonOf, useItems } from "./items";
import { ModelCard } from "./ModelCard";
import { ThemeButton } from "./ThemeButton";
import { TokenForm } from "./TokenForm";

export function App() {
  const [server, setServer] = useState<Server | null>(null);
  const [problem, setProblem] = useState<{ needsToken: boolean; message: string } | null>(null);
  const [choice, setChoice] = useState<Choice | null>(null);
  const [selected, setSelected] = useState<number | null>(null);
  const maxBytes = (server?.limits.max_mb ?? 32) * 1e6;
  const { items, add, remove, clear, change } = useItems(choice, maxBytes);

  const connect = useCallback(() => {
    setProblem(null);
    getServer()
      .then((found) => {
        setServer(found);
        setChoice({ model: found.models[0]!.name, faces: found.faces });
      })
      .catch((error) => {
        const needsToken = error instanceof ApiError && error.status === 401;
        setProblem({ needsToken, message: reasonOf(error) });
      });
  }, []);
  useEffect(connect, [connect]);

  const addFiles = useCallback(
    (files: File[]) => {
      const first = add(files);
      if (first) setSelected(first);
    },
    [add],
  );

  const item = useMemo(() => items.find((one) => one.id === selected) ?? items[0], [items, selected]);
  const card = server?.models.find((model) => model.name === choice?.model);

  return (
    <>
      <a className="skip" href="#main">
        Skip to the content
      </a>
      <header className="bar">
        <span className="mark" aria-hidden="true" />
        <span className="brand">Deepfake Image Engine</span>
        <ThemeButton />
      </header>
      <main id="main">
        <div className={items.length ? "intro small" : "intro"}>
          <h1>Real or fake?</h1>
          <p>
            Upload a picture of a face. A detector looks for the traces that AI image generators and face swaps leave
            behind, and says how sure it is.
          </p>
        </div>

        {problem?.needsToken && (
          <TokenForm
            onToken={(token) => {
              setToken(token);
              connect();
            }}
          />
        )}
        {problem && !problem.needsToken && (
          <p className="notice" role="alert">
            {problem.message}{" "}
            <button type="button" onClick={connect}>
              Try again
            </button>
          </p>
        )}

        {server && choice && (
          <>
            <DropZone compact={items.length > 0} onFiles={addFiles} />
            <Options server={server} choice={choice} onChange={setChoice} />
            {items.length > 0 && (
              <Gallery
                items={items}
                selected={item?.id}
                onSelect={setSelected}
                onRemove={remove}
                onClear={clear}
              />
            )}
            {item && <Detail key={item.id} item={item} card={card} choice={choice} onChange={change} />}
            {card && <ModelCard card={card} />}
          </>
        )}
        <HistoryList />
      </main>
      <footer>
        <p>
          Pictures are sent to this server only, stay in memory until they are scored, and are never stored. A verdict is a
          hint to look closer, not proof.
        </p>
      </footer>
    </>
  );
}

function Options({ server, choice, onChange }: { server: Server; choice: Choice; onChange: (choice: Choice) => void }) {
  if (server.models.length < 2 && !server.faces) return null;
  return (
    <div className="options">
      {server.models.length > 1 && (
        <label>
          Detector{" "}
          <select value={choice.model} onChange={(event) => onChange({ ...choice, model: event.target.value })}>
            {server.models.map((model) => (
              <option key={model.name}>{model.name}</option>
            ))}
          </select>
        </label>
      )}
      {server.faces && (
        <label>
          <input
            type="checkbox"
            checked={choice.faces}
            onChange={(event) => onChange({ ...choice, faces: event.target.checked })}
          />{" "}
          Score each face
        </label>
      )}
    </div>
  );
}
