"""Detectors on one data set: score tables, the metrics row and the line that scripts print."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from datasets.spec import Listing
from models.detector import Detector
from models.operating_point import OperatingPoint
from utils.evaluation.report import unique_names
from utils.metrics.binary import metrics_row
from utils.scoring.cache import ScoreCache, listing_digest
from utils.scoring.scorer import Scores, score_jobs, score_records, score_table
from utils.scoring.table import ScoreTable


@dataclass
class Evaluation:
    """Scores of the readable images, the metrics row made of them, and ``{path, reason}`` of the others."""

    table: ScoreTable
    row: dict[str, Any]
    unreadable: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Candidate:
    """A detector that takes part in an evaluation: its name there, its checkpoint and the digest of that file."""

    name: str
    detector: Detector
    checkpoint: dict[str, Any]
    digest: str


def evaluate_tiers(
    candidates: Sequence[Candidate],
    listing: Listing,
    tiers: Sequence[str],
    cache: ScoreCache,
    *,
    dataset: str | None = None,
    batch_size: int = 32,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[tuple[ScoreTable, list[dict[str, str]]]]:
    """Score a listing, degraded by each tier, with all candidates; no image is read for scores in the cache.

    Args:
        dataset: the name of the listing in the tables, its own by default.

    Returns:
        Per candidate, a table with all tiers one after the other, and ``{path, reason}`` of the unreadable images.
    """
    data = listing_digest(listing) if cache.folder else ""
    found: dict[tuple[int, str], Scores] = {}
    missing: list[tuple[int, str]] = []
    for key in itertools.product(range(len(candidates)), tiers):
        scores = cache.load(candidates[key[0]].digest, data, key[1], len(listing.records))
        if scores is None:
            missing.append(key)
        else:
            found[key] = scores
    if found:
        part = "all" if not missing else f"{len(found)} of {len(found) + len(missing)}"
        print(f"{listing.name} {listing.split}: {part} score sets taken from {cache.folder}", file=sys.stderr)
    if missing:
        jobs = [(candidates[number].detector, tier) for number, tier in missing]
        results = score_jobs(
            jobs,
            listing.records,
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
            description=f"{listing.name} {listing.split}",
        )
        for (number, tier), scores in zip(missing, results, strict=True):
            found[number, tier] = scores
            cache.store(candidates[number].digest, data, tier, scores)
    output = []
    for number, candidate in enumerate(candidates):
        parts = [
            score_table(
                listing.records, found[number, tier], candidate.detector.operating_point, dataset or listing.name, tier
            )
            for tier in tiers
        ]
        failures = found[number, tiers[0]].unreadable  # of every tier: the file is read before it is degraded
        unreadable = [{"path": listing.records[index].path, "reason": reason} for index, reason in failures]
        output.append((ScoreTable.join(parts), unreadable))
    return output


def evaluate_listing(
    detector: Detector,
    listing: Listing,
    *,
    name: str = "",
    batch_size: int = 32,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
    n_boot: int = 1000,
) -> Evaluation:
    """Score a listing with a detector and measure it at the checkpoint's own threshold (0.5 if it has none yet)."""
    scores = score_records(
        detector,
        listing.records,
        batch_size=batch_size,
        workers=workers,
        dtype=dtype,
        description=f"{listing.name} {listing.split}",
    )
    table = score_table(listing.records, scores, detector.operating_point, listing.name)
    unreadable = [{"path": listing.records[index].path, "reason": reason} for index, reason in scores.unreadable]
    result = Evaluation(table, {}, unreadable)
    identity = {"checkpoint": name, "model": detector.name, "dataset": listing.name, "split": listing.split}
    result.row = measure(result, detector.operating_point, n_boot=n_boot, **identity)
    return result


def measure(result: Evaluation, point: OperatingPoint, n_boot: int = 1000, **identity: Any) -> dict[str, Any]:
    """Make the metrics row of scores at the ``balanced`` threshold (0.5 while there is none)."""
    table, unreadable = result.table, len(result.unreadable)
    return metrics_row(
        table.label, table.p_fake, point.threshold(), n_boot=n_boot, tier="clean", unreadable=unreadable, **identity
    )


def summary_line(row: dict[str, Any]) -> str:
    """Format a metrics row as ``test demo n_real=240 ... auc=0.981 [0.970,0.990] ...``; absent figures are left out."""
    parts = [f"{row['split']} {row['dataset']}", f"n_real={row['n_real']}", f"n_fake={row['n_fake']}"]
    for key in ("auc", "acc", "real_acc", "fake_acc"):
        if row[key] is not None:
            interval = row.get(f"{key}_ci")
            parts.append(f"{key}={row[key]:.3f}" + (f" [{interval[0]:.3f},{interval[1]:.3f}]" if interval else ""))
    parts.append(f"threshold={row['threshold']:.3f}")
    if row["unreadable"]:
        parts.append(f"unreadable={row['unreadable']}")
    return " ".join(parts)


def checkpoint_names(paths: Sequence[Path]) -> list[str]:
    """Name checkpoints for tables: the run folder of a best.pt, else the file's stem, numbered where they collide."""
    names = [path.parent.name if path.stem in ("best", "last") and path.parent.name else path.stem for path in paths]
    return unique_names(names)
