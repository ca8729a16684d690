/** Export of results. */

import type { Item } from "./items";

/** Download the results of some pictures as JSON, without the pictures. */
export function save(items: Item[]) {
  const report = {
    written: new Date().toISOString(),
    note: "A verdict is a hint to look closer, not proof.",
    images: items.map((item) => ({
      name: item.file.name,
      ...(item.error ? { error: item.error } : {}),
      ...(item.prediction && item.scored
        ? {
            detector: item.prediction.model,
            threshold: item.prediction.threshold,
            unsure: item.prediction.unsure,
            ...item.scored,
            name: item.file.name,
          }
        : {}),
      ...(typeof item.stress === "object" ? { stress: item.stress.steps } : {}),
    })),
  };
  const url = URL.createObjectURL(new Blob([JSON.stringify(report, null, 2)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = items.length === 1 ? `${items[0]!.file.name}.json` : "verdicts.json";
  link.click();
  URL.revokeObjectURL(url);
}
