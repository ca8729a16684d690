import { useEffect, useRef, useState, type DragEvent } from "react";

import type { Limits } from "./api";
import { Webcam } from "./Webcam";
import { accepted } from "./words";

const isMedia = (file: File) => /^(image|video)\//.test(file.type) || file.type === "";

// The suffixes are for systems that know no media type for them.
const ACCEPT = "image/*,video/*,.heic,.heif,.avif,.mkv";

interface Props {
  compact: boolean;
  limits: Limits;
  onFiles: (files: File[]) => void;
}

/** Input for pictures and videos: dropped anywhere on the page, pasted, chosen or taken with the camera. */
export function DropZone({ compact, limits, onFiles }: Props) {
  const input = useRef<HTMLInputElement>(null);
  const [over, setOver] = useState(false);
  const [camera, setCamera] = useState(false);

  useEffect(() => {
    const paste = (event: ClipboardEvent) => {
      const files = [...(event.clipboardData?.files ?? [])].filter(isMedia);
      if (files.length) onFiles(files);
    };
    // Otherwise a picture dropped outside the field would replace this page.
    const refuse = (event: Event) => event.preventDefault();
    document.addEventListener("paste", paste);
    document.addEventListener("dragover", refuse);
    document.addEventListener("drop", refuse);
    return () => {
      document.removeEventListener("paste", paste);
      document.removeEventListener("dragover", refuse);
      document.removeEventListener("drop", refuse);
    };
  }, [onFiles]);

  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    const files = [...event.dataTransfer.files];
    if (files.length) onFiles(files);
  };

  return (
    <section
      aria-label="Add pictures or videos"
      className={`drop${compact ? " compact" : ""}${over ? " over" : ""}`}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={drop}
    >
      <p className="drop-words">
        <strong>Drop pictures or videos here</strong>
        <span>or paste them with Ctrl + V</span>
      </p>
      <div className="buttons">
        <button type="button" className="primary" onClick={() => input.current?.click()}>
          Choose files
        </button>
        <button type="button" onClick={() => setCamera(true)}>
          Use the camera
        </button>
      </div>
      <input
        ref={input}
        className="hidden"
        type="file"
        accept={ACCEPT}
        multiple
        aria-label="Pictures or videos"
        tabIndex={-1}
        onChange={(event) => {
          const files = [...(event.target.files ?? [])];
          event.target.value = ""; // so that the same file can be chosen again
          if (files.length) onFiles(files);
        }}
      />
      <div className="limits">
        {accepted(limits).map((sentence) => (
          <p key={sentence}>{sentence}</p>
        ))}
      </div>
      {camera && <Webcam onPicture={(file) => onFiles([file])} onClose={() => setCamera(false)} />}
    </section>
  );
}
