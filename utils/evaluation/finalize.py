"""The last step of every script that makes a checkpoint: fit the operating point on validation, report the test."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datasets.perturbations import CLEAN
from datasets.splits import TrainingData
from models.operating_point import OperatingPoint
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.evaluation.evaluate import Evaluation, evaluate_listing, measure, summary_line
from utils.evaluation.operating_point import fit_operating_point
from utils.files import plain_values
from utils.scoring.scorer import score_jobs, score_table


def finalize(
    path: Path,
    data: TrainingData,
    batch_size: int,
    device: torch.device,
    calibration: str = "temperature",
    tiers: Sequence[str] = (CLEAN,),
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Fit calibration and thresholds on validation, store them and all metrics in the checkpoint, print the test rows.

    Every image is scored once per tier: the ``calibration`` (temperature, isotonic or none) is applied to the logits
    afterwards. It and the thresholds are fitted on the validation images as each of the ``tiers`` delivers them; the
    metrics are of the images as they are.

    Returns:
        The metrics rows of the test splits, and ``{path: reason}`` of the unreadable images.
    """
    detector, checkpoint = load_detector(path, device)

    def score(listings: Sequence) -> list[Evaluation]:
        return [evaluate_listing(detector, part, batch_size=batch_size, n_boot=0) for part in listings]

    valid, test = score(data.valid), score(data.test)
    fitted_on = [result.table for result in valid] if CLEAN in tiers else []
    if delivered := [tier for tier in tiers if tier != CLEAN]:
        for listing in data.valid:
            jobs = [(detector, tier) for tier in delivered]
            found = score_jobs(jobs, listing.records, batch_size=batch_size, description=f"{listing.name} delivered")
            for tier, scores in zip(delivered, found, strict=True):
                fitted_on.append(score_table(listing.records, scores, OperatingPoint(), listing.name, tier))
    point = fit_operating_point(fitted_on, calibration)
    checkpoint.update(point.to_checkpoint())
    rows: dict[str, list[dict[str, Any]]] = {}
    for split, results in (("valid", valid), ("test", test)):
        for result in results:
            result.table.p_fake = point.p_fake(result.table.logit)
        identity = {"checkpoint": str(path), "model": checkpoint["model"], "split": split}
        rows[split] = [
            measure(result, point, dataset=listing.name, **identity)
            for result, listing in zip(results, getattr(data, split), strict=True)
        ]
    checkpoint["metrics"] = {"best_epoch": checkpoint["epoch"], **plain_values(rows)}
    save_checkpoint(path, {**checkpoint, "state_dict": load_checkpoint(path)["state_dict"]})
    for row in rows["test"]:
        print(summary_line(row))
    print(f"checkpoint {path}")
    unreadable = {item["path"]: item["reason"] for result in (*valid, *test) for item in result.unreadable}
    report_unreadable(list(unreadable.items()))
    return rows["test"], unreadable


def report_unreadable(unreadable: Sequence[tuple[str, str]]) -> None:
    """Say on stderr which images (path, reason) could not be read; they were skipped."""
    for path, reason in unreadable[:10]:
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    if len(unreadable) > 10:
        print(f"unreadable: {len(unreadable) - 10} more", file=sys.stderr)
