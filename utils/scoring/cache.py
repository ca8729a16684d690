"""A cache of logits on disk, so that no checkpoint scores the same images twice.

The name of an entry covers everything that decides its logits: the bytes of the checkpoint, the engine, the images
(paths within the set, sizes, modification times), the tier, precision and kind of device, the code that scores, and
the versions of the libraries. If any of it changes, the entry is not found and the images are scored. Calibration and
thresholds are applied to logits afterwards, so an entry does not depend on them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.listing.records import Listing, relative_path
from datasets.listing.storage import stat_image
from models.operating_point import check_logits
from utils.errors import UserError
from utils.files import atomic_write_bytes
from utils.runtime import versions
from utils.scoring.scorer import Scores
from utils.source import code_digest

FORMAT_VERSION = 2  # of an entry
# These and everything they import decide a logit; models are found by a pattern at run time.
SCORING_CODE = ("models/**/*.py", "utils/scoring/scorer.py", "utils/checkpoints/file.py")


def listing_digest(listing: Listing) -> str:
    """SHA-256 over path within the set, size, modification time, access rights and faces of every image, in order.

    Unlike the fingerprint of a listing it notices a file replaced by one of the same size, and so differs between
    machines.
    """
    digest = hashlib.sha256()
    for record in listing.records:
        try:
            stat = stat_image(record.path)
            facts = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_mode}"
        except (OSError, ValueError):  # a missing file is reported when it is read
            facts = "missing"
        if record.faces is not None:
            facts += f" {[tuple(box) for box in record.faces]}"
        path = relative_path(record.path, listing.root) if listing.root else record.path
        digest.update(f"{path}\0{facts}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def labelled_digest(listing: Listing) -> str:
    """SHA-256 of :func:`listing_digest` and the labels, for results that depend on them too."""
    labels = [record.label for record in listing.records]
    return hashlib.sha256(f"{listing_digest(listing)} {labels}".encode()).hexdigest()


@dataclass
class ScoreCache:
    """A folder with one file per entry; with ``folder`` None nothing is kept.

    ``arithmetic`` names what computes the logits, such as ``cpu float32``.
    """

    folder: Path | None
    arithmetic: str

    @functools.cached_property
    def _surroundings(self) -> dict[str, Any]:
        code, libraries = code_digest(*SCORING_CODE), versions()
        return {"format": FORMAT_VERSION, "arithmetic": self.arithmetic, "code": code, "versions": libraries}

    def _facts(self, checkpoint: str, data: str, tier: str) -> str:
        """Everything that an entry depends on, as text."""
        return json.dumps({"checkpoint": checkpoint, "data": data, "tier": tier, **self._surroundings}, sort_keys=True)

    def _file(self, folder: Path, facts: str) -> Path:
        return folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npz"

    def load(self, checkpoint: str, data: str, tier: str, n_records: int) -> Scores | None:
        """Return the scores of an entry, None if there is none; a damaged entry is reported on stderr.

        ``checkpoint`` identifies the file and the engine that runs it, ``data`` is a :func:`listing_digest`.
        """
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
        """Keep scores; if the folder is not writable, say so on stderr and keep nothing from then on."""
        if self.folder is None:
            return
        facts = self._facts(checkpoint, data, tier)
        buffer = io.BytesIO()
        # Members of a zip file carry a checksum, which reveals damaged numbers.
        np.savez(
            buffer, facts=facts, indices=scores.indices, logits=scores.logits, unreadable=json.dumps(scores.unreadable)
        )
        try:
            atomic_write_bytes(self._file(self.folder, facts), buffer.getvalue())
        except UserError as error:
            print(f"note: scores are not kept for later: {error}", file=sys.stderr)
            self.folder = None


def _read_entry(data: bytes, facts: str, n_records: int) -> Scores:
    """Read an entry and check that it holds each of ``n_records`` images once. Raises ValueError and others."""
    with np.load(io.BytesIO(data), allow_pickle=False) as entry:
        if str(entry["facts"]) != facts:
            raise ValueError("it belongs to other scores")
        indices, logits = entry["indices"], check_logits(entry["logits"])
        unreadable = [(int(index), str(reason)) for index, reason in json.loads(str(entry["unreadable"]))]
    seen = np.sort(np.concatenate([indices, [index for index, _ in unreadable]]))
    if len(indices) != len(logits) or not np.array_equal(seen, np.arange(n_records)):
        raise ValueError("it is incomplete")
    return Scores(indices, logits, unreadable)
