"""WebDataset shards: tar files of images, for datasets with more files than a file system handles well.

`wds:FOLDER` or `wds:'faces/train-*.tar'` reads shards written by `python -m datasets.pack`, and others: the image
`KEY.jpg` belongs with `KEY.json` (`label`, `generator`, `group`, `meta`), `KEY.cls` (a class name, or a number with
`@labels=0:real+1:fake`) and `KEY.mask.png` (the mask of a fake); without the first two, its folder in the shard names
the class. The split is the beginning of the name of a shard (`train-00012.tar`) or its folder.

The path of an image is that of its shard followed by its name, `faces/train-00000.tar/000042.jpg`: see
datasets/listing/storage.py. Samplers divide shards over processes and workers image by image. A truncated shard yields
the images before the damage; those after it are unreadable, and are counted where an index lists them.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping
from pathlib import Path

from datasets.listing.records import SPLIT_NAMES, Record, Source
from datasets.listing.storage import PLAN_FILE, open_shard
from utils.errors import UserError, closest_sibling


def read_shards(location: str, labels: Mapping[str, int] | None = None) -> Source:
    """List the images of shards; ``labels`` maps the text of `.cls` members where it is not the name of a class.

    Raises:
        UserError: there are no shards, one cannot be read at all, or an image has no class.
    """
    pattern = os.path.expanduser(location)
    files = [f for f in sorted(glob.glob(pattern)) if f.endswith(".tar")]
    if os.path.isdir(pattern):
        files = sorted(str(file).replace(os.sep, "/") for file in Path(pattern).rglob("*.tar"))
    if not files:
        raise UserError(f"expected .tar shards at {location}, found none{closest_sibling(pattern)}")
    root = pattern if os.path.isdir(pattern) else os.path.dirname(pattern)
    _check_complete(Path(root), {os.path.basename(file) for file in files} if root == pattern else None)
    name = os.path.basename(os.path.abspath(root))
    by_split: dict[str, list[Record]] = {}
    unlabelled: list[str] = []
    for file in files:
        records = by_split.setdefault(_split_of(file, root), [])
        for key, found in open_shard(file, tuple(sorted((labels or {}).items()))).images.items():
            if found.label is None:
                unlabelled.append(f"{file}/{key}")
            generator = "real" if found.label == 0 else found.generator or name
            mask = f"{file}/{found.mask}" if found.mask else None
            records.append(Record(f"{file}/{key}", found.label, generator, mask, found.meta, found.group))
    if unlabelled:
        raise UserError(
            f"expected a class for every image of {location} (KEY.json with a label, KEY.cls with a class name, or "
            f"class folders), got none for {len(unlabelled)}, such as {unlabelled[0]}; numbers need "
            "@labels=0:real+1:fake"
        )
    return Source(name, root.rstrip("/"), by_split)


def _check_complete(folder: Path, names: set[str] | None) -> None:
    """Raise UserError if packing into a folder was interrupted; ``names`` are the shards that were found there."""
    plan_file = folder / PLAN_FILE
    if names is None or not plan_file.exists():
        return
    missing = set(json.loads(plan_file.read_text(encoding="utf-8"))["shards"]) - names
    if missing:
        raise UserError(
            f"expected the shard {min(missing)} in {folder}, got none: {len(missing)} are missing; "
            "run python -m datasets.pack again"
        )


def _split_of(file: str, root: str) -> str:
    """The split that the name or the folder of a shard begins with, "" if neither does."""
    for part in reversed(os.path.relpath(file, root or ".").split(os.sep)):
        word = part.lower().removesuffix(".tar").partition("-")[0].partition("_")[0]
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return ""
