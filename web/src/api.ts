/** The server's API: types as in /api/openapi.json, and one function per request. */

export type Verdict = "real" | "fake" | "unsure";

export interface Scores {
  p_fake: number;
  verdict: Verdict;
  logit: number;
}

export interface FaceBox {
  left: number;
  top: number;
  side: number;
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

export interface Scored extends Scores {
  name: string;
  framed?: "face" | "whole";
  finder?: "yunet" | "cascade";
  width: number;
  height: number;
  faces: (FaceBox & Scores)[];
  metadata: Finding[];
}

export interface Picture {
  media_type: string;
  width: number;
  height: number;
  base64: string;
}

export interface Explanation extends Decision, Scores {
  name: string;
  face: FaceBox | null;
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
}

export interface Server {
  models: Card[];
  faces: boolean;
  token_needed: boolean;
  limits: { max_mb: number; max_pixels: number; max_files: number };
}

export interface Prediction extends Decision {
  images: Scored[];
}

/** An error with a message for people. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly retryAfter: number,
  ) {
    super(message);
  }
}

const RETRIES = 6;
const TOKEN_KEY = "token";

export const setToken = (token: string) => sessionStorage.setItem(TOKEN_KEY, token);

async function request<T>(path: string, body?: FormData): Promise<T> {
  const token = sessionStorage.getItem(TOKEN_KEY);
  let response: Response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      body,
      headers: token ? { Authorization: `Bearer ${token}` } : {},
    });
  } catch {
    throw new ApiError("The server cannot be reached.", 0, 2);
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer as T;
  const message = answer?.error?.message ?? `The server answered with error ${response.status}.`;
  throw new ApiError(message, response.status, Number(response.headers.get("Retry-After")) || 2);
}

const pause = (seconds: number) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** Retry while the server is busy, after the delay that it asks for. */
async function patient<T>(path: string, body?: FormData): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await request<T>(path, body);
    } catch (error) {
      const busy = error instanceof ApiError && (error.status === 503 || error.status === 429);
      if (!busy || attempt === RETRIES) throw error;
      await pause(error.retryAfter);
    }
  }
}

export interface Choice {
  model: string;
  faces: boolean;
}

function form(field: string, file: File, choice: Choice): FormData {
  const body = new FormData();
  body.append(field, file);
  body.append("model", choice.model);
  body.append("faces", String(choice.faces));
  return body;
}

export const getServer = () => patient<Server>("/api/models");
export const predict = (file: File, choice: Choice) =>
  patient<Prediction>("/api/predict", form("images", file, choice));
export const explain = (file: File, choice: Choice) =>
  patient<Explanation>("/api/explain", form("image", file, choice));
export const stress = (file: File, choice: Choice) => patient<Stress>("/api/stress", form("image", file, choice));
