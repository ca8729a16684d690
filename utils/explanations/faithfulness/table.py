"""Tables from the raw numbers of cells: means with intervals, tests against the random map, verdicts."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.explanations.registry import CONTROLS, title_of
from utils.files import atomic_write_text, read_text
from utils.tables import write_table

ALPHA = 0.05
UNCHANGED = 0.5  # a method ignores the detector if its maps correlate this much with those of random weights
FAITHFUL, UNFAITHFUL, CONTROL = "beats random", "not faithful here", "control"
KEYS = (("checkpoint", "Checkpoint"), ("dataset", "Data"), ("title", "Method"), ("n", "Images"))
FAITHFULNESS = (
    *KEYS,
    ("road", "ROAD (logits)"),
    ("p_value", "p (random)"),
    ("deletion", "Deletion"),
    ("insertion", "Insertion"),
    ("flip", "Flips"),
    ("random_weights", "Random weights"),
    ("zero", "All zero"),
    ("verdict", "Verdict"),
)
LOCALISATION = (
    *KEYS[:3],
    ("n_mask", "Masks"),
    ("pointing", "Pointing"),
    ("n_grid", "Mosaics"),
    ("grid_pointing", "Grid pointing"),
    ("mask_iou", "Mask IoU"),
    ("n_face", "Faces"),
    ("face_share", "In face box"),
)
FORMATS = {"p_value": ".1e", "zero": ".2f", "random_weights": ".2f", "flip": ".2f"}

Raw = list[dict[str, Any]]


def write_raw(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write the rows of a cell as CSV: floats with six significant digits, NaN as an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_compact(row[column]) for column in columns])
    atomic_write_text(path, text.getvalue())


def _compact(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def read_raw(path: Path, metrics: Sequence[str]) -> Raw:
    """Read the rows of a cell; metrics are floats, NaN for an empty field.

    Raises:
        UserError: the file does not exist or a column is missing.
    """
    rows: Raw = list(csv.DictReader(io.StringIO(read_text(path, "the raw numbers of a cell"))))
    if not rows or not {"method", *metrics} <= set(rows[0]):
        raise UserError(
            f"expected rows with method, {', '.join(metrics)} in {path}, got another table; measure it again"
        )
    for row in rows:
        row |= {metric: float(row[metric]) if row[metric] else math.nan for metric in metrics}
    return rows


def mean_interval(values: np.ndarray, n_boot: int, seed: int) -> tuple[float | None, list[float] | None]:
    """Mean of the finite values and its 95 % percentile bootstrap interval (None below two values)."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    if len(values) < 2 or not n_boot:
        return float(values.mean()), None
    draws = np.random.default_rng(seed).integers(0, len(values), (n_boot, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), [float(low), float(high)]


def better_than_random(gains: np.ndarray) -> float | None:
    """One-sided p-value of Wilcoxon's signed-rank test for paired gains above 0; None below two gains."""
    from scipy.stats import wilcoxon

    gains = gains[np.isfinite(gains)]
    if len(gains) < 2:
        return None
    return 1.0 if not gains.any() else float(wilcoxon(gains, alternative="greater").pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for multiple testing (Holm, Scandinavian Journal of Statistics 1979); None stays None."""
    present = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, (value, index) in enumerate(present):
        highest = max(highest, min(1.0, value * (len(present) - place)))
        adjusted[index] = highest
    return adjusted


def cell_rows(raw: Raw, checkpoint: str, dataset: str, metrics: Sequence[str], n_boot: int, seed: int) -> Raw:
    """One row per method of a cell: means with intervals, test against the random map, verdict."""
    methods = list(dict.fromkeys(row["method"] for row in raw))
    columns = {
        (method, metric): np.array([row[metric] for row in raw if row["method"] == method])
        for method in methods
        for metric in metrics
    }
    chance = columns["random", "road"]
    tested = [method for method in methods if method != "random"]
    p_values = dict(zip(tested, holm([better_than_random(columns[m, "road"] - chance) for m in tested]), strict=True))
    rows = []
    for method in methods:
        gains = columns[method, "road"] - chance
        row: dict[str, Any] = {
            "checkpoint": checkpoint,
            "dataset": dataset,
            "method": method,
            "title": title_of(method),
            "n": len(chance),
            "p_value": p_values.get(method),
            "gain": float(np.nanmean(gains)),
            "effect": float(np.nanmean(gains) / (np.nanstd(gains) + 1e-12)),
        }
        for metric in metrics:
            row[metric], interval = mean_interval(columns[method, metric], n_boot, seed)
            if metric not in ("zero", "random_weights"):
                row[f"{metric}_ci"] = interval
        for name, metric in (("n_mask", "pointing"), ("n_grid", "grid_pointing"), ("n_face", "face_share")):
            row[name] = int(np.isfinite(columns[method, metric]).sum())
        row["verdict"] = verdict(method, row["p_value"], row["gain"], row["random_weights"])
        rows.append(row)
    return rows


def verdict(method: str, p_value: float | None, gain: float, random_weights: float | None) -> str:
    """Verdict on a method: faithful if it beats the random map and changes when the weights are shuffled."""
    if method in CONTROLS:
        return CONTROL
    beats = p_value is not None and p_value < ALPHA and gain > 0
    depends = random_weights is None or random_weights < UNCHANGED
    return FAITHFUL if beats and depends else UNFAITHFUL


def write_tables(rows: Raw, folder: Path) -> None:
    """Write ``faithfulness`` and, if there are masks or faces, ``localisation`` as .csv, .md and .tex."""
    write_table(
        rows,
        FAITHFULNESS,
        folder / "faithfulness",
        fmt=FORMATS,
        caption="Faithfulness of explanations. ROAD: logit lost by removing what a map calls relevant, against what "
        "it calls irrelevant, 0 is chance; p: Wilcoxon signed-rank test of ROAD against the random map on the same "
        "images, Holm-adjusted; flips: verdicts changed by attacking the top segments; random weights: rank "
        "correlation with the maps of shuffled weights. Intervals: 95 % bootstrap over images.",
    )
    placed = [row for row in rows if row["n_mask"] or row["n_face"]]
    if placed:
        write_table(
            placed,
            LOCALISATION,
            folder / "localisation",
            caption="Where maps for fake point. Pointing: the highest point lies in the manipulated region; grid "
            "pointing: the same in a mosaic with three reals, where the middle is worth nothing.",
        )
