"""Do numbers that were made again lie within the intervals of those that are committed?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json
from utils.tables import write_table

FILES = ("metrics.json", "one_class.json", "attacks.json")
IDENTITY = ("checkpoint", "dataset", "split", "tier", "generator", "attack", "norm", "size", "direction")
COUNTS = ("n_real", "n_fake", "n")
FIGURES = ("auc", "acc", "clean_acc", "robust_acc")
ROUNDING = 5e-4  # results are published with three decimals
AGREES, DIFFERS, OTHER_IMAGES, NEW = "agrees", "DIFFERS", "other images", "not published"
COLUMNS = [
    ("results", "Results"),
    ("checkpoint", "Checkpoint"),
    ("dataset", "Data"),
    ("what", "What"),
    ("figure", "Figure"),
    ("published", "Published"),
    ("found", "Found"),
    ("verdict", "Verdict"),
]
CAPTION = "Results made again against the committed ones: a figure agrees when it lies in the committed 95 % interval."


def compare_folders(found: Path, committed: Path) -> list[dict[str, Any]]:
    """Compare every metrics file below ``found`` with the one of the same place below ``committed``.

    Rows are matched by checkpoint, data set, split, tier, generator and attack. Returns one row for each figure that
    has an interval there, with ``verdict``: AGREES, DIFFERS, OTHER_IMAGES (the number of images is not the same) or
    NEW (nothing was committed for it).

    Raises:
        UserError: a file is no list of rows.
    """
    rows = []
    for file in sorted(path for path in found.rglob("*.json") if path.name in FILES):
        place = file.relative_to(found)
        published = {_identity(row): row for row in read_rows(committed / place)}
        for row in read_rows(file):
            rows += _compare_row(place.parent.as_posix(), row, published.get(_identity(row), {}))
    return rows


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, none if there is no such file. Raises UserError."""
    rows = read_json(file, "a metrics file") if file.exists() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"expected a list of rows in {file}, got something else; make it again")
    return rows


def _identity(row: dict[str, Any]) -> tuple:
    return tuple(row.get(key) for key in IDENTITY)


def _compare_row(place: str, row: dict[str, Any], published: dict[str, Any]) -> list[dict[str, Any]]:
    same_images = all(row.get(key) == published.get(key) for key in COUNTS)
    compared = []
    for figure in FIGURES:
        if row.get(figure) is None or row.get(f"{figure}_ci") is None:
            continue
        interval = published.get(f"{figure}_ci")
        if interval is None:
            verdict = NEW
        elif not same_images:
            verdict = OTHER_IMAGES
        else:
            inside = interval[0] - ROUNDING <= row[figure] <= interval[1] + ROUNDING
            verdict = AGREES if inside else DIFFERS
        what = " ".join(str(row[key]) for key in ("tier", "generator", "attack", "size") if row.get(key))
        compared.append(
            {
                "results": place,
                "checkpoint": row.get("checkpoint"),
                "dataset": row.get("dataset"),
                "what": what,
                "figure": figure,
                "published": published.get(figure),
                "published_ci": interval,
                "found": row[figure],
                "verdict": verdict,
            }
        )
    return compared


def write_comparison(rows: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write ``comparison`` as .csv, .md and .tex; returns the Markdown."""
    write_table(rows, COLUMNS, folder / "comparison", CAPTION)
    return (folder / "comparison.md").read_text(encoding="utf-8")


def count_verdicts(rows: Sequence[dict[str, Any]]) -> str:
    """One line: ``48 figures agree, 0 differ, 16 have no published counterpart``."""
    counts = {name: sum(row["verdict"] == name for row in rows) for name in (AGREES, DIFFERS, OTHER_IMAGES, NEW)}
    return (
        f"{counts[AGREES]} figures agree, {counts[DIFFERS]} differ, "
        f"{counts[OTHER_IMAGES] + counts[NEW]} have no published counterpart"
    )
