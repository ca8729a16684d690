/** Earlier verdicts, kept in this browser only. */

import { useSyncExternalStore } from "react";

import type { Answer, MaybeScores } from "./api";
import type { Item } from "./items";

export interface Past {
  time: number;
  name: string;
  model: string;
  verdict: Answer;
  p_fake: number | null;
  thumbnail: string;
}

const KEY = "history";
export const KEPT = 40; // verdicts
const SIDE = 72;
const listeners = new Set<() => void>();

let past: Past[] = read();

function read(): Past[] {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

function write(entries: Past[]) {
  past = entries;
  try {
    localStorage.setItem(KEY, JSON.stringify(entries));
  } catch {
    // Storage is full or disabled: the list lasts until the page is closed.
  }
  listeners.forEach((listener) => listener());
}

/** Add a verdict; `url` is of a picture that stands for the file. */
export async function remember({ file }: Item, url: string, { verdict, p_fake }: MaybeScores, model: string) {
  const thumbnail = await shrink(url).catch(() => "");
  write([{ time: Date.now(), name: file.name, model, verdict, p_fake, thumbnail }, ...past].slice(0, KEPT));
}

async function shrink(url: string): Promise<string> {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const scale = Math.max(SIDE / image.naturalWidth, SIDE / image.naturalHeight);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  canvas.getContext("2d")!.drawImage(image, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
  return canvas.toDataURL("image/jpeg", 0.7);
}

export const forget = () => write([]);

export function useHistory(): Past[] {
  return useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => past,
  );
}
