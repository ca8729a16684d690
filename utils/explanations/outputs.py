"""The files that explain.py writes beside the figure of each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.evaluation.report import unique_names
from utils.explanations.average_maps import average_figure
from utils.explanations.figures import Explained, comparison_figure, contact_sheet
from utils.explanations.overlay import overlay
from utils.figures import save_figure
from utils.files import atomic_write_bytes

RESERVED = ("comparison", "contact_sheet", "average_maps")  # names of the sheets


def distinct_stems(paths: Sequence[str]) -> list[str]:
    """A file name for the results of each path, numbered where two files have one name."""
    return unique_names([*RESERVED, *(Path(path).stem for path in paths)])[len(RESERVED) :]


def write_overlay(path: Path, image: np.ndarray, heat: np.ndarray, seen: np.ndarray) -> None:
    """Write an overlay as PNG at the size of its picture."""
    drawn = cv2.cvtColor(overlay(image, heat, seen), cv2.COLOR_RGB2BGR)
    atomic_write_bytes(path, cv2.imencode(".png", drawn)[1].tobytes())


def write_sheets(items: Sequence[Explained], methods: Sequence[str], folder: Path, contact: bool) -> None:
    """Write methods side by side and, if asked for, sheets by outcome and average maps."""
    if len(methods) > 1:
        save_figure(comparison_figure(items, methods), folder / "comparison")
    if not contact:
        return
    for method in methods:
        suffix = "" if len(methods) == 1 else f"__{method}"
        save_figure(contact_sheet(items, method), folder / f"contact_sheet{suffix}")
        save_figure(average_figure(items, method), folder / f"average_maps{suffix}")
