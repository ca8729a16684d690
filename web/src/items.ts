/** The pictures and videos on the page, and what is known about each. */

import { useCallback, useEffect, useReducer, useRef } from "react";

import { ApiError, dataUrl, predict, preview, scoreVideo, type Answer, type Decision, type Limits } from "./api";
import type { Explanation, MaybeScores, Scored, Square, Stress, Track, Video } from "./api";
import { closest } from "./faces";
import { remember } from "./history";
import { clock } from "./words";

/** Where a picture comes from that is a frame of a video. */
export interface Origin {
  video: number; // id of the item
  name: string; // of the video
  time: number; // s
  square: Square | null; // the face to show
}

export interface Opinion extends Pick<MaybeScores, "verdict" | "p_fake"> {
  detector: string;
}

export interface Item {
  id: number;
  file: File;
  url: string; // of something that the browser can show; empty for a video
  isVideo: boolean;
  origin?: Origin;
  status: "waiting" | "working" | "done" | "failed" | "cancelled";
  error?: string;
  code?: string; // of the error
  canRetry?: boolean; // the error may be gone the next time
  whole: boolean; // judge the whole picture or frames, because no face was found
  face?: number; // chosen by the user; otherwise the most suspicious
  checked?: number; // when, in ms since 1970
  before?: Opinion; // of the detector chosen before
  decision?: Decision;
  scored?: Scored;
  video?: Video;
  // By face, -1 for the whole picture; a string is the reason why it failed.
  explanations: Record<number, Explanation | string>;
  stress: Record<number, Stress | string>;
}

export const WHOLE = -1;

type Action =
  | { type: "add"; items: Item[]; after?: number }
  | { type: "change"; id: number; change: Partial<Item> }
  | { type: "remove"; id: number }
  | { type: "cancel" }
  | { type: "again"; id: number; whole: boolean }
  | { type: "retry" }
  | { type: "reset" }
  | { type: "clear" };

/** Whether a file has no verdict yet, but may get one. */
export const isLeft = ({ status, canRetry }: Item) => status === "cancelled" || (status === "failed" && canRetry);

const isOpen = ({ status }: Item) => status === "waiting" || status === "working";

type Source = Pick<Item, "id" | "file" | "url" | "isVideo" | "origin" | "before">;

const fresh = ({ id, file, url, isVideo, origin, before }: Source, whole = false): Item => ({
  ...{ id, file, url, isVideo, origin, before, whole },
  status: "waiting",
  explanations: {},
  stress: {},
});

function opinionOf({ decision, scored, video }: Item): Opinion | undefined {
  const found = scored ?? video;
  return found && decision && { detector: decision.model, verdict: found.verdict, p_fake: found.p_fake };
}

function reduce(items: Item[], action: Action): Item[] {
  switch (action.type) {
    case "add": {
      const place = items.findIndex(({ id }) => id === action.after) + 1 || items.length;
      return [...items.slice(0, place), ...action.items, ...items.slice(place)];
    }
    case "change":
      return items.map((item) => (item.id === action.id ? { ...item, ...action.change } : item));
    case "remove":
      return items.filter((item) => item.id !== action.id);
    case "cancel":
      return items.map((item) => (isOpen(item) ? { ...item, status: "cancelled" } : item));
    case "again":
      return items.map((item) => (item.id === action.id ? fresh(item, action.whole) : item));
    case "retry":
      return items.map((item) => (isLeft(item) ? fresh(item, item.whole) : item));
    case "reset":
      return items.map((item) => fresh({ ...item, before: opinionOf(item) ?? item.before }));
    case "clear":
      return [];
  }
}

const AT_ONCE = 3; // open requests of one page
const VIDEO_NAME = /\.(mp4|m4v|mov|webm|mkv|avi|mpe?g|m2?ts|wmv|flv|3gp|ogv)$/i;
let nextId = 1;

export const isVideo = (file: File) => file.type.startsWith("video/") || VIDEO_NAME.test(file.name);

export const reasonOf = (error: unknown) =>
  error instanceof ApiError ? error.message : "Something went wrong in the browser.";

/** Whether the server was busy or out of reach, rather than the file bad. */
const mayPass = (error: unknown) => !(error instanceof ApiError) || ![413, 415, 422].includes(error.status);

export const verdictOf = (item: Item): Answer | undefined => (item.scored ?? item.video)?.verdict;

function tooLarge(item: Item, limits: Limits): string | undefined {
  const most = item.isVideo ? limits.max_video_mb : limits.max_mb;
  return item.file.size > most * 1e6 ? `This file is larger than ${most} MB.` : undefined;
}

async function score(item: Item, model: string, signal: AbortSignal): Promise<Partial<Item>> {
  const question = { file: item.file, model, whole: item.whole };
  if (item.isVideo) {
    const video = await scoreVideo(question, signal);
    return { decision: video, video };
  }
  const prediction = await predict(question, signal);
  const scored = prediction.images[0]!;
  return { decision: prediction, scored, face: closest(scored.faces, item.origin?.square ?? null) };
}

/** Pictures and videos, and the queue that scores them with a detector. */
export function useItems(model: string | undefined, limits: Limits | undefined) {
  const [items, dispatch] = useReducer(reduce, []);
  const open = useRef(new Map<number, AbortController>());

  const change = useCallback((id: number, change: Partial<Item>) => dispatch({ type: "change", id, change }), []);

  const add = useCallback((files: File[]) => {
    const added = files.map((file): Item => {
      const video = isVideo(file);
      return fresh({ id: nextId++, file, url: video ? "" : URL.createObjectURL(file), isVideo: video });
    });
    dispatch({ type: "add", items: added });
    return added[0]?.id;
  }, []);

  /** Put a frame of a video beside it as a picture, once; returns its id. */
  const addFrame = useCallback((video: Item, picture: Blob, { face }: Track, time: number) => {
    const name = video.file.name;
    const origin = { video: video.id, name, time, square: face };
    const known = items.find((item) => JSON.stringify(item.origin) === JSON.stringify(origin));
    if (known) return known.id;
    const file = new File([picture], `${clock(time)} of ${name}`, { type: picture.type });
    const source = { id: nextId++, file, url: URL.createObjectURL(file), isVideo: false };
    dispatch({ type: "add", items: [fresh({ ...source, origin }, video.whole)], after: video.id });
    return source.id;
  }, [items]);

  const stop = useCallback((id?: number) => {
    for (const [key, controller] of open.current) if (id === undefined || id === key) controller.abort();
  }, []);

  const remove = useCallback(
    (item: Item) => {
      stop(item.id);
      URL.revokeObjectURL(item.url);
      dispatch({ type: "remove", id: item.id });
    },
    [stop],
  );

  const clear = useCallback(() => {
    stop();
    items.forEach((item) => URL.revokeObjectURL(item.url));
    dispatch({ type: "clear" });
  }, [items, stop]);

  const cancel = useCallback(() => {
    stop();
    dispatch({ type: "cancel" });
  }, [stop]);

  const resume = useCallback(() => dispatch({ type: "retry" }), []);

  const again = useCallback(({ id, whole: before }: Item, whole = before) => dispatch({ type: "again", id, whole }), []);

  /** Fetch a picture that the browser can show instead of this one, such as a HEIC. */
  const substitute = useCallback(
    (item: Item) => {
      change(item.id, { url: "" });
      preview(item.file)
        .then((blob) => change(item.id, { url: URL.createObjectURL(blob) }))
        .catch(() => {}); // there is none of a broken file
    },
    [change],
  );

  useEffect(() => {
    stop();
    dispatch({ type: "reset" });
  }, [model, stop]);

  useEffect(() => {
    if (!model || !limits) return;
    const working = items.filter((item) => item.status === "working").length;
    for (const item of items.filter((one) => one.status === "waiting").slice(0, Math.max(0, AT_ONCE - working))) {
      const error = tooLarge(item, limits);
      if (error) {
        change(item.id, { status: "failed", error, code: "too_many_bytes" });
        continue;
      }
      const controller = new AbortController();
      const { signal } = controller;
      open.current.set(item.id, controller);
      change(item.id, { status: "working" });
      score(item, model, signal)
        .then((found) => {
          if (signal.aborted) return;
          change(item.id, { status: "done", checked: Date.now(), ...found });
          const still = found.video?.tracks[0]?.picture;
          void remember(item, still ? dataUrl(still) : item.url, (found.scored ?? found.video)!, model);
        })
        .catch((error) => {
          if (signal.aborted) return;
          const code = error instanceof ApiError ? error.code : "";
          change(item.id, { status: "failed", error: reasonOf(error), code, canRetry: mayPass(error) });
        })
        .finally(() => open.current.get(item.id) === controller && open.current.delete(item.id));
    }
  }, [items, model, limits, change]);

  return { items, add, addFrame, remove, clear, change, cancel, resume, again, substitute };
}
