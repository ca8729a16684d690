"""Scores of detectors on sources that were left out of their training, and what is fitted on them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.operating_point import OperatingPoint
from utils.errors import UserError
from utils.evaluation.operating_point import doubts, fit_operating_point, verdict_shares
from utils.evaluation.scored_sets import IN_DOMAIN, read_evaluations
from utils.scoring.table import ScoreTable


def read_left_out(files: Sequence[str], tiers: Sequence[str] | None) -> list[ScoreTable]:
    """Read the scores of detectors on sources that they were not trained on, one table per file, source and tier.

    Raises:
        UserError: a file is not a scores file, a detector was trained on its source, or a tier is missing.
    """
    sets = read_evaluations([Path(file) for file in files])
    for scored in sets:
        if scored.seen == IN_DOMAIN:
            raise UserError(
                f"expected scores of sources that were left out of training, got those of {scored.info['checkpoint']}, "
                f"which was trained on {scored.info['dataset']}; pass the files *__left-out.csv.gz"
            )
    found = {scored.tier for scored in sets}
    if missing := set(tiers or ()) - found:
        raise UserError(f"expected scores of the tier {', '.join(sorted(missing))}, got {', '.join(sorted(found))}")
    return [scored.table for scored in sets if scored.tier in (tiers or found)]


def count_images(tables: Sequence[ScoreTable]) -> list[dict[str, Any]]:
    """Return the sources of the tables and their numbers of images, whatever their tiers, for the checkpoint."""
    images: dict[str, dict[str, int]] = {}
    for table in tables:
        for dataset, path, label in zip(table.dataset, table.path, table.label.tolist(), strict=True):
            images.setdefault(dataset, {})[path] = label
    return [
        {"dataset": name, "split": "left-out", "n_real": len(labels) - sum(labels), "n_fake": sum(labels)}
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
