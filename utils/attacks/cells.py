"""Cells: the result of one attack on one data set, from which every table and figure is drawn.

``cells/<name>.csv.gz`` is a scores file of the adversarial images with further columns: ``attacked`` (0 for images that
the direction of the attack excludes), p_fake of the clean image and of the adversarial image after rounding to 8 bits
and after JPEG, and the size of the change in both norms. ``cells/<name>.json`` holds the settings and everything that
belongs to the cell as a whole. The JSON file is written last: without it the cell is unfinished, and another ``key`` in
it means other settings.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import atomic_write_text, read_json, read_text, write_json
from utils.scoring.table import COLUMNS, ScoreTable, read_scores

EXTRA_COLUMNS = ("attacked", "clean_p_fake", "rounded_p_fake", "jpeg_p_fake", "linf", "l2")


@dataclass
class Cell:
    """One attack at one eps on one data set, crafted with one detector and scored by one.

    ``table`` scores the adversarial images, ``extra`` has an array (N,) for each of EXTRA_COLUMNS, and ``info`` is the
    content of the JSON file.
    """

    table: ScoreTable
    extra: dict[str, np.ndarray]
    info: dict[str, Any]

    @property
    def attacked(self) -> np.ndarray:
        """Whether the attack was allowed to change an image, (N,) bool."""
        return self.extra["attacked"] > 0

    def right(self, variant: str = "adversarial") -> np.ndarray:
        """Whether the verdict is right, (N,) bool; the variant is adversarial, clean, rounded or jpeg."""
        p_fake = self.table.p_fake if variant == "adversarial" else self.extra[f"{variant}_p_fake"]
        return (p_fake >= self.info["threshold"]) == (self.table.label == 1)


def is_outdated(info: Mapping[str, Any], current: Mapping[str, str]) -> bool:
    """Whether a result belongs to another file than the checkpoint that now has its name.

    Args:
        info: a JSON file with ``digests``, which maps names of checkpoints to digests.
        current: digests of the checkpoints of this run by name.
    """
    names = info.get("digests") or dict.fromkeys([info.get("checkpoint"), info.get("source")])
    return any(current.get(name, digest) != digest for name, digest in names.items())


def is_finished(stem: Path, key: str) -> bool:
    """Whether the cell has been computed with exactly these settings."""
    json_file = stem.with_name(stem.name + ".json")
    return json_file.is_file() and read_json(json_file, "an attack cell").get("key") == key


def write_cell(stem: Path, cell: Cell) -> None:
    """Write both files of a cell atomically, the JSON file last.

    Raises:
        UserError: a file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *EXTRA_COLUMNS])
    columns = [list(getattr(cell.table, name)) for name in COLUMNS]
    # Probabilities in full: a rounded one may cross the threshold.
    digits = {name: 17 if name.endswith("p_fake") else 6 for name in EXTRA_COLUMNS}
    extras = [[f"{value:.{digits[name]}g}" for value in cell.extra[name]] for name in EXTRA_COLUMNS]
    writer.writerows(zip(*columns, *extras, strict=True))
    atomic_write_text(stem.with_name(stem.name + ".csv.gz"), text.getvalue())
    write_json(stem.with_name(stem.name + ".json"), cell.info)


def read_cell(json_file: Path) -> Cell:
    """Read a finished cell.

    Raises:
        UserError: one of its files is missing or damaged.
    """
    info = read_json(json_file, "an attack cell")
    scores_file = json_file.with_name(json_file.name.removesuffix(".json") + ".csv.gz")
    table = read_scores(scores_file)
    rows = list(csv.DictReader(io.StringIO(read_text(scores_file, "an attack cell"), newline="")))
    extra = {name: np.array([float(row[name]) for row in rows]) for name in EXTRA_COLUMNS}
    return Cell(table, extra, info)


def current_results(folder: Path, current: Mapping[str, str]) -> list[Path]:
    """JSON files of a folder that are not outdated, sorted; stderr reports how many are (see :func:`is_outdated`)."""
    files = sorted(folder.glob("*.json"))
    kept = [file for file in files if not is_outdated(read_json(file, "an attack result"), current)]
    if len(kept) < len(files):
        n = len(files) - len(kept)
        print(f"{folder}: {n} results of earlier checkpoints with these names are left out", file=sys.stderr)
    return kept
