"""Score data sets with several detectors, using the score cache."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datasets.faces.finder import Finder
from datasets.listing.spec import Listing
from models.detector import Detector
from utils.checkpoints.file import load_detector
from utils.files import file_digest
from utils.scoring.cache import ScoreCache, listing_digest
from utils.scoring.scorer import Job, Scores, Settings, score, score_clips, score_table
from utils.scoring.table import ScoreTable
from utils.tables import unique_names


@dataclass
class Candidate:
    """A detector in an evaluation: its name there, its checkpoint without weights, and the digest of the file."""

    name: str
    detector: Detector
    checkpoint: dict[str, Any]
    digest: str


def load_candidates(paths: Sequence[Path], device: torch.device | str = "cpu") -> list[Candidate]:
    """Load checkpoints, each under a distinct name. Raises UserError as ``load_detector`` does."""
    names = checkpoint_names(paths)
    return [
        Candidate(name, *load_detector(path, device), file_digest(path))
        for name, path in zip(names, paths, strict=True)
    ]


def origin(candidate: Candidate) -> dict[str, Any]:
    """Return what the JSON file of scores says about the checkpoint."""
    checkpoint, point = candidate.checkpoint, candidate.detector.operating_point
    settings = checkpoint.get("train_args") or {}
    return {
        "checkpoint": candidate.name,
        "model": checkpoint["model"],
        "thresholds": dict(point.thresholds) or None,
        "threshold": point.threshold(),
        "train_command": settings.get("command"),
        "augmentation": settings.get("augmentation"),
        "trained_on": sorted({entry["dataset"] for entry in checkpoint.get("data", []) if entry["split"] == "train"}),
        **{key: checkpoint.get(key) for key in ("epoch", "seed", "git_commit", "versions")},
    }


def warn_of_training_images(candidates: Sequence[Candidate], dataset: str, listing: Listing) -> None:
    """Name on stderr the checkpoints that were trained on these very images, or on others of their split."""
    splits = (listing.splits or ("train",)) if listing.split == "all" else (listing.split,)
    for candidate in candidates:
        entries = [entry for entry in candidate.checkpoint.get("data", []) if entry["split"] == "train"]
        if listing.fingerprint in {entry["fingerprint"] for entry in entries}:
            print(f"warning: {candidate.name} was trained on these very images of {dataset}", file=sys.stderr)
        elif "train" in splits and listing.name in {entry["dataset"] for entry in entries}:
            print(
                f"warning: {candidate.name} was trained on {dataset}, probably also on some of these images; "
                "a test split has others",
                file=sys.stderr,
            )


def checkpoint_names(paths: Sequence[Path]) -> list[str]:
    """Name checkpoints for tables: the run folder of a best.pt, otherwise the file's stem; duplicates are numbered."""
    names = [path.parent.name if path.stem in ("best", "last") and path.parent.name else path.stem for path in paths]
    return unique_names(names)


def evaluate_tiers(
    candidates: Sequence[Candidate],
    listing: Listing,
    tiers: Sequence[str],
    cache: ScoreCache,
    settings: Settings | None = None,
    dataset: str | None = None,
    finder: Finder | None = None,
) -> list[tuple[ScoreTable, list[dict[str, str]]]]:
    """Score a listing, degraded by each tier, with all candidates; scores found in the cache need no image.

    ``dataset`` is the name of the listing in the tables, ``listing.name`` by default. Videos need a ``finder``; their
    scores are not cached.

    Returns:
        Per candidate, a table with all tiers one after the other, and ``{path, reason}`` of the unreadable images.
    """
    if listing.sampling:
        cache = ScoreCache(None, cache.arithmetic)
    data = listing_digest(listing) if cache.folder else ""
    found: dict[tuple[int, str], Scores] = {}
    missing: list[tuple[int, str]] = []
    settings = settings or Settings()
    scope = " every face" if settings.every_face else ""
    keys = [f"{candidate.digest} {candidate.detector.engine}{scope}" for candidate in candidates]
    for number, tier in itertools.product(range(len(candidates)), tiers):
        scores = cache.load(keys[number], data, tier, len(listing.records))
        if scores is None:
            missing.append((number, tier))
        else:
            found[number, tier] = scores
    if found:
        part = "all" if not missing else f"{len(found)} of {len(found) + len(missing)}"
        print(f"{listing.name} {listing.split}: {part} score sets taken from {cache.folder}", file=sys.stderr)
    if missing:
        jobs = [Job(candidates[number].detector, tier) for number, tier in missing]
        name = f"{listing.name} {listing.split}"
        if listing.sampling and finder:
            results = score_clips(jobs, listing, finder, settings, name)
        else:
            results = score(jobs, listing.records, settings, name)
        for (number, tier), scores in zip(missing, results, strict=True):
            found[number, tier] = scores
            cache.store(keys[number], data, tier, scores)
    # The same for every candidate and tier: a file is read before it is degraded.
    failures = found[0, tiers[0]].unreadable
    unreadable = [{"path": listing.records[index].path, "reason": reason} for index, reason in failures]
    output = []
    for number, candidate in enumerate(candidates):
        point, name = candidate.detector.operating_point, dataset or listing.name
        parts = [score_table(listing.records, found[number, tier], point, name, tier) for tier in tiers]
        output.append((ScoreTable.join(parts), unreadable))
    return output
