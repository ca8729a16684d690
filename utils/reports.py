"""One detector on one data set: scores table, metrics row and the line that scripts print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from datasets.spec import Listing
from models import Detector
from utils.inference import score_records, score_table
from utils.metrics import metrics_row
from utils.score_report import unique_names
from utils.scores import ScoreTable


@dataclass
class Evaluation:
    """Scores of the readable images, the metrics row made of them, and ``{path, reason}`` of the others."""

    table: ScoreTable
    row: dict[str, Any]
    unreadable: list[dict[str, str]] = field(default_factory=list)


def evaluate_listing(
    detector: Detector,
    checkpoint: dict[str, Any],
    listing: Listing,
    *,
    name: str = "",
    batch_size: int = 32,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
    n_boot: int = 1000,
) -> Evaluation:
    """Score a listing with a detector and measure it at the checkpoint's own threshold (0.5 if it has none yet)."""
    scores = score_records(detector, listing.records, batch_size=batch_size, workers=workers, dtype=dtype,
                           description=f"{listing.name} {listing.split}")  # fmt: skip
    table = score_table(listing.records, scores, detector.calibration, listing.name)
    unreadable = [{"path": listing.records[index].path, "reason": reason} for index, reason in scores.unreadable]
    result = Evaluation(table, {}, unreadable)
    identity = {"checkpoint": name, "model": checkpoint["model"], "dataset": listing.name, "split": listing.split}
    result.row = measure(result, checkpoint["thresholds"], n_boot=n_boot, **identity)
    return result


def measure(
    result: Evaluation, thresholds: dict[str, float] | None, n_boot: int = 1000, **identity: Any
) -> dict[str, Any]:
    """Make the metrics row of scores at the ``balanced`` threshold (0.5 while there is none)."""
    threshold = (thresholds or {}).get("balanced", 0.5)
    table, unreadable = result.table, len(result.unreadable)
    return metrics_row(
        table.label, table.p_fake, threshold, n_boot=n_boot, tier="clean", unreadable=unreadable, **identity
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
