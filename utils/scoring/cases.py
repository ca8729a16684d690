"""Keep the pictures of predict.py as cases (utils/cases.py): the flags, their checks, and the saving."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from datasets.listing.storage import UnreadableImage, read_bytes
from utils.cases import LABELS, LIST_NAME, open_case_folder, save_case
from utils.errors import UserError
from utils.scoring.rows import Item


def add_case_group(parser: argparse.ArgumentParser) -> None:
    """Add --save-case and --label."""
    group = parser.add_argument_group("cases")
    group.add_argument("--save-case", metavar="DIR", help="save the images of this run in this folder")
    group.add_argument("--label", choices=LABELS, help="the right answer for all of them")


def check_cases(folder: str | None, label: str | None, videos: Sequence[str]) -> Path | None:
    """Return the folder of --save-case, which is created, or None without the flag. Raises UserError."""
    if (folder is None) != (label is None):
        raise UserError("expected --save-case DIR together with --label real or fake, got only one of them")
    if folder is not None and videos:
        raise UserError(f"expected pictures with --save-case, got the video {videos[0]}; save stills of it")
    return None if folder is None else open_case_folder(folder, "--save-case")


def save_cases(batches: Iterable[Item], folder: Path, label: str) -> Iterator[Item]:
    """Pass rows on and save each readable picture; a line on stderr says how many. Raises UserError."""
    names: dict[str, str] = {}
    for rows in batches:
        for row in rows:
            if "error" not in row and row["path"] not in names:
                names[row["path"]] = save_case(folder, _read_again(row["path"]), label)
        yield rows
    n = len(set(names.values()))
    print(f"{folder / LIST_NAME}: {n} picture{'s' * (n != 1)} saved as {label}", file=sys.stderr)


def _read_again(path: str) -> bytes:
    """The bytes of a picture that was scored; a pipe has none left."""
    with contextlib.suppress(UnreadableImage):
        if data := read_bytes(path):
            return data
    raise UserError(f"expected a file with --save-case, got {path}, which cannot be read twice; write it to a file")
