import { useEffect, useState } from "react";

import { dataUrl, frameAt, type Card, type Track, type Video } from "./api";
import { Sign } from "./Chip";
import { reasonOf, type Item } from "./items";
import { Meter } from "./Meter";
import { NextSteps } from "./Reasons";
import { Timeline } from "./Timeline";
import { clock, FINDERS, howSure, meaning, OF_FRAMES, percent } from "./words";

const facesIn = (tracks: Track[]) => tracks.filter(({ framed }) => framed !== "whole").length;

interface Props {
  video: Video;
  card: Card;
  whole: boolean; // whether whole frames were asked for
  onWhole: () => void;
}

/** What the verdict on a video means, and what was looked at. */
export function VideoVerdict({ video, card, whole, onWhole }: Props) {
  const { verdict, p_fake, tracks, frames, seconds, finder } = video;
  const faces = facesIn(tracks);
  return (
    <>
      {verdict !== "no face" && p_fake !== null && (
        <>
          <p className="score">
            <strong>{percent(p_fake)}</strong> probability of a fake
          </p>
          <Meter p={p_fake} verdict={verdict} decision={video} />
          <p>{meaning(verdict, p_fake, card)}</p>
        </>
      )}
      <p>
        {frames === 1 ? "One frame was" : `${frames} frames, the last at ${clock(seconds)}, were`} examined.{" "}
        {verdict === "no face" && finder && `The detector judges faces, and ${FINDERS[finder]} found none in them.`}
        {faces === 0 && whole && "No face was found in them, so whole frames were judged: trust this verdict less."}
        {faces > 1 && `${faces} faces were followed; the video has the verdict of the first one below.`}
      </p>
      {verdict === "no face" && (
        <div className="buttons">
          <button type="button" className="primary" onClick={onWhole}>
            Judge whole frames
          </button>
        </div>
      )}
    </>
  );
}

/** Open a frame of a video as a picture. */
export type OnFrame = (video: Item, picture: Blob, track: Track, time: number) => void;

interface FacesProps {
  item: Item;
  video: Video;
  card: Card;
  onFrame: OnFrame;
}

/** A row for each face that was followed through a video, and next steps. */
export function VideoFaces({ item, video, card, onFrame }: FacesProps) {
  const { tracks } = video;
  const faces = facesIn(tracks);
  return (
    <>
      {tracks.length > 0 && (
        <section className="tracks" aria-label="Faces in the video">
          <h3>{faces === 0 ? "The frames" : faces === 1 ? "The face in this video" : "The faces in this video"}</h3>
          <ol>
            {tracks.map((track, index) => (
              <Row key={track.track} item={item} track={track} number={index + 1} video={video} onFrame={onFrame} />
            ))}
          </ol>
          <p className="legend">
            Each line shows the scores of one face over time: the higher, the more suspicious. Between the dashed lines
            the detector is unsure.{" "}
            <span className="on-screen">Open the most suspicious frame to see where it sees evidence.</span>
          </p>
        </section>
      )}
      <section className="reasons" aria-label="Reasons and next steps">
        {tracks.length > 0 && (
          <div className="texts">
            <h3>How sure it is</h3>
            <p>
              {howSure(card.sources, "video")} {OF_FRAMES}
            </p>
          </div>
        )}
        <div className="texts">
          <NextSteps video />
        </div>
      </section>
    </>
  );
}

interface RowProps {
  item: Item;
  track: Track;
  number: number;
  video: Video;
  onFrame: OnFrame;
}

function Row({ item, track, number, video, onFrame }: RowProps) {
  const { verdict, p_fake, start_s, end_s, frames, picture, framed } = track;
  const name = framed === "whole" ? "Whole frames" : `Face ${number}`;
  return (
    <li>
      <img src={dataUrl(picture)} alt="" />
      <div>
        <p>
          <strong>{name}</strong>{" "}
          <span className={`chip ${verdict}`}>
            <Sign verdict={verdict} />
            {verdict} · {percent(p_fake)}
          </span>
        </p>
        <p className="when">
          {clock(start_s)} to {clock(end_s)}, {frames} {frames === 1 ? "frame" : "frames"}
        </p>
        <FrameButton item={item} track={track} name={name} onFrame={onFrame} />
      </div>
      <Timeline track={track} seconds={video.seconds} decision={video} />
    </li>
  );
}

interface ButtonProps {
  item: Item;
  track: Track;
  name: string;
  onFrame: OnFrame;
}

/** Opens the most suspicious frame of a face, which the server takes out of the video. */
function FrameButton({ item, track, name, onFrame }: ButtonProps) {
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState("");
  const [time] = track.points.reduce((worst, point) => (point[1] > worst[1] ? point : worst));

  useEffect(() => {
    if (!busy) return;
    const controller = new AbortController();
    setProblem("");
    frameAt(item.file, time, controller.signal)
      .then((picture) => controller.signal.aborted || onFrame(item, picture, track, time))
      .catch((error) => {
        if (controller.signal.aborted) return;
        setProblem(reasonOf(error));
        setBusy(false);
      });
    return () => controller.abort();
  }, [busy, item, track, time, onFrame]);

  return (
    <>
      <button type="button" className="open-frame" disabled={busy} onClick={() => setBusy(true)}>
        {busy ? "Opening …" : `Open the frame at ${clock(time)}`}
        <span className="unseen"> of {name}</span>
      </button>
      {problem && <p role="alert">{problem}</p>}
    </>
  );
}
