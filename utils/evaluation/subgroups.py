"""Metrics for each value of a metadata column, such as age or camera: does a detector work equally well for all?"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.listing.readers.csv_list import read_csv
from utils.errors import UserError, closest
from utils.evaluation.report import COLUMNS
from utils.evaluation.scored_sets import ScoredSet
from utils.tables import write_table

MIN_SIZE = 10  # images; the metrics of a smaller group say next to nothing
NO_VALUE = "(no value)"
RESERVED = ("path", "label", "split", "mask", "group")
SHOWN = ("checkpoint", "dataset", "tier", "n_real", "n_fake", "auc", "acc", "real_acc", "fake_acc", "eer")
SUBGROUP_COLUMNS = [column for column in COLUMNS if column[0] in SHOWN]
SUBGROUP_COLUMNS[3:3] = [("subgroup", "Subgroup")]
SUBGROUP_COLUMNS += [("note", "Note")]


def read_subgroup(request: str) -> tuple[str, dict[str, str]]:
    """Return the column of a request ``LIST.csv:COLUMN`` and its values by path.

    Raises:
        UserError: the request has another form, or the list has no such column.
    """
    path, _, column = request.rpartition(":")
    if not path or not column:
        raise UserError(f"expected --subgroup LIST.csv:COLUMN, got {request!r}")
    return column, read_column(path, column)


def write_subgroups(
    sets: Sequence[ScoredSet], column: str, values: Mapping[str, str], folder: Path, n_boot: int
) -> list[Path]:
    """Write the table ``subgroups_<column>``, see :func:`read_subgroup`; returns the paths.

    Data sets without any value are named on stderr and left out.

    Raises:
        UserError: no image has a value.
    """
    rows_of = [subgroup_rows(scored, values, n_boot) for scored in sets]
    if not any(rows_of):
        example = f"such as {sets[0].images[0]}, while the list has {next(iter(values), 'none')}"
        n_images = sum(len(scored.images) for scored in sets)
        raise UserError(f"expected {column} for some of the {n_images} scored images, got no path in common, {example}")
    without = dict.fromkeys(item.info["dataset"] for item, rows in zip(sets, rows_of, strict=True) if not rows)
    if without:
        print(f"note: no image of {', '.join(without)} has a value of {column}", file=sys.stderr)
    rows = [row for part in rows_of for row in part]
    safe = "".join(character if character.isalnum() else "_" for character in column.strip().lower())
    caption = f"Detection by {column}; 95 % bootstrap intervals."
    return write_table(rows, SUBGROUP_COLUMNS, folder / f"subgroups_{safe}", caption)


def read_column(csv_path: str | os.PathLike[str], column: str) -> dict[str, str]:
    """Return one metadata column of a CSV list as path -> value; images without a value are left out.

    ``generator`` and all columns but the RESERVED ones can be used; case is ignored. Paths are
    those that the same list gives to evaluate.py.

    Raises:
        UserError: not a CSV list, or no such column; the message names those it has.
    """
    records = [record for part in read_csv(csv_path, require_labels=False).by_split.values() for record in part]
    columns = {key.lower(): key for record in records for key in record.meta or {}}
    wanted = column.strip().lower()
    if wanted == "generator":
        return {record.path: record.generator for record in records if record.generator}
    if wanted not in columns:
        reserved = "; rename it, since lists of images use that name" if wanted in RESERVED else ""
        raise UserError(
            f"expected a metadata column of {csv_path} ({', '.join(columns.values()) or 'it has none'}), "
            f"got {column!r}{reserved or closest(wanted, columns.values())}"
        )
    key = columns[wanted]
    return {record.path: record.meta[key] for record in records if record.meta and key in record.meta}


def subgroup_rows(scored: ScoredSet, values: Mapping[str, str], n_boot: int = 1000) -> list[dict[str, Any]]:
    """Return a metrics row for the images with each value, the largest group first, images without a value last.

    Each row also has ``subgroup`` (the value, or NO_VALUE), ``n`` and ``note``, which marks groups of fewer than
    MIN_SIZE images. Many groups are many chances for a low figure: look at the intervals, not at the lowest number.
    There are no rows if no image has a value.
    """
    by_path = {os.path.abspath(path): value for path, value in values.items()}
    found = [by_path.get(os.path.abspath(path)) or NO_VALUE for path in scored.images]
    if set(found) <= {NO_VALUE}:
        return []
    rows = []
    for name in sorted(set(found), key=lambda name: (name == NO_VALUE, -found.count(name), name)):
        part = scored.table.select(np.array(found, dtype=object) == name)
        note = f"fewer than {MIN_SIZE} images" if len(part) < MIN_SIZE else ""
        rows.append({**scored.row(part, n_boot), "subgroup": name, "n": len(part), "note": note})
    return rows
