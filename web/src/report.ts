/** Export of results. */

import type { Decision, Stress, Video } from "./api";
import type { Item } from "./items";
import { band } from "./words";

/** Download the results of some pictures as JSON, without the pictures. */
export function save(items: Item[]) {
  const report = {
    note: "A verdict is a reason to look closer, not proof.",
    images: items.filter((item) => !item.isVideo).map(describe),
    videos: items.filter((item) => item.isVideo).map(describe),
  };
  const url = URL.createObjectURL(new Blob([JSON.stringify(report, null, 2)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = items.length === 1 ? `${items[0]!.file.name}.json` : "verdicts.json";
  link.click();
  URL.revokeObjectURL(url);
}

function describe({ file, status, checked, error, before, decision, scored, video, stress }: Item) {
  const tests = Object.entries(stress).filter((entry): entry is [string, Stress] => typeof entry[1] === "object");
  return {
    ...(checked && { checked: new Date(checked).toISOString() }),
    ...(decision && madeBy(decision)),
    ...scored,
    ...(video && describeVideo(video)),
    name: file.name,
    ...(before && { before }),
    ...(!scored && !video && { error: error ?? status }),
    ...(tests.length > 0 && {
      stress: tests.map(([face, { original, steps, held }]) => ({ face: Number(face), original, steps, held })),
    }),
  };
}

/** The detector, and the scores that make its verdicts. */
function madeBy(decision: Decision) {
  const [low, high] = band(decision);
  return { detector: decision.model, fake_from: high, real_below: low };
}

/** A video without its pictures and without what `madeBy` says. */
function describeVideo({ model: _, threshold: _threshold, unsure: _unsure, tracks, ...video }: Video) {
  return { ...video, tracks: tracks.map(({ picture: _, ...track }) => track) };
}
