"""Images named on a command line: files, folders, patterns, CSV lists and standard input, in the order given."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Sequence

from datasets.containers import VIDEO_SUFFIXES, is_video_file
from datasets.readers.csv_list import read_csv
from datasets.readers.folder import IMAGES, Files, list_images
from datasets.storage import image_exists, is_image_file, looks_like_image
from utils.errors import UserError, closest_sibling

IMAGES_AND_VIDEOS = Files(
    "images or videos",
    (*IMAGES.suffixes[:3], *VIDEO_SUFFIXES[:2]),
    lambda path: is_image_file(path) or is_video_file(path),
)
LIST_SUFFIXES = (".csv", ".tsv")


def list_inputs(arguments: Sequence[str], null: bool = False, videos: bool = False) -> list[str]:
    """Return the paths of all images named by the arguments, in order, without decoding any.

    - a folder: the image files below it, with ``videos`` videos too, sorted by path;
    - a file that ends in .csv or .tsv, or any file after ``csv:``: the paths of this list, see
      datasets/readers/csv_list.py; labels are optional;
    - ``-``: one path per line of standard input, or null-terminated paths (``find -print0``) with ``null``;
    - any other file: itself, whatever its suffix;
    - a pattern with ``*``, ``?`` or ``[]`` that is not a file: the paths that the shell would expand it to. ``**``
      crosses folders, and then only image files count.

    Files named by a CSV list or on standard input need not exist: they turn out unreadable later.

    Raises:
        UserError: a path does not exist, or an argument names no image.
    """
    images: list[str] = []
    wanted = IMAGES_AND_VIDEOS if videos else IMAGES
    for argument in arguments:
        path = os.path.expanduser(argument)
        if argument == "-":
            images += _read_stdin(null)
            continue
        if argument.startswith("csv:"):
            images += _listed(argument.removeprefix("csv:"))
            continue
        for found in [path] if image_exists(path) else _matching(path, argument, wanted):
            if os.path.isdir(found):
                images += list_images(found, wanted)
            elif found.lower().endswith(LIST_SUFFIXES):
                images += _listed(found)
            else:
                images.append(found)
    return images


def _listed(path: str) -> list[str]:
    source = read_csv(path, require_labels=False)
    return [record.path for records in source.by_split.values() for record in records]


def _matching(pattern: str, argument: str, wanted: Files) -> list[str]:
    if not any(character in argument for character in "*?["):
        raise UserError(
            f"expected an image, folder, pattern or CSV list, no such path: {argument}{closest_sibling(pattern)}"
        )
    found = sorted(glob.iglob(pattern, recursive=True))
    if "**" in pattern:  # it also matches every folder on the way, which would repeat images
        found = [path for path in found if os.path.isfile(path) and wanted.accepts(path)]
    if not found:
        raise UserError(f"expected images that match {argument!r}, got none; check the folder and the suffix")
    return found


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
