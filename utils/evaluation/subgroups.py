"""Does a detector serve everybody alike? Its figures for each value of a metadata column, such as age or camera."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datasets.readers.csv_list import read_csv
from utils.errors import UserError
from utils.metrics.binary import metrics_row
from utils.scoring.table import ScoreTable
from utils.tables import write_table

MIN_SIZE = 10
NO_VALUE = "(no value)"
SUBGROUP_COLUMNS = [
    ("checkpoint", "Checkpoint"),
    ("dataset", "Data"),
    ("tier", "Tier"),
    ("subgroup", "Subgroup"),
    ("n_real", "Real"),
    ("n_fake", "Fake"),
    ("auc", "AUC"),
    ("acc", "Acc"),
    ("real_acc", "Real acc"),
    ("fake_acc", "Fake acc"),
    ("eer", "EER"),
    ("note", "Note"),
]


def read_column(csv_path: str | os.PathLike[str], column: str) -> dict[str, str]:
    """One metadata column of a CSV list as path -> value; images without a value are left out.

    Any column that the list has beside its path, label, split and mask will do, ``generator`` included; case does not
    matter. Paths are those that the same list gives to evaluate.py.

    Raises:
        UserError: the list is not one, or has no such column; the message names those it has.
    """
    records = [record for part in read_csv(csv_path, require_labels=False).by_split.values() for record in part]
    columns = {key.lower(): key for record in records for key in record.meta or {}}
    wanted = column.strip().lower()
    if wanted == "generator":
        return {record.path: record.generator for record in records if record.generator}
    if wanted not in columns:
        close = difflib.get_close_matches(wanted, columns, n=1)
        raise UserError(
            f"expected a metadata column of {csv_path} ({', '.join(columns.values()) or 'it has none'}), "
            f"got {column!r}" + (f"; did you mean {columns[close[0]]!r}?" if close else "")
        )
    key = columns[wanted]
    return {record.path: record.meta[key] for record in records if record.meta and key in record.meta}


def subgroup_rows(
    table: ScoreTable,
    values: Mapping[str, str],
    threshold: float,
    n_boot: int = 1000,
    seed: int = 0,
    min_size: int = MIN_SIZE,
    **identity: Any,
) -> list[dict[str, Any]]:
    """Metrics rows of the images with each value, the largest group first; images without a value come last.

    ``table`` holds one data set and tier; ``identity`` is as in ``metrics_row``. Each row also has ``subgroup`` (the
    value, NO_VALUE without one), ``n`` and ``note``, which marks groups of fewer than ``min_size`` images: their
    figures say next to nothing. Where a group has one class only, the figures that need both are None. Many groups
    are many chances for a low figure: look at the intervals, not at the lowest number.

    Raises:
        UserError: no image of the table has a value.
    """
    by_path = {os.path.abspath(path): value for path, value in values.items()}
    found = [by_path.get(os.path.abspath(path)) or NO_VALUE for path in table.path]
    if set(found) <= {NO_VALUE}:
        example = f"such as {table.path[0]}, while the list has {next(iter(values), 'none')}" if len(table) else "none"
        raise UserError(
            f"expected a metadata value for the {len(table)} scored images, got no path in common, {example}"
        )
    of_row = np.array(found, dtype=object)
    names = sorted(set(found), key=lambda name: (name == NO_VALUE, -found.count(name), name))
    rows = []
    for name in names:
        part = table.select(of_row == name)
        note = f"fewer than {min_size} images" if len(part) < min_size else ""
        row = metrics_row(part.label, part.p_fake, threshold, n_boot=n_boot, seed=seed, **identity)
        rows.append({**row, "subgroup": name, "n": len(part), "note": note})
    return rows


def write_subgroups(rows: list[dict[str, Any]], folder: Path, column: str) -> list[Path]:
    """Write ``subgroups_<column>``.csv, .md and .tex to a folder; returns the paths.

    Raises:
        UserError: a file cannot be written.
    """
    safe = "".join(character if character.isalnum() else "_" for character in column.strip().lower())
    caption = f"Detection by {column}; 95 % bootstrap intervals."
    return write_table(rows, SUBGROUP_COLUMNS, folder / f"subgroups_{safe}", caption)
