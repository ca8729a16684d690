import { useCallback, useEffect, useMemo, useState } from "react";

import { ApiError, getServer, setToken, whenBusy, type Server } from "./api";
import { Detail } from "./Detail";
import { DropZone } from "./DropZone";
import { Gallery } from "./Gallery";
import { KEPT } from "./history";
import { HistoryList } from "./HistoryList";
import { reasonOf, useItems } from "./items";
import { ModelCard } from "./ModelCard";
import { Options } from "./Options";
import { ThemeButton } from "./ThemeButton";
import { TokenForm } from "./TokenForm";
import type { OnFrame } from "./VideoDetail";

export function App() {
  const [server, setServer] = useState<Server | null>(null);
  const [problem, setProblem] = useState<{ needsToken: boolean; message: string } | null>(null);
  const [tokenSent, setTokenSent] = useState(false);
  const [wait, setWait] = useState(0); // s, until the next attempt to reach a busy server
  const [model, setModel] = useState<string>();
  const [selected, setSelected] = useState<number | null>(null);
  const files = useItems(model, server?.limits);
  const { items, add, addFrame } = files;

  const connect = useCallback(() => {
    setProblem(null);
    getServer()
      .then((found) => {
        setServer(found);
        setModel(found.models[0]!.name);
      })
      .catch((error) => {
        const needsToken = error instanceof ApiError && error.status === 401;
        setProblem({ needsToken, message: reasonOf(error) });
      });
  }, []);
  useEffect(connect, [connect]);
  useEffect(() => whenBusy(setWait), []);

  const addFiles = useCallback(
    (files: File[]) => {
      const first = add(files);
      if (first) setSelected(first);
    },
    [add],
  );

  const [opened, setOpened] = useState<{ id: number }>(); // from another item, whose button had the focus
  useEffect(() => {
    if (opened) document.getElementById("verdict")?.focus();
  }, [opened]);
  const openItem = useCallback((id: number) => {
    setSelected(id);
    setOpened({ id });
  }, []);
  const clear = useCallback(() => {
    files.clear();
    document.getElementById("main")?.focus();
  }, [files]);
  const again = useCallback<typeof files.again>(
    (item, whole) => {
      files.again(item, whole);
      setOpened({ id: item.id });
    },
    [files],
  );
  const openFrame = useCallback<OnFrame>((...frame) => openItem(addFrame(...frame)), [addFrame, openItem]);

  const item = useMemo(() => items.find((one) => one.id === selected) ?? items[0], [items, selected]);
  const video = items.find(({ id }) => id === item?.origin?.video); // that the picture is a frame of
  const card = server?.models.find(({ name }) => name === model);

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
      <main id="main" tabIndex={-1}>
        <div className={items.length ? "intro small" : "intro"}>
          <h1>Real or fake?</h1>
          <p>
            Upload a picture or video of people. A detector looks at each face for the traces that AI image generators
            and face swaps leave behind, and says how sure it is.
          </p>
        </div>

        {problem?.needsToken && (
          <TokenForm
            rejected={tokenSent}
            onToken={(token) => {
              setToken(token);
              setTokenSent(true);
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

        {wait > 0 && (
          <p className="notice" role="status">
            The server is busy. Trying again in {Math.ceil(wait)} s …
          </p>
        )}

        {server && card && (
          <>
            <DropZone compact={items.length > 0} limits={server.limits} onFiles={addFiles} />
            <Options models={server.models} model={card.name} onChange={setModel} />
            {items.length > 0 && (
              <Gallery
                items={items}
                selected={item?.id}
                onSelect={setSelected}
                onRemove={files.remove}
                onClear={clear}
                onCancel={files.cancel}
                onResume={files.resume}
                onUnshowable={files.substitute}
              />
            )}
            {item && (
              <Detail
                key={item.id}
                item={item}
                card={card}
                cases={server.cases ?? false}
                onChange={files.change}
                onAgain={again}
                onFrame={openFrame}
                onBack={video && (() => openItem(video.id))}
              />
            )}
            <ModelCard card={card} />
          </>
        )}
        <HistoryList />
      </main>
      <footer>
        <p>
          Files are sent to this server only, which does not store them
          {server?.cases ? " unless you keep one as a case" : ""}. Your browser keeps the last {KEPT} verdicts, each
          with a small copy of the picture, until you delete them. A verdict is a reason to look closer, not proof.
        </p>
      </footer>
    </>
  );
}
