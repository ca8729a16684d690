/** Texts for numbers and verdicts. */

import type { Card, Verdict } from "./api";

export const VERDICTS: Verdict[] = ["fake", "unsure", "real"];

export const TITLES: Record<Verdict, string> = {
  real: "Looks like a real photograph",
  fake: "Looks AI-made or manipulated",
  unsure: "Cannot tell",
};

/** What searches the face in a picture. */
export const FINDERS = { yunet: "YuNet", cascade: "a simple cascade" };

/** A probability that is never shown as certain. */
export function percent(p: number): string {
  if (p > 0.99) return "over 99 %";
  if (p < 0.01) return "under 1 %";
  return `${Math.round(100 * p)} %`;
}

/** A plain share, as of test images. */
export const share = (p: number | null) => (p === null ? "–" : `${(100 * p).toFixed(1)} %`);

export function meaning(verdict: Verdict, p: number, card: Card | undefined): string {
  const calibrated = card?.calibrated
    ? `Among pictures like the detector's validation images with a similar score, ${chance(p)} are fakes.`
    : "This detector's scores are not calibrated, so use the number to rank pictures, not as a probability.";
  const advice: Record<Verdict, string> = {
    real: "Finding no traces does not prove that there are none: new generators leave traces that the detector has never seen.",
    fake: "Look closer before you act on it: filters, heavy retouching and strong compression can also cause this verdict.",
    unsure: "In this range of scores the detector made too many mistakes on its validation images, so it gives no verdict.",
  };
  return `${calibrated} ${advice[verdict]}`;
}

function chance(p: number): string {
  if (p > 0.99) return "more than 99 in 100";
  if (p < 0.01) return "fewer than 1 in 100";
  return `about ${Math.round(100 * p)} in 100`;
}

export function sees(card: Card): string {
  const { mode, size, resize_to } = card.geometry;
  if (mode === "face") return `the largest face with its surroundings, scaled to ${size} × ${size} pixels`;
  if (mode === "resize") return `the whole picture, scaled to ${size} × ${size} pixels`;
  const centre = `the ${size} × ${size} pixels in the middle`;
  return resize_to ? `${centre}, after scaling the shorter side to ${resize_to}` : `${centre}, at full resolution`;
}
