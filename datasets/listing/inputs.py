"""Images named on a command line: files, folders, patterns, CSV lists and standard input, in the order given."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from datasets.decoding.containers import VIDEO_SUFFIXES, is_video_file
from datasets.listing.readers.csv_list import read_csv
from datasets.listing.readers.folder import IMAGES, Files, list_images
from datasets.listing.records import is_system_file
from datasets.listing.storage import image_exists, is_image_file, looks_like_image
from utils.errors import UserError, closest_sibling

IMAGES_AND_VIDEOS = Files(
    "images or videos",
    (*IMAGES.suffixes[:3], *VIDEO_SUFFIXES[:2]),
    lambda path: is_image_file(path) or is_video_file(path),
)
LIST_SUFFIXES = (".csv", ".tsv")
NEITHER = "no image or video of a supported format"  # why a file in a folder is left out
NAMED = 20  # files that are named one by one
SUFFIXES_NAMED = 8


class Inputs(NamedTuple):
    """The images, or images and videos, that a command line names; and the other files in its folders."""

    paths: list[str]
    others: list[str]


def list_inputs(arguments: Sequence[str], null: bool = False, videos: bool = False) -> Inputs:
    """Return the paths of all images named by the arguments, in order, without decoding any.

    - a folder: the image files below it, and with ``videos`` its videos, sorted by path; other files are listed apart;
    - a file that ends in .csv or .tsv, or any file after ``csv:``: the paths of this list, see
      datasets/listing/readers/csv_list.py; labels are optional;
    - ``-``: one path per line of standard input, or null-terminated paths (``find -print0``) with ``null``;
    - any other file: itself, whatever its suffix;
    - a pattern with ``*``, ``?`` or ``[]`` that is not a file: the paths that the shell would expand it to. ``**``
      crosses folders, and is then like a folder.

    Files named by a CSV list or on standard input need not exist: they turn out unreadable later.

    Raises:
        UserError: a path does not exist, or an argument names no image.
    """
    images: list[str] = []
    others: list[str] = []
    wanted = IMAGES_AND_VIDEOS if videos else IMAGES
    for argument in arguments:
        path = os.path.expanduser(argument)
        if argument == "-":
            images += _read_stdin(null)
            continue
        if argument.startswith("csv:"):
            images += _listed(argument.removeprefix("csv:"))
            continue
        matching = Inputs([path], []) if image_exists(path) else _matching(path, argument, wanted)
        others += matching.others
        for found in matching.paths:
            if os.path.isdir(found):
                below = Inputs(*list_images(found, wanted))
                images += below.paths
                others += below.others
            elif found.lower().endswith(LIST_SUFFIXES):
                images += _listed(found)
            else:
                images.append(found)
    return Inputs(images, others)


def name_others(others: Sequence[str], reason: str) -> list[str]:
    """Lines that name files that are left out; of many, how many there are of each suffix."""
    if len(others) <= NAMED:
        return [f"left out: {path}: {reason}" for path in others]
    counts = Counter(os.path.splitext(path)[1].lower() or "without a suffix" for path in others)
    shown = [f"{count:,} {suffix}" for suffix, count in counts.most_common(SUFFIXES_NAMED)]
    shown += [f"{len(counts) - len(shown)} more suffixes"] if len(counts) > len(shown) else []
    return [f"left out: {len(others):,} files ({', '.join(shown)}): {reason}"]


def check_output(output: str, arguments: Sequence[str], paths: Sequence[str]) -> None:
    """Raise UserError if an output file would replace a list or an image that is about to be read."""
    if not os.path.isfile(output):
        return
    for path in (*(argument.removeprefix("csv:") for argument in arguments), *paths):
        if os.path.isfile(path) and os.path.samefile(output, path):
            raise UserError(f"expected --output to differ from the inputs, got {output}; choose another name")


def _listed(path: str) -> list[str]:
    source = read_csv(path, require_labels=False)
    return [record.path for records in source.by_split.values() for record in records]


def _matching(pattern: str, argument: str, wanted: Files) -> Inputs:
    if not any(character in argument for character in "*?["):
        raise UserError(
            f"expected an image, folder, pattern or CSV list, no such path: {argument}{closest_sibling(pattern)}"
        )
    found, others = sorted(glob.iglob(pattern, recursive=True)), []
    if "**" in pattern:  # it also matches every folder on the way, which would repeat images
        files = [path for path in found if os.path.isfile(path) and not is_system_file(os.path.basename(path))]
        found = [path for path in files if wanted.accepts(path)]
        others = sorted({*files} - {*found})
    if not found:
        raise UserError(f"expected images that match {argument!r}, got none; check the folder and the suffix")
    return Inputs(found, others)


def _read_stdin(null: bool) -> list[str]:
    data = sys.stdin.buffer.read()
    if looks_like_image(io.BytesIO(data)):
        raise UserError(
            "expected image paths on standard input (PATH is -), got the bytes of an image; "
            "save it to a file and pass its path"
        )
    lines = data.split(b"\0") if null else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    paths = [os.fsdecode(line) for line in lines if line]
    if not paths:
        raise UserError("expected image paths on standard input (PATH is -), got none")
    if not null and "\0" in paths[0]:
        is_text = all(character >= " " for character in paths[0].replace("\0", ""))
        found = "null-terminated paths; pass --null" if is_text else "binary data; pass paths as text"
        raise UserError(f"expected one path per line on standard input (PATH is -), got {found}")
    return paths
