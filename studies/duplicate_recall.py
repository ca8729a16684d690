"""Measure the recall of the duplicate search: plant copies of known images in a dataset and count those found.

  python -m studies.duplicate_recall --data ../shared/data/faces140k ../shared/data/openforensics

Each of n images is planted once per kind: saved at JPEG quality 50, halved, mirrored, cropped by 5 % of one side at a
random border, mirrored and cropped, cropped by 2 to 8 % on every side. A false pair joins a copy to an image that is
neither its source nor paired with its source. Pairs with the other label are counted separately: the image may be a
forgery of the source.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.decoding.images import read_image
from utils.args import add_seed, command_line, int_in, make_parser, run_script
from utils.audit.duplicates import Pair, find_duplicates
from utils.audit.image_facts import ImageFacts, image_facts, read_facts
from utils.audit.records import open_entries
from utils.errors import UserError
from utils.files import write_json
from utils.runtime import run_facts

KINDS = ("jpeg50", "half size", "mirrored", "crop 5 % of one side", "mirrored and cropped", "crop 2 to 8 % all round")


def crop_one_side(image: np.ndarray, rng: np.random.Generator, share: float = 0.05) -> np.ndarray:
    """Remove a share of the height or width at one of the four borders."""
    rows, columns = round(image.shape[0] * share), round(image.shape[1] * share)
    border = rng.integers(4)
    return (image[rows:], image[:-rows], image[:, columns:], image[:, :-columns])[border]


def plant(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return the pixels of a copy of a kind and the JPEG quality to save it with."""
    height, width = image.shape[:2]
    if kind == "jpeg50":
        return image, 50
    if kind == "half size":
        return cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA), 90
    if kind == "mirrored":
        return image[:, ::-1], 90
    if kind == "crop 5 % of one side":
        return crop_one_side(image, rng), 90
    if kind == "mirrored and cropped":
        return crop_one_side(image, rng)[:, ::-1], 75
    top, bottom, left, right = rng.uniform(0.02, 0.08, 4)
    return image[int(top * height) : height - int(bottom * height), int(left * width) : width - int(right * width)], 75


def facts_of_copy(image: np.ndarray, quality: int, folder: str) -> ImageFacts:
    """Save a copy as JPEG and read its facts as the audit does."""
    path = Path(folder) / "copy.jpg"
    pixels = np.ascontiguousarray(image[:, :, ::-1])
    path.write_bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
    return image_facts(str(path))


def related(pairs: list[Pair], n: int) -> list[set[int]]:
    """For each image of the set, itself and its own copies in the set."""
    groups = [{at} for at in range(n)]
    for pair in pairs:
        groups[pair.first].add(pair.second)
        groups[pair.second].add(pair.first)
    return groups


def main(argv: Sequence[str] | None = None) -> dict:
    """Plant, search, and write the results file."""
    parser = make_parser(__doc__, "python -m studies.duplicate_recall")
    parser.add_argument("--data", nargs="+", required=True, metavar="SPEC")
    parser.add_argument("--n", type=int_in(1), default=200, help="images to copy (default: 200)")
    parser.add_argument("--workers", type=int_in(1), help="processes that read images")
    parser.add_argument("--output", default="results/audit/duplicate_recall.json")
    add_seed(parser)
    args = parser.parse_args(argv)
    entries = open_entries(args.data)
    if len(entries) < args.n:
        raise UserError(f"expected at least --n {args.n} images in --data, got {len(entries)}; lower --n")
    facts_of_all = read_facts([entry.path for entry in entries], args.workers)
    n = len(facts_of_all)
    own = find_duplicates(facts_of_all).pairs
    groups = related(own, n)
    rng = np.random.default_rng(args.seed)
    sources = rng.choice([at for at, fact in enumerate(facts_of_all) if not fact.error], args.n, replace=False)
    copies: dict[str, list[ImageFacts]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for source in sources:
            image = read_image(entries[source].path)
            for kind in KINDS:
                copies[kind].append(facts_of_copy(*plant(image, kind, rng), folder))
    rows = []
    for kind in KINDS:  # one kind at a time, or one copy would be found through another
        pairs = [pair for pair in find_duplicates([*facts_of_all, *copies[kind]]).pairs if pair.second >= n]
        hits = {pair.second for pair in pairs if pair.first == sources[pair.second - n]}
        others = [
            (pair.first, sources[pair.second - n])
            for pair in pairs
            if pair.first < n and pair.first not in groups[sources[pair.second - n]]
        ]
        between_copies = sum(pair.first >= n for pair in pairs)
        same_label = sum(entries[first].label == entries[source].label for first, source in others)
        false = same_label + between_copies
        row = {"kind": kind, "recall": len(hits) / args.n, "n": args.n, "false_pairs": false}
        rows.append(row | {"other_label_pairs": len(others) - same_label})
        print(
            f"{kind}: recall {row['recall']:.3f} (n = {args.n}), {false} false pairs, "
            f"{rows[-1]['other_label_pairs']} with the other label"
        )
    facts = run_facts(command_line("-m studies.duplicate_recall", argv))
    facts |= {"seed": args.seed, "n_images": n, "pairs_without_copies": len(own)}
    write_json(args.output, {**facts, "rows": rows})
    return {**facts, "rows": rows}


if __name__ == "__main__":
    run_script(main)
