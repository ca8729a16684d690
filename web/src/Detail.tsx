import { useCallback } from "react";

import type { Card, Finder } from "./api";
import { nameOf, Sign } from "./Chip";
import { inReadingOrder, shownOf, worst, type Shown } from "./faces";
import { FileSays, FileSaysLink, namesGenerator } from "./FileSays";
import type { Item } from "./items";
import { KeepCase } from "./KeepCase";
import { Meter } from "./Meter";
import { Picture } from "./Picture";
import { Reasons } from "./Reasons";
import { save } from "./report";
import { StressTable } from "./StressTable";
import { VideoDetail } from "./VideoDetail";
import { FINDERS, meaning, percent, TITLES } from "./words";

interface Props {
  item: Item;
  card: Card;
  cases: boolean; // whether the server keeps cases
  onChange: (id: number, change: Partial<Item>) => void;
  onAgain: (item: Item, whole?: boolean) => void;
}

/** One picture or video in detail: verdict, reasons, next steps and stress test. */
export function Detail({ item, card, cases, onChange, onAgain }: Props) {
  const { id, scored, video } = item;
  const change = useCallback((part: Partial<Item>) => onChange(id, part), [id, onChange]);
  const shown = shownOf(item);
  return (
    <article className="detail" aria-labelledby="verdict">
      {video ? (
        <VideoDetail video={video} card={card} whole={item.whole} onWhole={() => onAgain(item, true)} />
      ) : (
        <>
          {!item.isVideo && <Picture item={item} onChoose={(face) => change({ face })} />}
          <div className="verdict">
            <p className="file">{item.file.name}</p>
            {!scored && <Unscored item={item} onAgain={onAgain} />}
            {scored?.verdict === "no face" && <NoFace finder={scored.finder} onWhole={() => onAgain(item, true)} />}
            {shown && <Verdict item={item} shown={shown} card={card} />}
          </div>
          {shown && <Reasons item={item} shown={shown} card={card} onChange={change} />}
          {shown && <StressTable key={shown.key} item={item} shown={shown} model={card.name} onChange={change} />}
          {scored && <FileSays metadata={scored.metadata} />}
          {scored && cases && <KeepCase file={item.file} />}
        </>
      )}
      {(scored || video) && (
        <p className="printed">
          Detector {card.name} ({card.model}), threshold {card.threshold.toFixed(3)}, {new Date().toLocaleString()}. A
          verdict is a hint to look closer, not proof.
        </p>
      )}
    </article>
  );
}

function Verdict({ item, shown, card }: { item: Item; shown: Shown; card: Card }) {
  const { verdict, p_fake, place } = shown;
  const { faces } = item.scored!;
  const first = inReadingOrder(faces).indexOf(worst(faces) ?? 0) + 1;
  return (
    <>
      <h2 id="verdict" className={verdict} role="status">
        <Sign verdict={verdict} />
        <span>
          {faces.length > 1 && `Face ${place}: `}
          {faces.length > 1 ? TITLES[verdict].toLowerCase().replace("ai-", "AI-") : TITLES[verdict]}
        </span>
      </h2>
      <p className="score">
        <strong>{percent(p_fake)}</strong> probability of a fake
      </p>
      <Meter p={p_fake} verdict={verdict} decision={item.decision!} />
      <p>{meaning(verdict, p_fake, card)}</p>
      {faces.length > 1 && (
        <p>
          {faces.length} faces were found and judged one by one. The picture counts as “{item.scored!.verdict}”: that is
          the verdict on its most suspicious face, {first === place ? "this one" : `face ${first}`}.
        </p>
      )}
      {namesGenerator(item.scored!.metadata) && (
        <p>
          <strong>The file itself says that AI made it or a part of it.</strong> The verdict does not count that; see{" "}
          <FileSaysLink>what the file says</FileSaysLink>.
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
  );
}

function NoFace({ finder, onWhole }: { finder: Finder | undefined; onWhole: () => void }) {
  return (
    <>
      <h2 id="verdict" className={nameOf("no face")} role="status">
        <Sign verdict="no face" />
        {TITLES["no face"]}
      </h2>
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

function Unscored({ item, onAgain }: { item: Item; onAgain: (item: Item) => void }) {
  if (item.status === "waiting" || item.status === "working") {
    return (
      <>
        <h2 id="verdict" className="waiting">
          {item.status === "waiting" ? "Waiting its turn …" : "Looking at it …"}
        </h2>
        {item.isVideo && <p>Faces are followed from frame to frame. A long video can take a minute.</p>}
      </>
    );
  }
  const cancelled = item.status === "cancelled";
  return (
    <>
      <h2 id="verdict">{cancelled ? "Cancelled" : `This ${item.isVideo ? "video" : "picture"} could not be checked`}</h2>
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
