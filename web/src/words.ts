/** Texts for numbers and verdicts. */

import type { Answer, Card, Finder, Limits, SourceRow, Verdict } from "./api";

export const ANSWERS: Answer[] = ["fake", "unsure", "real", "no face"];

const TITLES: Record<Answer, string> = {
  real: "Looks like a real photograph",
  fake: "Looks AI-made or manipulated",
  unsure: "Cannot tell",
  "no face": "No face found",
};

const CLEARLY_REAL = 0.25; // p_fake

/** The verdict as a heading; a high score that still counts as real is not called a real photograph. */
export function titleOf(verdict: Answer, p: number | null, isFilm: boolean): string {
  if (verdict === "real" && p !== null && p >= CLEARLY_REAL) return "No clear traces of a fake";
  return isFilm ? TITLES[verdict].replace("photograph", "recording") : TITLES[verdict];
}

/** What searches faces. */
export const FINDERS: Record<Finder, string> = { yunet: "the face finder YuNet", cascade: "a simple face finder" };

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
    ? `Among the pictures that its scores were calibrated on, ${chance(p)} with such a score are fakes.`
    : "This detector's scores are not calibrated, so use the number to rank pictures, not as a probability.";
  const advice: Record<Verdict, string> = {
    real: "Finding no traces does not prove that there are none: new generators leave traces that the detector has never seen.",
    fake: "Look closer before you act on it: filters, heavy retouching and strong compression can also cause this verdict.",
    unsure: "With scores in this range the detector was wrong too often, so it gives no verdict.",
  };
  return `${calibrated} ${advice[verdict]}`;
}

function chance(p: number): string {
  if (p > 0.99) return "more than 99 in 100";
  if (p < 0.01) return "fewer than 1 in 100";
  return `about ${Math.round(100 * p)} in 100`;
}

/** The scores below which the detector says real, and from which on fake. */
export const band = ({ threshold, unsure }: Pick<Card, "threshold" | "unsure">) => unsure ?? [threshold, threshold];

/** From which score on the detector says fake, and below which real. */
export function limits(card: Card): string {
  const [low, high] = band(card);
  return `fake from ${percent(high)}, real below ${percent(low)}`;
}

export function sees(card: Card): string {
  const { mode, size, resize_to } = card.geometry;
  if (mode === "face") return `each face with a little around it, scaled to ${size} × ${size} pixels`;
  if (mode === "resize") return `the whole picture, scaled to ${size} × ${size} pixels`;
  const centre = `the ${size} × ${size} pixels in the middle`;
  return resize_to ? `${centre}, after scaling the shorter side to ${resize_to}` : `${centre}, at full resolution`;
}

/** Time for one face in words. */
export function duration(seconds: number): string {
  if (seconds < 0.05) return "under 0.1 s";
  return `about ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
}

/** A time in a video, such as 1:05. */
export const clock = (seconds: number) =>
  `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** Why scores of frames mean less than those of photographs. */
export const OF_FRAMES =
  "Videos are compressed more than photographs, and the frames are judged one by one: the detector does not look at " +
  "movement or sound.";

/** What may be uploaded: a sentence on pictures and one on videos. */
export const accepted = (limits: Limits): string[] => [
  `Pictures: JPEG, PNG, WebP, AVIF, HEIC, GIF or BMP, up to ${limits.max_mb} MB and ${limits.max_pixels / 1e6} megapixels.`,
  `Videos: MP4, MOV, WebM, MKV or AVI, up to ${limits.max_video_mb} MB; at most ${limits.max_video_frames} frames are looked at, spread evenly over the video.`,
];

function range(values: number[]): string {
  const [low, high] = [Math.min(...values), Math.max(...values)].map((value) => Math.round(100 * value));
  return low === high ? `${low} %` : `${low} to ${high} %`;
}

/** How often the detector is right on pictures whose source it does not know, as those of a visitor. */
export function howSure(sources: SourceRow[], what: "picture" | "video" = "picture"): string {
  const unseen = sources.filter((row) => !row.seen);
  const rows = unseen.length ? unseen : sources;
  const alarms = rows.map((row) => row.real_called_fake).filter((value) => value !== null);
  const found = rows.map((row) => row.fake_found).filter((value) => value !== null);
  const parts = [
    ...(alarms.length ? [`called ${range(alarms)} of the real photographs fake`] : []),
    ...(found.length ? [`found ${range(found)} of the fakes`] : []),
  ];
  if (!parts.length) return `This detector comes without test results, so no one can say how often it is right on a ${what} like yours.`;
  const where = unseen.length
    ? `We cannot know where your ${what} comes from. In tests on sources left out of training, it`
    : "It was only tested on the sources that it was trained on. There it";
  const rest = unseen.length ? "" : ` Expect more mistakes on your ${what}.`;
  return `${where} ${parts.join(" and ")}, depending on the source.${rest}`;
}
