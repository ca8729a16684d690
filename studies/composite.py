"""Paste parts of faces into other photographs: fakes such as retouchers and face swaps make.

  python -m studies.composite --data data/140k data/wild --face-detector yunet.onnx

Each spec becomes a data set in --output-dir, {train,valid}/{real,fake}, for use with every script. `fake` holds
composites of the real training and validation images: the eyes, nose, mouth or face of another photograph of the same
split, or of an altered copy, aligned, matched in colour and blended (datasets/composites.py). `real` holds the same
photographs under the same names, scaled and saved in the same way. With --variants 3, each photograph gets three
composites. Fakes of the source are not used. A source without a validation split is divided as train.py divides it, so
that no validation image is trained on.

Photographs are reduced to at most 320 px and saved as JPEG of quality 92. Those without a face of at least 22 px
between the eyes are left out and listed. Run the command again to resume after an interruption. The result goes to
stdout:

  data/composites/140k-composites: 49,870 train, 9,975 valid pairs

Exit code 0: all done; 1: some images could not be read or show no such face; 2: bad usage.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.composites import MIN_EYES, SELF_SHARE, Portrait, choose_donor, composite, describe
from datasets.faces.finder import known_yunet
from datasets.faces.landmarks import LandmarkFinder
from datasets.listing.records import Listing
from studies.pairs import (
    LONGER_SIDE,
    QUALITY,
    Pair,
    is_done,
    list_pairs,
    open_sources,
    prepare_folder,
    read_reduced,
    report_lines,
    report_pairs,
    write_pair,
)
from utils.args import add_seed, check_output_dir, exit_code, int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import file_digest, locked

PLAN_FILE = ".composite.json"  # hidden, so that readers of the folder skip it
FORMAT_VERSION = 1  # increase it when the composites change
CANDIDATES = 24  # photographs among which the closest becomes the donor
ATTEMPTS = 4  # to make a composite that differs visibly


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = make_parser(__doc__, "python -m studies.composite")
    parser.add_argument("--data", nargs="+", required=True, metavar="SPEC", help="sources of real images")
    parser.add_argument(
        "--face-detector",
        metavar="FILE",
        help="ONNX file of YuNet, which finds landmarks (default: that of python -m datasets.download yunet)",
    )
    parser.add_argument("--variants", type=int_in(1, 100), default=1, help="composites of each photograph (default: 1)")
    add_seed(parser)
    parser.add_argument("--output-dir", default="data/composites", metavar="DIR", help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Make composites; returns ``{"sets": {folder: {split: pairs}}, "left_out": lines, "exit_code": 0 or 1}``."""
    args = get_args_parser().parse_args(argv)
    file = yunet_file(args.face_detector)
    finder = LandmarkFinder(file)
    sources = open_sources(args.data)
    root = check_output_dir(args.output_dir)
    facts = {"version": FORMAT_VERSION, "seed": args.seed, "variants": args.variants}
    facts |= {"finder": file_digest(file), "quality": QUALITY}
    folders = {source: root / f"{source}-composites" for source in sources}
    for source, parts in sources.items():
        fingerprints = {split: part.fingerprint for split, part in parts.items()}
        prepare_folder(folders[source], PLAN_FILE, facts | fingerprints)

    sets, left_out = {}, []
    for source, parts in sources.items():
        folder = folders[source]
        pairs = {split: list_variants(folder / split, part, args.variants) for split, part in parts.items()}
        with locked(folder):
            for split, part in pairs.items():
                left_out += make_pairs(part, finder, args.seed, f"{source} {split}")
        sets[str(folder)] = report_pairs(folder, {split: list(chain(*part)) for split, part in pairs.items()})
    report_lines("left out", left_out)
    return {"sets": sets, "left_out": left_out, "exit_code": exit_code(len(left_out))}


def yunet_file(file: str | None) -> str:
    """The file of YuNet. Raises UserError if there is none; the bundled cascade finds no landmarks."""
    chosen = known_yunet(file)
    if not chosen:
        raise UserError(
            "expected a YuNet file, which finds the landmarks of faces, found none; fetch it with: "
            "python -m datasets.download yunet, or name one with --face-detector"
        )
    return chosen


def list_variants(folder: Path, listing: Listing, count: int) -> list[list[Pair]]:
    """The pairs of a split with the first composites of all photographs, then those with the second, and so on."""
    pairs = list_pairs(folder, listing)
    return [pairs] + [
        [replace(pair, fake=pair.fake.with_stem(f"{pair.fake.stem}-{number}")) for pair in pairs]
        for number in range(1, count)
    ]


def make_pairs(variants: Sequence[Sequence[Pair]], finder: LandmarkFinder, seed: int, name: str) -> list[str]:
    """Write the pairs that are missing; returns a line for each image that has none, or fewer than the others.

    Every pair is drawn from a generator that depends only on the seed, its variant and the name of its file.
    """
    if all(is_done(pair) for pairs in variants for pair in pairs):
        return []
    photographs = variants[0]

    def look(pair: Pair) -> Portrait | str:
        image = read_reduced(pair.record, LONGER_SIDE)
        if isinstance(image, str):
            return image
        return describe(image, finder(image)) or f"no face with {MIN_EYES:.0f} px between its eyes"

    def make(job: tuple[int, int]) -> str | None:
        number, index = job
        rng = np.random.default_rng([seed + number, *photographs[index].fake.name.encode()[:12]])
        return make_pair(index, variants[number], portraits, rng)

    with ThreadPoolExecutor() as pool:
        looks = pool.map(look, photographs)
        found = list(tqdm(looks, f"{name}: faces", len(photographs), unit="img", disable=None))
        portraits = {index: each for index, each in enumerate(found) if isinstance(each, Portrait)}
        todo = [
            (number, index) for number, pairs in enumerate(variants) for index in portraits if not is_done(pairs[index])
        ]
        made = list(tqdm(pool.map(make, todo), f"{name}: composites", len(todo), unit="img", disable=None))
    reasons = {index: each for index, each in enumerate(found) if isinstance(each, str)}
    reasons |= {index: reason for (_, index), reason in zip(todo, made, strict=True) if reason}
    return [f"{photographs[index].record.path}: {reason}" for index, reason in sorted(reasons.items())]


def make_pair(
    index: int, pairs: Sequence[Pair], portraits: dict[int, Portrait], rng: np.random.Generator
) -> str | None:
    """Write one pair; returns why not if it could not be made."""
    pair, portrait = pairs[index], portraits[index]
    image = read_reduced(pair.record, LONGER_SIDE)
    if isinstance(image, str):
        return image
    others = [other for other in portraits if other != index]
    for _ in range(ATTEMPTS):
        donor = None
        if others and rng.random() >= SELF_SHARE:
            candidates = rng.choice(others, min(CANDIDATES, len(others)), replace=False)
            chosen = choose_donor(portrait, [portraits[other] for other in candidates])
            if chosen is None:
                continue
            other = candidates[chosen]
            pixels = read_reduced(pairs[other].record, LONGER_SIDE)
            donor = (pixels, portraits[other].landmarks) if isinstance(pixels, np.ndarray) else None
        fake = composite(image, portrait.landmarks, donor, rng)
        if fake is not None:
            write_pair(pair, image, fake)
            return None
    return f"no visible composite in {ATTEMPTS} attempts"


if __name__ == "__main__":
    run_script(main)
