"""Decoded images kept on disk as plain bytes and read through a memory map: a crop touches only its own pages.

A cache is one folder per listing, named after the files that it was made of (path, size, time of change):

    DIR/<key>/pixels-<part>.u8      the images one after another, (H, W, 3) uint8 RGB each, at their own sizes
    DIR/<key>/index.npz             per image: part, offset, height, width; the reasons for unreadable ones; the facts

It is built once, by several threads, in a folder beside it that gets its name when it is complete, so a killed build
leaves nothing that could be mistaken for a cache. Processes that want the same one wait for the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datasets.images import UnreadableImage, read_image
from datasets.shards import stat_image
from datasets.spec import Listing, Record

FORMAT_VERSION = 1


@dataclass
class ImageCache:
    """An open cache; picklable, so loader workers can carry it, who map the files anew."""

    folder: Path
    places: np.ndarray  # (N, 4) int64: part, offset, height, width
    rows: dict[str, int]  # of a path in places
    reasons: dict[str, str]  # of unreadable images

    def __post_init__(self) -> None:
        self._maps: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def read(self, path: str) -> np.ndarray:
        """The image ``(H, W, 3)`` uint8 RGB, as a read-only view of the file. Raises UnreadableImage."""
        if path in self.reasons:
            raise UnreadableImage(self.reasons[path])
        part, offset, height, width = self.places[self.rows[path]].tolist()
        if part not in self._maps:
            self._maps[part] = np.memmap(self.folder / f"pixels-{part}.u8", np.uint8, "r")
        return self._maps[part][offset : offset + height * width * 3].reshape(height, width, 3)


class CachedRecords(list[Record]):
    """Records that know where their pixels are kept; images that are in no cache are read from their files."""

    def __init__(self, records: Sequence[Record], caches: Sequence[ImageCache]) -> None:
        super().__init__(records)
        self.caches = list(caches)

    def read(self, path: str) -> np.ndarray:
        """Read an image from the cache that has it. Raises UnreadableImage."""
        for cache in self.caches:
            if path in cache.rows:
                return cache.read(path)
        return read_image(path)


def cache_listing(listing: Listing, folder: Path | None, threads: int | None = None) -> Listing:
    """The same listing with its decoded images in a cache below ``folder``, built if it is not there yet.

    Where that is impossible (a full disk), a line on stderr says so and the listing comes back as it was.
    """
    if folder is None:
        return listing
    cache = open_cache(listing, folder, threads or os.cpu_count() or 1)
    return replace(listing, records=CachedRecords(listing.records, [cache])) if cache else listing


def join_records(listings: Sequence[Listing]) -> list[Record]:
    """The records of several listings, one after the other, with their caches."""
    records = [record for listing in listings for record in listing.records]
    caches = [cache for listing in listings for cache in getattr(listing.records, "caches", ())]
    return CachedRecords(records, caches) if caches else records


def pick_records(records: Sequence[Record], indices: Sequence[int]) -> list[Record]:
    """Some of the records, with their caches."""
    return (
        CachedRecords([records[i] for i in indices], records.caches)
        if isinstance(records, CachedRecords)
        else [records[i] for i in indices]
    )


def open_cache(listing: Listing, folder: Path, threads: int) -> ImageCache | None:
    """Open the cache of a listing, or build it; None if there is no room for it."""
    paths = list(dict.fromkeys(record.path for record in listing.records))
    facts = describe_files(paths)
    target = folder / hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()[:20]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / f".{target.name}.lock"):
            if target.exists():
                try:
                    return load_cache(target, paths, facts)
                except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                    print(f"note: {target} cannot be used ({error}); it is built again", file=sys.stderr)
                    shutil.rmtree(target)
            for stale in folder.glob(f".{target.name}.*.tmp"):  # of builders that were killed: we hold their lock
                shutil.rmtree(stale, ignore_errors=True)
            build_cache(target, paths, facts, threads)
        return load_cache(target, paths, facts)
    except OSError as error:
        print(
            f"note: images of {listing.name} are not cached in {folder} ({error.strerror or error}); going on without",
            file=sys.stderr,
        )
        return None


def describe_files(paths: Sequence[str]) -> str:
    """What a cache was made of, as text: every path with size and time of change."""
    lines = [f"format {FORMAT_VERSION}"]
    for path in paths:
        try:
            found = stat_image(path)
            lines.append(f"{path}\0{found.st_size}\0{found.st_mtime_ns}")
        except (OSError, ValueError):  # a missing file is reported when it is read
            lines.append(f"{path}\0missing")
    return "\n".join(lines)


def build_cache(target: Path, paths: Sequence[str], facts: str, threads: int) -> None:
    """Decode all images; each thread fills a file of its own with every image of its share. Raises OSError."""
    from tqdm import tqdm

    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    bar = tqdm(total=len(paths), desc="caching decoded images", unit="img", disable=None, leave=False)

    def decode_share(part: int) -> list[tuple[int, str, int, int, int]]:
        places, offset = [], 0
        with open(temporary / f"pixels-{part}.u8", "wb") as file:
            for row in range(part * len(paths) // threads, (part + 1) * len(paths) // threads):
                try:
                    image = read_image(paths[row])
                except UnreadableImage as error:
                    places.append((row, str(error), 0, 0, 0))
                else:
                    file.write(np.ascontiguousarray(image).data)
                    places.append((row, "", offset, *image.shape[:2]))
                    offset += image.nbytes
                bar.update()
            file.flush()
            os.fsync(file.fileno())
        return places

    try:
        with bar, ThreadPoolExecutor(threads) as pool:
            shares = list(pool.map(decode_share, range(threads)))
        table = np.zeros((len(paths), 4), np.int64)
        reasons = {}
        for part, share in enumerate(shares):
            for row, reason, *place in share:
                table[row] = (part, *place)
                if reason:
                    reasons[paths[row]] = reason
        digest = hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()
        np.savez(temporary / "index.npz", places=table, facts=digest, reasons=json.dumps(reasons))
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_cache(target: Path, paths: Sequence[str], facts: str) -> ImageCache:
    """Open a complete cache. Raises OSError, ValueError and others if it is damaged or was made of other files."""
    with np.load(target / "index.npz", allow_pickle=False) as index:
        places, reasons = index["places"], json.loads(str(index["reasons"]))
        digest = str(index["facts"])
    if digest != hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest() or len(places) != len(paths):
        raise ValueError("it belongs to other images")
    for part in np.unique(places[:, 0]).tolist():
        own = places[places[:, 0] == part]
        expected = int((own[:, 2] * own[:, 3] * 3).sum())
        if (target / f"pixels-{part}.u8").stat().st_size != expected:
            raise ValueError(f"pixels-{part}.u8 is incomplete")
    return ImageCache(target, places, {path: row for row, path in enumerate(paths)}, reasons)


@contextlib.contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for and that goes away with this process, whatever ends it."""
    try:
        import fcntl
    except ImportError:  # not on Windows: two builders then build twice, and the last rename wins
        yield
        return
    with open(file, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that builds {file.name[1:-5]}", file=sys.stderr)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
