"""Scores of detectors on sources that were left out of their training, and what is fitted on them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.operating_point import Calibration, OperatingPoint
from utils.errors import UserError
from utils.evaluation.operating_point import doubts, fit_operating_point, verdict_shares
from utils.evaluation.scored_sets import IN_DOMAIN, ScoredSet, read_evaluations
from utils.scoring.table import ScoreTable

LEFT_OUT = "left-out"  # the split of such scores


def read_left_out(files: Sequence[str], tiers: Sequence[str] | None) -> list[ScoredSet]:
    """Read the scores of detectors on sources that they were not trained on, one set per file, source and tier.

    Raises:
        UserError: a file is not a scores file or has test images, a detector was trained on its source, or a tier is
            missing.
    """
    sets = read_evaluations([Path(file) for file in files])
    for scored in sets:
        if scored.seen == IN_DOMAIN:
            raise UserError(
                f"expected scores of sources that were left out of training, got those of {scored.info['checkpoint']}, "
                f"which was trained on {scored.info['dataset']}; pass the files *__left-out.csv.gz"
            )
        if scored.info["split"] == "test":
            raise UserError(
                f"expected no scores of test images, got those of {scored.info['dataset']}; pass those of another split"
            )
    found = {scored.tier for scored in sets}
    if missing := set(tiers or ()) - found:
        raise UserError(f"expected scores of the tier {', '.join(sorted(missing))}, got {', '.join(sorted(found))}")
    return [scored for scored in sets if scored.tier in (tiers or found)]


def check_recipe(sets: Sequence[ScoredSet], checkpoint: dict[str, Any]) -> None:
    """Raise UserError if scores are neither those of the checkpoint nor of other runs of its architecture."""
    command = checkpoint["train_args"].get("command")
    for scored in sets:
        of_checkpoint = scored.info.get("train_command") in (None, command)
        same_model = scored.info.get("model") in (None, checkpoint["model"])
        if not same_model or not (of_checkpoint or "left_out" in scored.info):
            raise UserError(
                f"expected scores of the checkpoint, a {checkpoint['model']}, or of runs of its recipe, got those of "
                f"{scored.info['checkpoint']}; pass its own"
            )


def check_calibrated_on_training_sources(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint was calibrated on left-out sources, so that its scale is not that of the runs."""
    if any(entry["split"] == LEFT_OUT for entry in checkpoint["train_args"].get("calibrated_on") or []):
        raise UserError(
            f"expected a checkpoint as it was trained, got {path}, which was calibrated on left-out sources; pass the "
            "one it was made from"
        )


def on_scale_of(calibration: Calibration, sets: Sequence[ScoredSet]) -> list[ScoreTable]:
    """Return the scores of several runs with logits on the scale of a checkpoint that has this ``calibration``.

    Runs of one recipe differ in how large their logits are. Run and checkpoint were both calibrated on validation
    images: a logit is mapped to that of the same p_fake.

    Raises:
        UserError: a calibration is isotonic.
    """
    return [
        replace(scored.table, logit=rescaled(scored.table.logit, scored.info.get("calibration"), calibration))
        for scored in sets
    ]


def rescaled(logits: np.ndarray, own: Calibration, wanted: Calibration) -> np.ndarray:
    """Map logits ``(N,)`` with the calibration ``own`` to those with the same p_fake under ``wanted``.

    Without ``own``, their scale is unknown and they stay.
    """
    if own is None:
        return logits
    for calibration in (own, wanted):
        if calibration and calibration["method"] != "temperature":
            raise UserError(
                f"expected a temperature as the calibration of runs and checkpoint, got {calibration['method']}; train "
                "with --calibration temperature"
            )
    (t_own, b_own), (t, b) = ((c.get("temperature", 1.0), c.get("bias") or 0.0) for c in (own, wanted or {}))
    return (logits / t_own + b_own - b) * t


def count_images(tables: Sequence[ScoreTable]) -> list[dict[str, Any]]:
    """Return the sources of the tables and their numbers of images, whatever their tiers, for the checkpoint."""
    images: dict[str, dict[str, int]] = {}
    for table in tables:
        for dataset, path, label in zip(table.dataset, table.path, table.label.tolist(), strict=True):
            images.setdefault(dataset, {})[path] = label
    return [
        {"dataset": name, "split": LEFT_OUT, "n_real": len(labels) - sum(labels), "n_fake": sum(labels)}
        for name, labels in ((name, list(found.values())) for name, found in images.items())
    ]


def save_fitted(
    target: Path, checkpoint: dict[str, Any], tables: Sequence[ScoreTable], method: str
) -> tuple[OperatingPoint, list[dict[str, Any]]]:
    """Fit the operating point on scores, write the checkpoint, and print the verdicts of each source.

    Returns:
        The operating point, and the verdicts, one row per source and class.
    """
    from utils.checkpoints.file import save_checkpoint

    point = fit_operating_point(tables, method)
    metrics = {**checkpoint.get("metrics", {}), "valid": [], "test": []}  # these were of the former operating point
    save_checkpoint(target, {**checkpoint, **point.to_checkpoint(), "metrics": metrics})
    rows = verdict_shares(tables, point)
    for row in rows:
        print("{dataset} {label} n={n} called_fake={fake:.3f} unsure={unsure:.3f}".format(**row))
    print(f"checkpoint {target}")
    for doubt in doubts(tables, point):
        print(f"warning: {doubt}", file=sys.stderr)
    return point, rows
