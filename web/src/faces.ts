/** The faces of a picture in reading order, and the one that is shown. */

import type { Face, Scores, Square } from "./api";
import { WHOLE, type Item } from "./items";

const SAME_ROW = 0.6; // of the side of a face, between the middles of two faces

/** Indexes of the faces, row by row from left to right. */
export function inReadingOrder(faces: Face[]): number[] {
  const middle = (index: number) => faces[index]!.top + faces[index]!.side / 2;
  const down = faces.map((_, index) => index).sort((a, b) => middle(a) - middle(b));
  const rows: number[][] = [];
  for (const index of down) {
    const row = rows.at(-1);
    const first = row?.[0];
    if (row && first !== undefined && middle(index) - middle(first) < SAME_ROW * faces[first]!.side) row.push(index);
    else rows.push([index]);
  }
  return rows.flatMap((row) => row.sort((a, b) => faces[a]!.left - faces[b]!.left));
}

/** Index of the most suspicious face; undefined if there is none. */
export function worst(faces: Face[]): number | undefined {
  const logits = faces.map(({ logit }) => logit);
  return faces.length ? logits.indexOf(Math.max(...logits)) : undefined;
}

/** Index of the face that is closest to a square; undefined without any. */
export function closest(faces: Face[], square: Square | null): number | undefined {
  if (!square || !faces.length) return undefined;
  const distances = faces.map(({ left, top }) => Math.hypot(left - square.left, top - square.top));
  return distances.indexOf(Math.min(...distances));
}

/** What the page tells about a picture: the scores of the chosen face, or of the whole picture. */
export interface Shown extends Scores {
  face?: Face;
  key: number; // index of the face, or WHOLE
  place: number; // of the face in reading order, from 1; 0 for the whole picture
}

export function shownOf({ scored, face }: Item): Shown | undefined {
  if (!scored) return undefined;
  const key = face ?? worst(scored.faces);
  const chosen = key === undefined ? undefined : scored.faces[key];
  if (key !== undefined && chosen) {
    const { p_fake, verdict, logit } = chosen;
    return { p_fake, verdict, logit, face: chosen, key, place: inReadingOrder(scored.faces).indexOf(key) + 1 };
  }
  const { p_fake, verdict, logit } = scored;
  if (p_fake === null || logit === null || verdict === "no face") return undefined;
  return { p_fake, verdict, logit, key: WHOLE, place: 0 };
}
