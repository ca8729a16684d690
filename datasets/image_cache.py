"""Decoded images kept on disk as plain bytes and read through a memory map: a crop touches only its own pages.

A cache is one folder per listing, named after its files (path, size, modification time):

    DIR/<key>/pixels-<part>.u8      the images one after another, (H, W, 3) uint8 RGB each, at their own sizes
    DIR/<key>/index.npz             per image: part, offset, height, width (0 if unreadable); the facts

Several threads build it once, under a temporary name that changes when it is complete, so a killed build leaves
nothing that could be mistaken for a cache. Other processes that want the same cache wait for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
import uuid
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.decoding.images import UnreadableImage, read_image, readable_formats
from datasets.listing.records import Listing
from datasets.listing.storage import file_state
from utils.files import locked

FORMAT_VERSION = 2  # 1: colours as stored, whatever their profile


@dataclass
class ImageCache:
    """An open cache; picklable: loader workers map the files again."""

    folder: Path
    places: np.ndarray  # (N, 4) int64: part, offset, height, width
    rows: dict[str, int]  # of a path in places

    def __post_init__(self) -> None:
        self._maps: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def read(self, path: str) -> np.ndarray:
        """Return the image ``(H, W, 3)`` uint8 RGB, as a read-only view of the cache. Raises UnreadableImage."""
        part, offset, height, width = self.places[self.rows[path]].tolist()
        if not height:  # unreadable when the cache was built, which may have passed
            return read_image(path)
        if part not in self._maps:
            self._maps[part] = np.memmap(self.folder / f"pixels-{part}.u8", np.uint8, "r")
        return self._maps[part][offset : offset + height * width * 3].reshape(height, width, 3)


def cache_listing(listing: Listing, folder: Path | None, threads: int | None = None) -> Listing:
    """Return the listing with its decoded images in a cache below ``folder``, which is built if it is not there yet.

    If the cache cannot be written (a full disk), a line on stderr says so and the listing is returned as it was. A
    listing of videos always is.
    """
    if folder is None or listing.sampling:
        return listing
    try:
        cache = open_cache(listing, folder, threads or os.cpu_count() or 1)
    except OSError as error:
        reason = error.strerror or error
        print(f"note: images of {listing.name} are not cached in {folder} ({reason}); continuing", file=sys.stderr)
        return listing
    return replace(listing, records=[replace(record, pixels=cache) for record in listing.records])


def open_cache(listing: Listing, folder: Path, threads: int) -> ImageCache:
    """Open the cache of a listing, or build it. Raises OSError."""
    paths = list(dict.fromkeys(record.path for record in listing.records))
    facts = hashlib.sha256(describe_files(paths).encode("utf-8", "surrogateescape")).hexdigest()
    target = folder / facts[:20]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f".{target.name}.lock"
    lock.touch()
    with locked(lock, f"waiting for another process that builds {target.name}"):
        if target.exists():
            try:
                return load_cache(target, paths, facts)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                print(f"note: {target} cannot be used ({error}); it is built again", file=sys.stderr)
                shutil.rmtree(target)
        for stale in folder.glob(f".{target.name}.*.tmp"):  # of killed builders: we hold their lock
            shutil.rmtree(stale, ignore_errors=True)
        build_cache(target, paths, facts, threads)
    return load_cache(target, paths, facts)


def describe_files(paths: Sequence[str]) -> str:
    """The files of a cache as text: every path with size and modification time."""
    states = ((path, file_state(path) or ("missing",)) for path in paths)  # missing files are reported when read
    decoder = f"format {FORMAT_VERSION}, {' '.join(readable_formats())}"
    return "\n".join([decoder, *("\0".join([path, *map(str, state)]) for path, state in states)])


def build_cache(target: Path, paths: Sequence[str], facts: str, threads: int) -> None:
    """Decode all images; each thread writes a separate file with its share of the images. Raises OSError."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    bar = tqdm(total=len(paths), desc="caching decoded images", unit="img", disable=None, leave=False)
    places, is_given_up = np.zeros((len(paths), 4), np.int64), threading.Event()

    def decode_share(part: int) -> None:
        offset = 0
        with open(temporary / f"pixels-{part}.u8", "wb") as file:
            for row in range(part * len(paths) // threads, (part + 1) * len(paths) // threads):
                if is_given_up.is_set():
                    return
                bar.update()
                places[row, 0] = part
                try:
                    image = read_image(paths[row])
                except UnreadableImage:
                    continue
                file.write(np.ascontiguousarray(image).data)
                places[row, 1:] = offset, *image.shape[:2]
                offset += image.nbytes
            file.flush()
            os.fsync(file.fileno())

    try:
        with bar, ThreadPoolExecutor(threads) as pool:
            try:
                list(pool.map(decode_share, range(threads)))
            finally:  # after Ctrl-C, or a full disk in one thread, which the other threads must not go on without
                is_given_up.set()
        np.savez(temporary / "index.npz", places=places, facts=facts)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_cache(target: Path, paths: Sequence[str], facts: str) -> ImageCache:
    """Open a complete cache. Raises OSError, ValueError and others if it is damaged or belongs to other files."""
    with np.load(target / "index.npz", allow_pickle=False) as index:
        places, digest = index["places"], str(index["facts"])
    if digest != facts or len(places) != len(paths):
        raise ValueError("it belongs to other images")
    for part in np.unique(places[:, 0]).tolist():
        own = places[places[:, 0] == part]
        expected = int((own[:, 2] * own[:, 3] * 3).sum())
        if (target / f"pixels-{part}.u8").stat().st_size != expected:
            raise ValueError(f"pixels-{part}.u8 is incomplete")
    return ImageCache(target, places, {path: row for row, path in enumerate(paths)})
