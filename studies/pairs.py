"""Pairs of photographs and the fakes made from them, as data sets: what the studies that make such pairs share.

Both versions of a pair are scaled and saved in the same way, under the same name, so that size and format reveal
nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from datasets.decoding.images import UnreadableImage, read_record
from datasets.listing.records import LABEL_NAMES, Listing, Record, relative_path
from datasets.listing.spec import open_records, parse_spec, read_source
from datasets.listing.splits import hold_out
from datasets.transforms import resize_to
from utils.errors import UserError
from utils.files import atomic_write_bytes, read_json, write_json

QUALITY = 92  # of JPEG: near that of photographs from cameras
LONGER_SIDE = 320  # px


@dataclass(frozen=True)
class Pair:
    """A real image and the files made from it."""

    record: Record
    real: Path
    fake: Path


def open_sources(specs: Sequence[str]) -> dict[str, dict[str, Listing]]:
    """The listings to make pairs of by name of the source and split, real images only.

    A source without a validation split is divided as train.py divides it.

    Raises:
        UserError: a spec is wrong, or has no real training images; two sources have one name.
    """
    sources: dict[str, dict[str, Listing]] = {}
    for text in specs:
        spec = parse_spec(text).replace(repeat=None)
        if "split" in spec.options:
            raise UserError(f"expected --data without split=, got {text!r}; both train and valid are used")
        source = read_source(spec)
        splits = open_records(spec, source=source).splits
        if splits and "train" not in splits:
            raise UserError(f"expected a train split in {text!r}, found {', '.join(splits)} only")
        train = open_records(spec, "train" if splits else "all", source)
        valid = open_records(spec, "valid", source) if "valid" in splits else None
        parts = (train, valid) if valid else hold_out(train)
        reals = {split: only_real(part) for split, part in zip(("train", "valid"), parts, strict=True)}
        if not reals["train"].records:
            raise UserError(f"expected real images in {text!r} to make fakes of, found none for training")
        if train.name in sources:
            raise UserError(f"expected sources of different names, got two named {train.name!r}; rename a folder")
        sources[train.name] = reals
    return sources


def only_real(listing: Listing) -> Listing:
    """The same listing without fakes."""
    return replace(listing, records=[record for record in listing.records if record.label == 0])


def prepare_folder(folder: Path, plan_file: str, plan: dict) -> None:
    """Note in a hidden file what a folder will hold. Raises UserError if it holds something else."""
    file = folder / plan_file
    known = read_json(file, "the plan of this folder") if file.is_file() else None
    if known != plan and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"expected {folder} to be empty, or to hold fakes made from the same images with the same flags, got "
            "others; delete the folder or choose another --output-dir"
        )
    write_json(file, plan)


def list_pairs(folder: Path, listing: Listing) -> list[Pair]:
    """The pairs of a split; their names depend only on where the image lies in its data set."""
    pairs = []
    for record in listing.records:
        path = relative_path(record.path, listing.root)
        digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        real, fake = (folder / label / f"{digest}-{Path(path).stem[:40]}.jpg" for label in LABEL_NAMES)
        pairs.append(Pair(record, real, fake))
    return pairs


def is_done(pair: Pair) -> bool:
    """Whether both files exist; each is written as a whole or not at all."""
    return pair.real.exists() and pair.fake.exists()


def report_pairs(folder: Path, pairs: dict[str, list[Pair]]) -> dict[str, int]:
    """Print and return how many pairs of each split a folder holds."""
    counts = {split: sum(map(is_done, part)) for split, part in pairs.items()}
    print(f"{folder}: {', '.join(f'{n:,} {split}' for split, n in counts.items())} pairs")
    return counts


def report_lines(word: str, lines: Iterable[str]) -> None:
    """Print a line for each image that was not used."""
    for line in lines:
        print(f"{word}: {line}")


def read_reduced(record: Record, longer_side: int) -> np.ndarray | str:
    """An image ``(H, W, 3)`` uint8 RGB with sides of at most ``longer_side`` px, or why it cannot be read."""
    try:
        image = read_record(record)
    except UnreadableImage as error:
        return str(error)
    scale = min(1.0, longer_side / max(image.shape[:2]))
    return resize_to(image, *(max(1, round(side * scale)) for side in image.shape[:2]))


def write_pair(pair: Pair, real: np.ndarray, fake: np.ndarray) -> None:
    """Save both versions with the same settings."""
    for file, image in ((pair.fake, fake), (pair.real, real)):
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        atomic_write_bytes(file, cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
