"""The last step of every script that makes a checkpoint: fit the operating point on validation, report the test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from datasets.listing.splits import TrainingData
from datasets.perturbations import CLEAN
from models.detector import Detector
from models.operating_point import OperatingPoint
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.evaluation.operating_point import doubts, fit_operating_point
from utils.files import plain_values
from utils.metrics.binary import metrics_row
from utils.metrics.source_pairs import mix_auc, pair_aucs
from utils.scoring.scorer import Job, Scores, Settings, score_table, score_together
from utils.scoring.table import ScoreTable


def finalize(
    path: Path,
    data: TrainingData,
    settings: Settings,
    device: torch.device,
    calibration: str = "temperature",
    tiers: Sequence[str] = (CLEAN,),
    score_valid: Callable[[Detector], list[Scores]] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Fit the operating point on validation, store it and all metrics in the checkpoint, print the test rows.

    The operating point is fitted on the validation images as each of the ``tiers`` delivers them; ``calibration`` is
    temperature, isotonic or none. The metrics are those of the clean images. ``score_valid`` replaces the scoring of
    the clean validation listings, for example by cached tokens.

    Returns:
        The metrics rows of the test splits, and ``{path: reason}`` of the unreadable images.
    """
    detector, checkpoint = load_detector(path, device)
    delivered: dict[str, list[ScoreTable]] = {tier: [] for tier in (CLEAN, *tiers)}
    clean: dict[str, list[tuple[str, ScoreTable, int]]] = {"valid": [], "test": []}
    unreadable: dict[str, str] = {}
    for split, tables in clean.items():
        jobs = [Job(detector, tier) for tier in (delivered if split == "valid" else (CLEAN,))]
        listings = getattr(data, split)
        if score_valid and split == "valid":
            by_listing = [[scores] for scores in score_valid(detector)]
        else:
            by_listing = score_together(jobs, listings, settings, split)
        for listing, found in zip(listings, by_listing, strict=True):
            for job, scores in zip(jobs, found, strict=True):
                table = score_table(listing.records, scores, OperatingPoint(), listing.name, job.tier)
                if split == "valid":
                    delivered[job.tier].append(table)
                if job.tier == CLEAN:
                    tables.append((listing.name, table, len(scores.unreadable)))
            unreadable |= {listing.records[index].path: reason for index, reason in found[0].unreadable}
    fitted_on = [table for tier in tiers for table in delivered[tier]]
    point = fit_operating_point(fitted_on, calibration)
    rows: dict[str, list[dict[str, Any]]] = {}
    for split, tables in clean.items():
        identity: dict[str, Any] = {"checkpoint": str(path), "model": detector.name, "split": split}
        rows[split] = [
            measure(table, point, dataset=name, unreadable=failed, **identity) for name, table, failed in tables
        ]
    sources = [(table.label, point.p_fake(table.logit)) for _, table, _ in clean["valid"]]
    valid_auc = mix_auc(pair_aucs(sources))[0]
    metrics = {"best_epoch": checkpoint["epoch"], "valid_auc": float(valid_auc), **plain_values(rows)}
    weights = load_checkpoint(path)["state_dict"]
    save_checkpoint(path, {**checkpoint, **point.to_checkpoint(), "metrics": metrics, "state_dict": weights})
    for row in rows["test"]:
        print(summary_line(row))
    print(f"checkpoint {path}")
    report_unreadable(list(unreadable.items()))
    for doubt in doubts(fitted_on, point):
        print(f"warning: {doubt}", file=sys.stderr)
    return rows["test"], unreadable


def measure(table: ScoreTable, point: OperatingPoint, n_boot: int = 1000, **identity: Any) -> dict[str, Any]:
    """Return the metrics row of logits at an operating point and its ``balanced`` threshold."""
    p_fake = point.p_fake(table.logit)
    return metrics_row(table.label, p_fake, point.threshold(), n_boot=n_boot, tier=CLEAN, **identity)


def summary_line(row: dict[str, Any]) -> str:
    """Format a metrics row as ``test demo n_real=240 ... auc=0.981 [0.970,0.990] ...``, without missing values."""
    parts = [f"{row['split']} {row['dataset']}", f"n_real={row['n_real']}", f"n_fake={row['n_fake']}"]
    for key in ("auc", "acc", "real_acc", "fake_acc"):
        if row[key] is not None:
            interval = row.get(f"{key}_ci")
            parts.append(f"{key}={row[key]:.3f}" + (f" [{interval[0]:.3f},{interval[1]:.3f}]" if interval else ""))
    parts.append(f"threshold={row['threshold']:.3f}")
    if row["unreadable"]:
        parts.append(f"unreadable={row['unreadable']}")
    return " ".join(parts)


def report_unreadable(unreadable: Sequence[tuple[str, str]]) -> None:
    """List skipped images, ``(path, reason)``, on stderr."""
    for path, reason in unreadable[:10]:
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    if len(unreadable) > 10:
        print(f"unreadable: {len(unreadable) - 10} more", file=sys.stderr)
