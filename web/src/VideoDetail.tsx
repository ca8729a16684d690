import { dataUrl, type Card, type Track, type Video } from "./api";
import { Sign } from "./Chip";
import { Meter } from "./Meter";
import { NextSteps } from "./Reasons";
import { Timeline } from "./Timeline";
import { clock, FINDERS, howSure, meaning, percent } from "./words";

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
        {frames === 1 ? "One frame was" : `${frames} frames, up to ${clock(seconds)}, were`} looked at.{" "}
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

/** A row for each face that was followed through a video, and next steps. */
export function VideoFaces({ video, card }: { video: Video; card: Card }) {
  const { tracks } = video;
  const faces = facesIn(tracks);
  return (
    <>
      {tracks.length > 0 && (
        <section className="tracks" aria-label="Faces in the video">
          <h3>{faces === 0 ? "The frames" : faces === 1 ? "The face in this video" : "The faces in this video"}</h3>
          <ol>
            {tracks.map((track, index) => (
              <Row key={track.track} track={track} number={index + 1} video={video} />
            ))}
          </ol>
          <p className="legend">
            Each line shows the scores of one face over time: the higher, the more suspicious. Between the dashed lines
            the detector is unsure.
          </p>
        </section>
      )}
      <section className="reasons" aria-label="Reasons and next steps">
        {tracks.length > 0 && (
          <div className="texts">
            <h3>How sure it is</h3>
            <p>
              {howSure(card.sources)} Videos are compressed more than photographs, and the frames are judged one by one:
              the detector does not look at movement or sound.
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

function Row({ track, number, video }: { track: Track; number: number; video: Video }) {
  const { verdict, p_fake, start_s, end_s, frames, picture, framed } = track;
  return (
    <li>
      <img src={dataUrl(picture)} alt="" />
      <div>
        <p>
          <strong>{framed === "whole" ? "Whole frames" : `Face ${number}`}</strong>{" "}
          <span className={`chip ${verdict}`}>
            <Sign verdict={verdict} />
            {verdict} · {percent(p_fake)}
          </span>
        </p>
        <p className="when">
          {clock(start_s)} to {clock(end_s)}, {frames} {frames === 1 ? "frame" : "frames"}
        </p>
      </div>
      <Timeline track={track} seconds={video.seconds} decision={video} />
    </li>
  );
}
