"""Raw numbers of cells as files, and the tables made from them: means, tests against the controls, verdicts."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from utils.errors import UserError
from utils.explanations.registry import CONTROLS, title_of
from utils.files import atomic_write_text, read_text
from utils.metrics.comparison import holm
from utils.tables import write_table

METRICS = tuple(
    "zero road deletion insertion flip pointing mask_iou grid_pointing face_share random_weights "
    "random_weights_road".split()
)
COLUMNS = ("path", "label", "generator", "logit", "method", *METRICS)
COUNTS = {"n_mask": "pointing", "n_grid": "grid_pointing", "n_face": "face_share", "n_random_weights": "random_weights"}
WITHOUT_INTERVAL = ("zero", "random_weights", "random_weights_road")
N_BOOT = 1000
ALPHA = 0.05
UNCHANGED = 0.5  # a method ignores the detector if its maps correlate this much with those of random weights
FAITHFUL, UNFAITHFUL, CONTROL = "beats all controls", "not faithful here", "control"
KEYS = (("checkpoint", "Checkpoint"), ("dataset", "Data"), ("title", "Method"), ("n", "Images"))
FAITHFULNESS = (
    *KEYS,
    ("road", "ROAD (logits)"),
    ("best_control", "Best control"),
    ("gain", "ROAD above it"),
    ("p_value", "p (controls)"),
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
FORMATS = {"p_value": ".1e", "zero": ".2f", "random_weights": ".2f", "flip": ".2f", "gain": "+.3f"}
CAPTION = (
    "Faithfulness of explanations. ROAD: half the difference between the logits after removing the least and the most "
    "relevant pixels, 0 is chance. Best control: the control whose ROAD the method exceeds least, of random map, "
    "centre prior, edge map and the method itself with shuffled weights. p: one-sided Wilcoxon signed-rank tests on "
    "the same images, the largest over the controls, Holm-adjusted for the methods. Flips: verdicts changed by "
    "attacking the top segments. Random weights: rank correlation with the maps of shuffled weights. Intervals: 95 % "
    "bootstrap over images."
)
OLD_CELLS = (
    " In these cells, maps from shuffled weights were not scored, so the test lacks that control; the column Random "
    "weights comes from at most 16 images, mostly fakes."
)
CAPTION_LOCALISATION = (
    "Where maps for fake point. Pointing: the highest point lies in the manipulated region; grid pointing: the same in "
    "a mosaic with three reals, where the centre has no advantage."
)

Raw = list[dict[str, Any]]


def write_raw(path: Path, rows: Raw) -> None:
    """Write the rows of a cell as CSV: floats with six significant digits, NaN as an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_compact(row[column]) for column in COLUMNS])
    atomic_write_text(path, text.getvalue())


def _compact(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def read_raw(path: Path) -> Raw:
    """Read the rows of a cell; metrics are floats, NaN where the field is empty or the column is missing.

    Raises:
        UserError: the file does not exist or is another table.
    """
    rows: Raw = list(csv.DictReader(io.StringIO(read_text(path, "the raw numbers of a cell"))))
    if not rows or not {"method", "road"} <= set(rows[0]):
        raise UserError(f"expected the raw numbers of a cell in {path}, got another table; measure it again")
    return [row | {metric: float(row.get(metric) or "nan") for metric in METRICS} for row in rows]


def mean_interval(values: np.ndarray, n_boot: int, seed: int) -> tuple[float | None, list[float] | None]:
    """Mean of the finite values and its 95 % percentile bootstrap interval (None below two values)."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    if len(values) < 2:
        return float(values.mean()), None
    draws = np.random.default_rng(seed).integers(0, len(values), (n_boot, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), [float(low), float(high)]


def better(gains: np.ndarray) -> float:
    """One-sided p-value of Wilcoxon's signed-rank test for paired gains above 0; 1 below two gains."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(gains, alternative="greater").pvalue) if len(gains) > 1 and gains.any() else 1.0


def against_controls(columns: Mapping[tuple[str, str], np.ndarray], method: str) -> dict[str, Any]:
    """Compare the ROAD of a method with every control on the same images.

    To beat the best control a method must beat all of them (an intersection-union test), so ``p_value`` is the largest
    over the controls. ``best_control``, ``gain`` (in logits) and ``effect`` (in standard deviations) belong to the
    control with the smallest gain.
    """
    road = columns[method, "road"]
    others = {CONTROLS[name]: columns[name, "road"] for name in CONTROLS if (name, "road") in columns}
    others["Shuffled weights"] = columns[method, "random_weights_road"]
    gains = {name: road - other for name, other in others.items()}
    gains = {name: gain[np.isfinite(gain)] for name, gain in gains.items() if np.isfinite(gain).any()}
    best = min(gains, key=lambda name: gains[name].mean())
    return {
        "best_control": best,
        "gain": float(gains[best].mean()),
        "effect": float(gains[best].mean() / (gains[best].std() + 1e-12)),
        "p_value": max(better(gain) for gain in gains.values()),
    }


def cell_rows(raw: Raw, checkpoint: str, dataset: str, seed: int) -> Raw:
    """One row per method of a cell: means with intervals, test against the controls, verdict."""
    methods = list(dict.fromkeys(row["method"] for row in raw))
    columns = {
        (method, metric): np.array([row[metric] for row in raw if row["method"] == method])
        for method in methods
        for metric in METRICS
    }
    rows = []
    for method in methods:
        row = {"checkpoint": checkpoint, "dataset": dataset, "method": method, "title": title_of(method)}
        row |= {"n": len(columns[method, "road"]), "verdict": CONTROL}
        for metric in METRICS:
            row[metric], interval = mean_interval(columns[method, metric], N_BOOT, seed)
            if metric not in WITHOUT_INTERVAL:
                row[f"{metric}_ci"] = interval
        row |= {name: int(np.isfinite(columns[method, metric]).sum()) for name, metric in COUNTS.items()}
        rows.append(row | ({} if method in CONTROLS else against_controls(columns, method)))
    tested = [row for row in rows if row["method"] not in CONTROLS]
    corrected = cast("list[float]", holm([row["p_value"] for row in tested]))  # none is None
    for row, p_value in zip(tested, corrected, strict=True):
        row["p_value"] = p_value
        depends = row["random_weights"] is None or row["random_weights"] < UNCHANGED
        row["verdict"] = FAITHFUL if p_value < ALPHA and row["gain"] > 0 and depends else UNFAITHFUL
    return rows


def write_tables(rows: Raw, folder: Path) -> None:
    """Write ``faithfulness`` and, if there are masks or faces, ``localisation`` as .csv, .md and .tex."""
    measured = any(row["random_weights_road"] is not None for row in rows)
    write_table(
        rows, FAITHFULNESS, folder / "faithfulness", fmt=FORMATS, caption=CAPTION + ("" if measured else OLD_CELLS)
    )
    placed = [row for row in rows if row["n_mask"] or row["n_face"]]
    if placed:
        write_table(placed, LOCALISATION, folder / "localisation", caption=CAPTION_LOCALISATION)
