"""Logits kept on disk, so that no checkpoint scores the same images twice.

An entry is named by everything that decides its logits: the bytes of the checkpoint, the images (paths within the
set, sizes, times of change), the tier, the precision and the kind of device, the code that scores, and the versions
of the libraries. Whatever changes, the old entry is not found and the images are scored. Calibration and thresholds
are applied to logits afterwards and are no part of an entry.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.spec import Listing
from datasets.storage import stat_image
from models.operating_point import check_logits
from utils.errors import UserError
from utils.files import ROOT, atomic_write_bytes
from utils.runtime import versions
from utils.scoring.scorer import Scores

FORMAT_VERSION = 1  # of an entry, and of any change in scoring that lies outside of SCORING_CODE
SCORING_CODE = (
    "models/**/*.py",
    "datasets/images.py",
    "datasets/loading.py",
    "datasets/transforms.py",
    "utils/scoring/scorer.py",
    "datasets/perturbations.py",
    "utils/runtime.py",
)


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the bytes of a file, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing_digest(listing: Listing) -> str:
    """SHA-256 over path within the set, size, time of change and access rights of every image, in their order.

    Unlike the fingerprint of a listing it notices a file that was replaced by one of the same size; the price is that
    it differs between machines.
    """
    digest = hashlib.sha256()
    for record in listing.records:
        try:
            stat = stat_image(record.path)
            facts = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_mode}"
        except (OSError, ValueError):  # a missing file is reported when it is read
            facts = "missing"
        path = record.path.removeprefix(listing.root + "/") if listing.root else record.path
        digest.update(f"{path}\0{facts}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@functools.cache
def code_digest() -> str:
    """SHA-256 over the source files that decide a logit, so that nobody has to remember to bump a version."""
    digest = hashlib.sha256()
    for pattern in SCORING_CODE:
        for file in sorted(ROOT.glob(pattern)):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@dataclass
class ScoreCache:
    """Entries in a folder, one file each; ``folder`` None keeps nothing.

    ``arithmetic`` says what computes the logits, such as ``cpu float32``.
    """

    folder: Path | None
    arithmetic: str

    @functools.cached_property
    def _surroundings(self) -> dict[str, Any]:
        return {"arithmetic": self.arithmetic, "code": code_digest(), "versions": versions()}

    def _facts(self, checkpoint: str, data: str, tier: str) -> str:
        """What an entry depends on, as text; ``checkpoint`` and ``data`` are digests."""
        facts = {"format": FORMAT_VERSION, "checkpoint": checkpoint, "data": data, "tier": tier, **self._surroundings}
        return json.dumps(facts, sort_keys=True)

    def _file(self, folder: Path, facts: str) -> Path:
        return folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npz"

    def load(self, checkpoint: str, data: str, tier: str, n_records: int) -> Scores | None:
        """The scores of an entry, or None if there is none; a damaged one is named on stderr and counts as none."""
        if self.folder is None:
            return None
        facts = self._facts(checkpoint, data, tier)
        file = self._file(self.folder, facts)
        try:
            return _read_entry(file.read_bytes(), facts, n_records)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, UserError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            print(f"note: {file} cannot be used ({reason[:100]}); the images are scored again", file=sys.stderr)
            return None

    def store(self, checkpoint: str, data: str, tier: str, scores: Scores) -> None:
        """Keep scores; if the folder cannot be written to, say so on stderr and go on without."""
        if self.folder is None:
            return
        facts = self._facts(checkpoint, data, tier)
        buffer = io.BytesIO()
        # zip members carry a checksum, so that damage inside the numbers is noticed as well.
        np.savez(
            buffer, facts=facts, indices=scores.indices, logits=scores.logits, unreadable=json.dumps(scores.unreadable)
        )
        try:
            atomic_write_bytes(self._file(self.folder, facts), buffer.getvalue())
        except UserError as error:
            print(f"note: scores are not kept for later: {error}", file=sys.stderr)
            self.folder = None


def _read_entry(data: bytes, facts: str, n_records: int) -> Scores:
    """Read an entry and check that it speaks of each of ``n_records`` images once. Raises ValueError and others."""
    with np.load(io.BytesIO(data), allow_pickle=False) as entry:
        if str(entry["facts"]) != facts:
            raise ValueError("it belongs to other scores")
        indices, logits = entry["indices"], check_logits(entry["logits"])
        unreadable = [(int(index), str(reason)) for index, reason in json.loads(str(entry["unreadable"]))]
    seen = np.sort(np.concatenate([indices, [index for index, _ in unreadable]]))
    if len(indices) != len(logits) or not np.array_equal(seen, np.arange(n_records)):
        raise ValueError("it is incomplete")
    return Scores(indices, logits, unreadable)
