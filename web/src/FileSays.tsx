import { Fragment, type ReactNode } from "react";

import type { Finding } from "./api";

const GROUPS: Record<Finding["what"], string> = {
  generator: "Generator",
  "source type": "Source type",
  "content credentials": "Content Credentials",
  software: "Software",
  camera: "Camera",
};

const GENERATED = /generat|synthetic/;

/** Whether a file says that a generator made it, or a part of it. */
export const namesGenerator = (metadata: Finding[]) =>
  metadata.some(({ what, value }) => what === "generator" || (what === "source type" && GENERATED.test(value)));

const ID = "file-says";

/** A link that opens what the file says. */
export function FileSaysLink({ children }: { children: ReactNode }) {
  return (
    <a href={`#${ID}`} onClick={() => document.getElementById(ID)?.setAttribute("open", "")}>
      {children}
    </a>
  );
}

/** What the file says about its origin; evidence apart from the verdict. */
export function FileSays({ metadata }: { metadata: Finding[] }) {
  return (
    <details className="panel file-says" id={ID} open={namesGenerator(metadata)}>
      <summary>What the file says</summary>
      <p>
        Anyone can write or remove these statements. They are not verified and have no part in the verdict. Services
        that share pictures remove most of them, so their absence means nothing.
      </p>
      <dl>
        {metadata.map(({ what, value, where }) => (
          <Fragment key={what + value + where}>
            <dt>{GROUPS[what]}</dt>
            <dd>
              {value} ({where})
            </dd>
          </Fragment>
        ))}
      </dl>
    </details>
  );
}
