/** The pictures on the page and what is known about each. */

import { useCallback, useEffect, useReducer, useRef } from "react";

import { ApiError, predict, type Choice, type Explanation, type Prediction, type Scored, type Stress } from "./api";
import { remember } from "./history";

export interface Item {
  id: number;
  file: File;
  url: string;
  status: "waiting" | "working" | "done" | "failed";
  error?: string;
  prediction?: Prediction;
  scored?: Scored;
  explanation?: Explanation | string; // a string is the reason why it failed
  stress?: Stress | string;
}

type Action =
  | { type: "add"; items: Item[] }
  | { type: "change"; id: number; change: Partial<Item> }
  | { type: "remove"; id: number }
  | { type: "reset" }
  | { type: "clear" };

function reduce(items: Item[], action: Action): Item[] {
  switch (action.type) {
    case "add":
      return [...items, ...action.items];
    case "change":
      return items.map((item) => (item.id === action.id ? { ...item, ...action.change } : item));
    case "remove":
      return items.filter((item) => item.id !== action.id);
    case "reset":
      return items.map(({ id, file, url }) => ({ id, file, url, status: "waiting" }));
    case "clear":
      return [];
  }
}

const AT_ONCE = 3; // open requests of one page
let nextId = 1;

export const reasonOf = (error: unknown) =>
  error instanceof ApiError ? error.message : "Something went wrong in the browser.";

/** Pictures and the queue that scores them. */
export function useItems(choice: Choice | null, maxBytes: number) {
  const [items, dispatch] = useReducer(reduce, []);
  const round = useRef(0); // answers to an earlier round are ignored

  const change = useCallback((id: number, change: Partial<Item>) => dispatch({ type: "change", id, change }), []);

  const add = useCallback((files: File[]) => {
    const added = files.map((file): Item => ({ id: nextId++, file, url: URL.createObjectURL(file), status: "waiting" }));
    dispatch({ type: "add", items: added });
    return added[0]?.id;
  }, []);

  const remove = useCallback((item: Item) => {
    URL.revokeObjectURL(item.url);
    dispatch({ type: "remove", id: item.id });
  }, []);

  const clear = useCallback(() => {
    items.forEach((item) => URL.revokeObjectURL(item.url));
    dispatch({ type: "clear" });
  }, [items]);

  useEffect(() => {
    round.current++;
    dispatch({ type: "reset" });
  }, [choice]);

  useEffect(() => {
    if (!choice) return;
    const open = items.filter((item) => item.status === "working").length;
    const mine = round.current;
    for (const item of items.filter((one) => one.status === "waiting").slice(0, Math.max(0, AT_ONCE - open))) {
      if (item.file.size > maxBytes) {
        change(item.id, { status: "failed", error: `This file is larger than ${maxBytes / 1e6} MB.` });
        continue;
      }
      change(item.id, { status: "working" });
      predict(item.file, choice)
        .then((prediction) => {
          if (mine !== round.current) return;
          const scored = prediction.images[0]!;
          change(item.id, { status: "done", prediction, scored });
          void remember(item.url, scored, prediction.model);
        })
        .catch((error) => {
          if (mine === round.current) change(item.id, { status: "failed", error: reasonOf(error) });
        });
    }
  }, [items, choice, maxBytes, change]);

  return { items, add, remove, clear, change };
}
