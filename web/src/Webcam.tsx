import { useEffect, useRef, useState } from "react";

/** A dialog that shows the camera and takes one picture. */
export function Webcam({ onPicture, onClose }: { onPicture: (file: File) => void; onClose: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const video = useRef<HTMLVideoElement>(null);
  const [state, setState] = useState<"starting" | "ready" | "refused">("starting");

  useEffect(() => {
    let stream: MediaStream | undefined;
    let gone = false;
    dialog.current?.showModal();
    const camera = navigator.mediaDevices?.getUserMedia({ video: { facingMode: "user", width: { ideal: 1280 } } });
    (camera ?? Promise.reject(new Error("no camera")))
      .then(async (found) => {
        stream = found;
        if (gone || !video.current) return found.getTracks().forEach((track) => track.stop());
        video.current.srcObject = found;
        await video.current.play();
        setState("ready");
      })
      .catch(() => {
        if (!gone) setState("refused");
      });
    return () => {
      gone = true;
      stream?.getTracks().forEach((track) => track.stop());
    };
  }, []);

  const take = () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.current!.videoWidth;
    canvas.height = video.current!.videoHeight;
    canvas.getContext("2d")!.drawImage(video.current!, 0, 0);
    canvas.toBlob((blob) => {
      if (blob) onPicture(new File([blob], "camera.png", { type: "image/png" }));
      onClose();
    }, "image/png");
  };

  return (
    <dialog ref={dialog} aria-label="Camera" onClose={onClose}>
      {state === "refused" ? (
        <p role="alert">The camera cannot be used. Allow it in the browser, or choose a picture instead.</p>
      ) : (
        <video ref={video} playsInline muted aria-label="What the camera sees" />
      )}
      <div className="buttons">
        {state !== "refused" && (
          <button type="button" className="primary" disabled={state !== "ready"} onClick={take}>
            Take a picture
          </button>
        )}
        <button type="button" onClick={onClose}>
          {state === "refused" ? "Close" : "Cancel"}
        </button>
      </div>
    </dialog>
  );
}
