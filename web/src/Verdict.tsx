import type { Card, Finder } from "./api";
import { nameOf, Sign } from "./Chip";
import { inReadingOrder, worst, type Shown } from "./faces";
import { FileSaysLink, namesGenerator } from "./FileSays";
import { verdictOf, type Item, type Origin } from "./items";
import { Meter } from "./Meter";
import { save } from "./report";
import { clock, FINDERS, meaning, percent, titleOf } from "./words";

/** The heading of a file: its verdict, that of the chosen face, or how far it is. */
export function Heading({ item, shown }: { item: Item; shown: Shown | undefined }) {
  const verdict = shown?.verdict ?? verdictOf(item);
  if (!verdict) {
    const open = item.status === "waiting" || item.status === "working";
    return (
      <h2 id="verdict" tabIndex={-1} className={open ? "waiting" : ""}>
        {stateOf(item)}
      </h2>
    );
  }
  const { p_fake } = shown ?? (item.scored ?? item.video)!;
  const title = titleOf(verdict, p_fake, item.isVideo);
  const many = shown && item.scored!.faces.length > 1;
  return (
    <h2 id="verdict" tabIndex={-1} className={nameOf(verdict)}>
      <Sign verdict={verdict} />
      <span>{many ? `Face ${shown.place}: ${title[0]!.toLowerCase()}${title.slice(1)}` : title}</span>
    </h2>
  );
}

function stateOf({ status, isVideo }: Item): string {
  if (status === "waiting") return "Waiting its turn …";
  if (status === "working") return "Checking …";
  if (status === "cancelled") return "Cancelled";
  return `This ${isVideo ? "video" : "picture"} could not be checked`;
}

interface VerdictProps {
  item: Item;
  shown: Shown;
  card: Card;
  onChoose: (face: number) => void;
}

/** What the verdict on the chosen face, or on the whole picture, means. */
export function Verdict({ item, shown, card, onChoose }: VerdictProps) {
  const { verdict, p_fake, key } = shown;
  const { faces, metadata } = item.scored!;
  const first = worst(faces) ?? 0;
  const chooseFirst = () => {
    document.getElementById("verdict")?.focus(); // because the button goes away
    onChoose(first);
  };
  return (
    <>
      <p className="score">
        <strong>{percent(p_fake)}</strong> probability of a fake
      </p>
      <Meter p={p_fake} verdict={verdict} decision={item.decision!} />
      <p>{meaning(verdict, p_fake, card)}</p>
      {faces.length > 1 && (
        <p>
          {faces.length} faces were found and judged one by one. The picture counts as “{item.scored!.verdict}”: that is
          the verdict on its most suspicious face,{" "}
          {first === key ? (
            "this one"
          ) : (
            <button type="button" className="link" onClick={chooseFirst}>
              face {inReadingOrder(faces).indexOf(first) + 1}
            </button>
          )}
          .
        </p>
      )}
      {namesGenerator(metadata) && (
        <p>
          <strong>The file itself says that AI made it or a part of it.</strong> The verdict does not take this into account; see{" "}
          <FileSaysLink>what the file says</FileSaysLink>.
        </p>
      )}
      <Before before={item.before} />
      <div className="buttons">
        <button type="button" onClick={() => window.print()}>
          Print or save as PDF
        </button>
        <button type="button" onClick={() => save([item])}>
          Save as JSON
        </button>
      </div>
    </>
  );
}

/** What another detector said before this one was chosen. */
export function Before({ before }: Pick<Item, "before">) {
  return before ? (
    <p>
      {before.detector} said: {before.verdict}
      {before.p_fake !== null && `, ${percent(before.p_fake)}`}.
    </p>
  ) : null;
}

/** Where a frame of a video comes from, and the way back. */
export function FromVideo({ origin: { name, time }, onBack }: { origin: Origin; onBack?: () => void }) {
  return (
    <>
      <p>
        This is one frame of {name}, at {clock(time)}, judged as a picture. The verdict on the video counts all of its
        frames.
      </p>
      {onBack && (
        <div className="buttons">
          <button type="button" onClick={onBack}>
            Back to the video
          </button>
        </div>
      )}
    </>
  );
}

/** A picture without a face, which can be judged as a whole. */
export function NoFace({ finder, onWhole }: { finder: Finder | undefined; onWhole: () => void }) {
  return (
    <>
      <p>
        The detector judges faces, and {finder && FINDERS[finder]} found none in this picture. Small, turned or covered
        faces can be missed: crop the picture to the face and try again.
        {finder === "cascade" && " This server runs without YuNet, which finds more."}
      </p>
      <p>You can also have the whole picture judged. The detector was made for faces, so trust that verdict less.</p>
      <div className="buttons">
        <button type="button" className="primary" onClick={onWhole}>
          Judge the whole picture
        </button>
      </div>
    </>
  );
}

/** A file that waits, failed or was cancelled. */
export function Unscored({ item, onAgain }: { item: Item; onAgain: (item: Item) => void }) {
  const cancelled = item.status === "cancelled";
  return (
    <>
      {item.isVideo && item.status === "working" && (
        <p>Faces are followed from frame to frame. A long video can take a minute.</p>
      )}
      {item.error && <p role="alert">{item.error}</p>}
      {(cancelled || item.canRetry) && (
        <div className="buttons">
          <button type="button" onClick={() => onAgain(item)}>
            {cancelled ? "Check it" : "Try again"}
          </button>
        </div>
      )}
    </>
  );
}
