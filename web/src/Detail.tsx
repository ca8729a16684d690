import { useCallback } from "react";

import type { Card } from "./api";
import { shownOf } from "./faces";
import { FileSays } from "./FileSays";
import type { Item } from "./items";
import { KeepCase } from "./KeepCase";
import { Picture } from "./Picture";
import { Reasons } from "./Reasons";
import { StressTable } from "./StressTable";
import { Before, FromVideo, Heading, NoFace, Unscored, Verdict } from "./Verdict";
import { VideoFaces, VideoVerdict, type OnFrame } from "./VideoDetail";
import { limits } from "./words";

interface Props {
  item: Item;
  card: Card;
  cases: boolean; // whether the server keeps cases
  onChange: (id: number, change: Partial<Item>) => void;
  onAgain: (item: Item, whole?: boolean) => void;
  onFrame: OnFrame;
  onBack?: () => void; // to the video that the picture is a frame of
}

/** One picture or video in detail: verdict, reasons, next steps and stress test. */
export function Detail({ item, card, cases, onChange, onAgain, onFrame, onBack }: Props) {
  const { id, scored, video, origin, before, checked } = item;
  const change = useCallback((part: Partial<Item>) => onChange(id, part), [id, onChange]);
  const shown = shownOf(item);
  const choose = (face: number) => change({ face });
  const judgeWhole = () => onAgain(item, true);
  return (
    <article className="detail" aria-labelledby="verdict">
      {!item.isVideo && <Picture item={item} onChoose={choose} />}
      <div className={`verdict${item.isVideo ? " wide" : ""}`}>
        <p className="file">{item.file.name}</p>
        <div role="status">
          <Heading item={item} shown={shown} />
        </div>
        {origin && <FromVideo origin={origin} onBack={onBack} />}
        {!scored && !video && <Unscored item={item} onAgain={onAgain} />}
        {scored?.verdict === "no face" && <NoFace finder={scored.finder} onWhole={judgeWhole} />}
        {shown && <Verdict item={item} shown={shown} card={card} onChoose={choose} />}
        {video && <VideoVerdict video={video} card={card} whole={item.whole} onWhole={judgeWhole} />}
        {!shown && checked && <Before before={before} />}
      </div>
      {shown && <Reasons item={item} shown={shown} card={card} onChange={change} />}
      {shown && <StressTable key={shown.key} item={item} shown={shown} model={card.name} onChange={change} />}
      {video && <VideoFaces item={item} video={video} card={card} onFrame={onFrame} />}
      {scored && !origin && <FileSays metadata={scored.metadata} />}
      {scored && cases && <KeepCase file={item.file} />}
      {checked && (
        <p className="printed">
          Detector {card.name} ({card.model}): {limits(card)}. Checked on {new Date(checked).toLocaleString()}. A verdict
          is a reason to look closer, not proof.
        </p>
      )}
    </article>
  );
}
