import type { Face } from "./api";
import { Sign } from "./Chip";
import { inReadingOrder, shownOf } from "./faces";
import type { Item } from "./items";
import { percent } from "./words";

const TALLEST = 34; // rem

/** The shape of a picture, so that the layout does not shift when layers load; at most as tall as the screen. */
export const frame = (aspect: number) => ({
  aspectRatio: aspect,
  width: `min(100%, ${(TALLEST * aspect).toFixed(1)}rem)`,
});

/** The picture and its faces, of which one can be chosen. */
export function Picture({ item, onChoose }: { item: Item; onChoose: (face: number) => void }) {
  const { scored, url, file } = item;
  const chosen = shownOf(item)?.key;
  const order = inReadingOrder(scored?.faces ?? []);
  const many = order.length > 1;
  return (
    <figure className="picture-frame">
      <div className="stack" style={scored && frame(scored.width / scored.height)}>
        {item.status === "failed" || !url ? (
          <div className="no-picture" aria-hidden="true">
            ?
          </div>
        ) : (
          <img src={url} alt={file.name} />
        )}
        {scored && order.length > 0 && (
          <fieldset className="faces">
            <legend className="unseen">{many ? "Choose a face" : "The face"}</legend>
            {order.map((index, place) => (
              <Box
                key={index}
                face={scored.faces[index]!}
                size={scored}
                label={many ? `Face ${place + 1} of ${order.length}` : "Face"}
                number={many ? place + 1 : undefined}
                group={`face of ${item.id}`}
                chosen={index === chosen}
                onChoose={() => onChoose(index)}
              />
            ))}
          </fieldset>
        )}
      </div>
      {many && (
        <figcaption>
          <p>
            <span className="on-screen">Select a face to see why.</span> Any face without a box was missed and not
            judged.
          </p>
        </figcaption>
      )}
    </figure>
  );
}

interface BoxProps {
  face: Face;
  size: { width: number; height: number };
  label: string;
  number: number | undefined; // none if there is one face only
  group: string;
  chosen: boolean;
  onChoose: () => void;
}

/** A face in the picture: a radio button, so that arrow keys and screen readers work as usual. */
function Box({ face, size, label, number, group, chosen, onChoose }: BoxProps) {
  const bottom = Math.min(face.top + face.side, size.height);
  const right = Math.min(face.left + face.side, size.width);
  const part = (value: number, whole: number) => `${((100 * value) / whole).toFixed(3)}%`;
  const side = right > 0.98 * size.width && face.left > 0.5 * size.width ? "end" : "";
  const tag = face.top > 0.08 * size.height ? "above" : bottom < 0.92 * size.height ? "below" : "inside";
  return (
    <label
      className={`face ${face.verdict}${chosen ? " chosen" : ""}`}
      style={{
        left: part(face.left, size.width),
        top: part(face.top, size.height),
        width: part(right - face.left, size.width),
        height: part(bottom - face.top, size.height),
      }}
    >
      <input
        type="radio"
        className="unseen"
        name={group}
        checked={chosen}
        aria-label={`${label}: ${face.verdict}, ${percent(face.p_fake)} probability of a fake`}
        onChange={onChoose}
      />
      <span className={`tag ${tag} ${side}`} aria-hidden="true">
        {number} <Sign verdict={face.verdict} />
        <span className="tag-words">
          {face.verdict} · {percent(face.p_fake)}
        </span>
      </span>
    </label>
  );
}
