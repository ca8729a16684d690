"""The faces of a data set: each picture is searched once, with all cores, and its boxes are kept on disk.

A cache is one text file per finder with a line per picture: path, size and modification time of its file, and the boxes
of its faces. Lines are only added, so that several processes may share it and a killed search loses little; only one
of them searches at a time, and none waits for pictures that the file holds.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
from tqdm import tqdm

from datasets.decoding.images import UnreadableImage, read_record
from datasets.faces.finder import FaceFinder
from datasets.faces.framing import Box
from datasets.listing.records import Listing, Record
from datasets.listing.storage import file_state
from utils.files import locked, user_cache

FORMAT_VERSION = 2  # increase it when a finder changes: pictures are then searched again
BLOCK = 512  # pictures between two writes

State = tuple[int, int]  # of a file: size and modification time
States = dict[str, State | None]  # by path
Found = dict[str, tuple[Box, ...]]  # by path
Known = dict[str, tuple[State, tuple[Box, ...]]]  # by absolute path


def with_faces(listing: Listing, finder: FaceFinder | None) -> Listing:
    """Return a listing whose records hold the faces in their pictures; without a finder, or of videos, it is returned.

    Prints to stderr how many pictures show a face.
    """
    if finder is None or listing.sampling:
        return listing
    name = f"{listing.name} {listing.split}"
    records = find_faces(listing.records, finder, user_cache() / "faces", f"faces {name}")
    found = sum(bool(record.faces) for record in records)
    print(
        f"{name}: {found} of {len(records)} pictures show a face ({finder.name}); the others are used whole",
        file=sys.stderr,
    )
    return replace(listing, records=records)


def find_faces(
    records: Sequence[Record], finder: FaceFinder, folder: Path | None, description: str = "faces"
) -> list[Record]:
    """Return records that hold the faces in their pictures, from a cache below ``folder`` where it knows them.

    A picture that cannot be read has no faces; it is reported when it is used.
    """
    file = folder / f"{finder.digest}-{FORMAT_VERSION}.jsonl" if folder else None
    try:
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    except OSError as error:
        _say_not_kept(folder, error)
        file = None
    states = {record.path: file_state(record.path) for record in records}
    found = _kept(states, _read(file)) if file else {}
    if file is None:
        found = _search(records, finder, states, found, None, description)
    elif len(found) < len(states):
        with locked(file, f"waiting for another process that searches faces ({file})"):
            found = _search(records, finder, states, _kept(states, _read(file)), file, description)
    return [replace(record, faces=found[record.path]) for record in records]


def _kept(states: States, known: Known) -> Found:
    """The faces that a cache holds for the files in these states."""
    entries = {path: known.get(os.path.abspath(path)) for path in states}
    return {path: entry[1] for path, entry in entries.items() if entry and entry[0] == states[path]}


def _search(
    records: Sequence[Record], finder: FaceFinder, states: States, found: Found, file: Path | None, description: str
) -> Found:
    """The faces of all records; pictures that are not found yet are searched and added to the file."""
    missing = list({record.path: record for record in records if record.path not in found}.values())

    def search(record: Record) -> tuple[Box, ...] | None:
        try:
            return tuple(face.box for face in finder(read_record(record)))
        except UnreadableImage:
            return None

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # several pictures are searched at a time
    with (
        tqdm(total=len(missing), desc=description, unit="img", disable=None, leave=False) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for start in range(0, len(missing), BLOCK):
            block = [record.path for record in missing[start : start + BLOCK]]
            boxes = dict(zip(block, pool.map(search, missing[start : start + BLOCK]), strict=True))
            found |= {path: faces or () for path, faces in boxes.items()}
            if file:
                try:
                    _append(file, {path: (states[path], faces) for path, faces in boxes.items() if faces is not None})
                except OSError as error:  # a full disk
                    _say_not_kept(file.parent, error)
                    file = None
            bar.update(len(block))
    cv2.setNumThreads(threads)
    return found


def _say_not_kept(folder: Path | None, error: OSError) -> None:
    print(f"note: faces are not kept in {folder} ({error.strerror or error}); continuing", file=sys.stderr)


def _append(file: Path, found: dict[str, tuple[State | None, tuple[Box, ...]]]) -> None:
    lines = [json.dumps([os.path.abspath(path), state, faces]) for path, (state, faces) in found.items() if state]
    with open(file, "a", encoding="utf-8") as stream:
        stream.write("".join(f"\n{line}" for line in lines))


def _read(file: Path) -> Known:
    """Read a cache, once for all data sets of a run unless it changes."""
    found = file.stat()
    return _parse(file, (found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _parse(file: Path, state: State) -> Known:
    """Parse a cache in this state; damaged lines, as a killed process leaves behind, count as missing."""
    known: Known = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            path, (size, changed), faces = json.loads(line)
            known[path] = (size, changed), tuple(Box(*map(float, box)) for box in faces)
        except (ValueError, TypeError):
            continue
    return known
