import type { Card } from "./api";
import { FileSaysLink } from "./FileSays";
import type { Shown } from "./faces";
import { HeatMap } from "./HeatMap";
import type { Item } from "./items";
import { FINDERS, howSure, OF_FRAMES, sees } from "./words";

const SEARCHES = [
  ["Google Lens", "https://lens.google.com/"],
  ["TinEye", "https://tineye.com/"],
  ["Bing", "https://www.bing.com/visualsearch"],
] as const;

interface Props {
  item: Item;
  shown: Shown;
  card: Card;
  onChange: (change: Partial<Item>) => void;
}

/** What the detector looked at, how sure it is for such pictures, and what to check next. */
export function Reasons({ item, shown, card, onChange }: Props) {
  const finder = item.scored?.finder;
  return (
    <section className="reasons" aria-label="Reasons and next steps">
      <HeatMap key={shown.key} item={item} shown={shown} model={card.name} onChange={onChange} />
      <div className="texts">
        <h3>What it looked at</h3>
        {shown.face ? (
          <p>
            {shown.place > 0 && item.scored!.faces.length > 1 ? `Face ${shown.place}` : "The face"} with a little around
            it, and nothing else in the picture. It was found by {FINDERS[finder!]}.
            {2 * shown.face.side < card.geometry.size &&
              ` It is small, ${shown.face.side} pixels wide, and was enlarged: trust this verdict less.`}
          </p>
        ) : finder ? (
          <p>
            The whole picture, because {FINDERS[finder]} found no face. The detector was made for faces: trust this
            verdict less.
          </p>
        ) : (
          <p>It looked at {sees(card)}.</p>
        )}
        <h3>How sure it is</h3>
        <p>
          {howSure(card.sources, item.origin && "video")} {item.origin && OF_FRAMES}
        </p>
        <NextSteps video={item.origin !== undefined} />
      </div>
    </section>
  );
}

export function NextSteps({ video = false }: { video?: boolean }) {
  const what = video ? "video" : "picture";
  return (
    <>
      <h3>What to check next</h3>
      <ul>
        <li>
          Search for {video ? "a frame of it" : "the picture"} yourself:{" "}
          {SEARCHES.map(([name, address], index) => (
            <span key={name}>
              {index > 0 && ", "}
              <a href={address} target="_blank" rel="noreferrer">
                {name}
              </a>
            </span>
          ))}
          . An older copy, or the same scene with another face, settles many cases. This page sends nothing to them.
        </li>
        <li>Ask for the original file, straight from the camera or phone. Who published the {what} first, and when?</li>
        {!video && (
          <li>
            Read <FileSaysLink>what the file says</FileSaysLink> about its origin. Anyone can write or remove that.
          </li>
        )}
      </ul>
    </>
  );
}
