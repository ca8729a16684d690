"""The listing of a large folder, kept in a file, so that opening it again takes a fraction of the time.

An index holds as long as no folder of the tree has changed: adding, removing or renaming a file changes the time of its
folder. A file that is written over in place keeps its name and its folder's time, and is not noticed here; the caches
of images, features and scores look at every file themselves.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets.folder import read_folder
from datasets.spec import Record, Source
from utils.errors import UserError
from utils.files import atomic_write_text

FORMAT_VERSION = 1
LEAST = 20_000  # images; smaller sets are listed as fast as an index is read
SETTLED = 2 * 10**9  # nanoseconds: the clock of a file system may be coarse, and a folder change twice in a tick
INDEX_DIR = Path("data/index")


@dataclass
class ListingIndex:
    """What is known of a folder tree besides its records: the fingerprints of the parts opened so far."""

    file: Path
    content: dict[str, Any] = field(repr=False)

    def remembered(self, part: str, make: Callable[[], str]) -> str:
        """The fingerprint of a part, computed by ``make`` the first time."""
        fingerprints = self.content["fingerprints"]
        if part not in fingerprints:
            fingerprints[part] = make()
            self.save()
        return fingerprints[part]

    def save(self) -> None:
        """Write the index; where that is impossible, there is none."""
        try:
            atomic_write_text(self.file, json.dumps(self.content))
        except UserError:
            return


def read_indexed_folder(location: str) -> Source:
    """Read a folder as ``datasets.folder.read_folder`` does, from its index if that still holds. Raises UserError."""
    path = os.path.expanduser(location).rstrip("/")
    identity = f"{FORMAT_VERSION} {path} {os.path.abspath(path)}"
    file = INDEX_DIR / f"{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:20]}.json"
    content = _load(file)
    if content is not None:
        by_split = {
            split: [
                Record(f"{folder}/{name}", label, generator)
                for folder, label, generator, names in groups
                for name in names
            ]
            for split, groups in content["by_split"].items()
        }
        return Source(content["name"], content["root"], by_split, ListingIndex(file, content))
    folders = _folder_times(path) if os.path.isdir(path) else {}
    source = read_folder(location)
    records = list(itertools.chain.from_iterable(source.by_split.values()))
    is_simple = len(records) >= LEAST and bool(folders) and not any(record.mask for record in records)
    if not is_simple or time.time_ns() - max(folders.values()) < SETTLED:
        return source
    content = {
        "folders": folders,
        "name": source.name,
        "root": source.root,
        "fingerprints": {},
        "by_split": {split: _grouped(part) for split, part in source.by_split.items()},
    }
    return replace(source, index=ListingIndex(file, content))


def _load(file: Path) -> dict[str, Any] | None:
    """The content of an index, None if there is none, if it is damaged or if a folder has changed since."""
    try:
        content = json.loads(file.read_text(encoding="utf-8", errors="surrogateescape"))
        unchanged = all(os.stat(folder).st_mtime_ns == when for folder, when in content["folders"].items())
        return content if unchanged and isinstance(content["fingerprints"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _folder_times(path: str) -> dict[str, int]:
    """Time of change of every folder of a tree, taken before it is listed; {} if links lead out of it."""
    times = {}
    for folder, below, _ in os.walk(path):
        if any(os.path.islink(os.path.join(folder, name)) for name in below):
            return {}
        times[folder] = os.stat(folder).st_mtime_ns
    return times


def _grouped(records: list[Record]) -> list[list]:
    """Records as ``[folder, label, generator, names]`` for each run of records that share all but their name."""
    groups: list[list] = []
    for record in records:
        folder, _, name = record.path.rpartition("/")
        head = [folder, record.label, record.generator]
        if not groups or groups[-1][:3] != head:
            groups.append([*head, []])
        groups[-1][3].append(name)
    return groups
