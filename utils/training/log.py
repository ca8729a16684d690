"""The record of a training run: log.csv, the curves, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from utils.figures import save_figure, training_curve_figure
from utils.files import atomic_write_text


def write_log(folder: Path, history: list[dict[str, Any]]) -> None:
    """Rewrite log.csv, curves.pdf and curves.png from the whole history; add the last epoch to TensorBoard."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    atomic_write_text(folder / "log.csv", text.getvalue())
    save_figure(training_curve_figure(history), folder / "curves")
    write_tensorboard(folder, history[-1])


def write_tensorboard(folder: Path, row: dict[str, Any]) -> None:
    """Add one epoch to the event file of the run; does nothing when TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for key, value in row.items():
            if key != "epoch":
                writer.add_scalar(key, value, row["epoch"])
