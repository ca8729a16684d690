/** Export of results. */

import type { Stress } from "./api";
import type { Item } from "./items";

/** Download the results of some pictures as JSON, without the pictures. */
export function save(items: Item[]) {
  const report = {
    written: new Date().toISOString(),
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

function describe({ file, status, error, decision, scored, video, stress }: Item) {
  const tests = Object.entries(stress).filter(([, found]) => typeof found === "object");
  return {
    ...(decision && { detector: decision.model, threshold: decision.threshold, unsure: decision.unsure }),
    ...scored,
    ...(video && { ...video, tracks: video.tracks.map(({ picture: _, ...track }) => track) }),
    name: file.name,
    ...(!scored && !video && { error: error ?? status }),
    ...(tests.length > 0 && { stress: tests.map(([face, found]) => ({ face: Number(face), ...(found as Stress) })) }),
  };
}
