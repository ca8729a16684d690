/** The server's API: types as in /api/openapi.json, and one function per request. */

export type Verdict = "real" | "fake" | "unsure";
export type Answer = Verdict | "no face";

export interface Scores {
  p_fake: number;
  verdict: Verdict;
  logit: number;
}

/** Scores of a picture or video; null where no face was found. */
export interface MaybeScores {
  p_fake: number | null;
  verdict: Answer;
  logit: number | null;
}

/** The part of a picture that is judged, in px. */
export interface Square {
  left: number;
  top: number;
  side: number;
}

export interface FaceBox extends Square {
  confidence: number | null;
}

export interface Decision {
  model: string;
  threshold: number;
  unsure: [number, number] | null;
}

/** A statement in the metadata of a file. */
export interface Finding {
  what: "generator" | "source type" | "content credentials" | "software" | "camera";
  value: string;
  where: string;
}

export type Finder = "yunet" | "cascade";
export type Face = FaceBox & Scores;

export interface Scored extends MaybeScores {
  name: string;
  framed?: "face" | "whole";
  finder?: Finder;
  width: number;
  height: number;
  faces: Face[];
  metadata: Finding[];
}

export interface Picture {
  media_type: string;
  width: number;
  height: number;
  base64: string;
}

/** An address that shows a picture of an answer. */
export const dataUrl = ({ media_type, base64 }: Picture) => `data:${media_type};base64,${base64}`;

export interface Explanation extends Decision, Scores {
  name: string;
  face: FaceBox | null;
  view: { left: number; top: number; width: number; height: number }; // px of the picture that the overlay shows
  target: "real" | "fake";
  method: string;
  all_zero: boolean;
  overlay: Picture;
}

export interface Step extends Scores {
  kind: "original" | "jpeg" | "resize" | "screenshot" | "shared";
  level: number | null;
  label: string;
}

export interface Stress extends Decision {
  original: Step;
  steps: Step[];
  held: number;
}

/** A face followed through a video, or the whole frames if no face was found. */
export interface Track extends Scores {
  track: number;
  start_s: number;
  end_s: number;
  frames: number;
  framed?: "face" | "whole";
  points: [seconds: number, p_fake: number][];
  face: Square | null; // in the most suspicious frame
  picture: Picture;
}

export interface Video extends Decision, MaybeScores {
  name: string;
  seconds: number;
  frames: number;
  finder?: Finder;
  tracks: Track[];
}

/** How often the detector was right on test images of a source. */
export interface SourceRow {
  source: string;
  about: string; // what it holds, for readers
  seen: boolean; // in training
  n_real: number;
  n_fake: number;
  real_called_fake: number | null;
  fake_found: number | null;
}

export interface TestRow {
  dataset: string;
  n_real: number | null;
  n_fake: number | null;
  auc: number | null;
  acc: number | null;
  acc_ci: [number, number] | null;
  real_acc: number | null;
  fake_acc: number | null;
}

export interface Card {
  name: string;
  model: string;
  geometry: { mode: "crop" | "resize" | "face"; size: number; resize_to: number | null };
  trained_on: string[];
  tests: TestRow[];
  threshold: number;
  unsure: [number, number] | null;
  calibrated: boolean;
  seconds?: number; // to score a face on this server
  sources: SourceRow[];
}

export interface Limits {
  max_mb: number;
  max_pixels: number;
  max_files: number;
  max_video_mb: number;
  max_video_frames: number;
}

export interface Server {
  models: Card[];
  token_needed: boolean;
  cases?: boolean;
  limits: Limits;
}

export interface Prediction extends Decision {
  images: Scored[];
}

/** An error with a message for people. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly code: string, // as in the answer of the server
    readonly status: number,
    readonly retryAfter: number,
  ) {
    super(message);
  }
}

const RETRIES = 6;
const TOKEN_KEY = "token";

export const setToken = (token: string) => sessionStorage.setItem(TOKEN_KEY, token);

async function send(path: string, body?: FormData, signal?: AbortSignal): Promise<Response> {
  const token = sessionStorage.getItem(TOKEN_KEY);
  const headers: HeadersInit = token ? { Authorization: `Bearer ${token}` } : {};
  let response: Response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached.", "unreachable", 0, 2);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const message = answer?.error?.message ?? `The server answered with error ${response.status}.`;
  const code = answer?.error?.code ?? "";
  throw new ApiError(message, code, response.status, Number(response.headers.get("Retry-After")) || 2);
}

/** Told how many seconds the next attempt will wait for a busy server; 0 when it has been made. */
let onBusy: (seconds: number) => void = () => {};
export const whenBusy = (listener: (seconds: number) => void) => {
  onBusy = listener;
};

async function pause(seconds: number): Promise<void> {
  onBusy(seconds);
  await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  onBusy(0);
}

/** Retry while the server is busy, after the delay that it asks for. */
async function patient(path: string, body?: FormData, signal?: AbortSignal): Promise<Response> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await send(path, body, signal);
    } catch (error) {
      const busy = error instanceof ApiError && (error.status === 503 || error.status === 429);
      if (!busy || attempt === RETRIES) throw error;
      await pause(error.retryAfter);
    }
  }
}

async function ask<T>(path: string, body?: FormData, signal?: AbortSignal): Promise<T> {
  return (await patient(path, body, signal)).json();
}

function form(fields: Record<string, File | string | number | boolean | undefined>): FormData {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof File) body.append(name, value);
    else if (value !== undefined) body.append(name, String(value));
  }
  return body;
}

/** What a request is about: a picture, the detector, and one of the faces or the whole picture. */
export interface Question {
  file: File;
  model: string;
  whole: boolean;
  face?: number;
}

export const getServer = () => ask<Server>("/api/models");

export const predict = ({ file, model, whole }: Question, signal: AbortSignal) =>
  ask<Prediction>("/api/predict", form({ images: file, model, whole }), signal);

export const explain = ({ file, ...rest }: Question, signal: AbortSignal) =>
  ask<Explanation>("/api/explain", form({ image: file, ...rest }), signal);

export const stress = ({ file, ...rest }: Question, signal: AbortSignal) =>
  ask<Stress>("/api/stress", form({ image: file, ...rest }), signal);

export const scoreVideo = ({ file, model, whole }: Question, signal: AbortSignal) =>
  ask<Video>("/api/video", form({ video: file, model, whole }), signal);

/** The frame of a video at a time, as a picture without loss. */
export const frameAt = async (video: File, time: number, signal: AbortSignal): Promise<Blob> =>
  (await patient("/api/frame", form({ video, time }), signal)).blob();

export const keepCase = (file: File, label: "real" | "fake") =>
  ask<{ saved: string }>("/api/cases", form({ image: file, label }));

/** A JPEG of a picture that the browser cannot show. */
export const preview = async (file: File): Promise<Blob> =>
  (await patient("/api/preview", form({ image: file }))).blob();
