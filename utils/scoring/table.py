"""The scores file: one row per image, from which every table and figure can be derived.

``scores.csv.gz`` (or ``scores.csv``) has the columns path,label,dataset,generator,tier,logit,p_fake; paths are
relative to the data set. ``scores.json`` in the same folder holds what belongs to the run and not to an image: the
checkpoint, its thresholds, the folder of the data set, and the images that could not be read.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.listing.records import relative_path
from utils.errors import UserError
from utils.files import atomic_write_text, read_json, read_text, write_json

COLUMNS = ("path", "label", "dataset", "generator", "tier", "logit", "p_fake")
SIDECAR_KEYS = tuple(
    "checkpoint model threshold thresholds dataset split unreadable n_images data_fingerprint root".split()
)


@dataclass
class ScoreTable:
    """The scores file as columns of equal length N, one entry per image and tier.

    label is int64, 0 real and 1 fake; logit and p_fake are float64, p_fake in [0, 1]; the others are text.
    """

    path: list[str]
    label: np.ndarray
    dataset: list[str]
    generator: list[str]
    tier: list[str]
    logit: np.ndarray
    p_fake: np.ndarray

    def __post_init__(self) -> None:
        self.label = np.asarray(self.label).reshape(-1)
        self.logit = np.asarray(self.logit, dtype=np.float64).reshape(-1)
        self.p_fake = np.asarray(self.p_fake, dtype=np.float64).reshape(-1)
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"expected columns of equal length, got {lengths}")

    def __len__(self) -> int:
        return len(self.path)

    def select(self, mask: np.ndarray) -> "ScoreTable":
        """Return the rows where the boolean mask ``(N,)`` is true."""
        return self.take(np.flatnonzero(mask))

    def take(self, rows: Sequence[int] | np.ndarray) -> "ScoreTable":
        """Return the rows with these numbers, in this order."""
        columns: dict[str, Any] = {}
        for name, column in vars(self).items():
            columns[name] = column[list(rows)] if isinstance(column, np.ndarray) else [column[row] for row in rows]
        return ScoreTable(**columns)

    def groups(self, *columns: str) -> Iterator[tuple[tuple[str, ...], "ScoreTable"]]:
        """Yield (values, rows) for each combination in the text columns, in the order of first appearance."""
        rows_of: dict[tuple[str, ...], list[int]] = {}
        for row, values in enumerate(zip(*(getattr(self, name) for name in columns), strict=True)):
            rows_of.setdefault(values, []).append(row)
        for values, rows in rows_of.items():
            yield values, self.take(rows)

    def relative_to(self, root: str) -> "ScoreTable":
        """Return the same rows with paths relative to ``root``; paths outside of it, and all without a root, stay."""
        return replace(self, path=[relative_path(path, root) for path in self.path]) if root else self

    @staticmethod
    def join(tables: list["ScoreTable"]) -> "ScoreTable":
        """Return one table with the rows of all tables, of which there must be one or more, in order."""
        columns: dict[str, Any] = {}
        for name in COLUMNS:
            parts = [getattr(table, name) for table in tables]
            is_array = isinstance(parts[0], np.ndarray)
            columns[name] = np.concatenate(parts) if is_array else [value for part in parts for value in part]
        return ScoreTable(**columns)


def write_scores(path: str | os.PathLike[str], table: ScoreTable) -> None:
    """Write the scores file atomically; ``read_scores`` gives every float back bit-equal.

    Raises:
        UserError: the table breaks a rule of the format, or the file cannot be written.
    """
    _check(table, f"for {path}")
    text = io.StringIO()
    columns = [getattr(table, name) for name in COLUMNS]
    # csv does not quote a lone carriage return, and would read it back as a line end.
    bare = any("\r" in value for column in columns if isinstance(column, list) for value in column)
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL)
    writer.writerow(COLUMNS)
    # tolist gives Python floats, and csv writes those with repr: the shortest text that reads back bit-equal.
    writer.writerows(zip(*(c.tolist() if isinstance(c, np.ndarray) else c for c in columns), strict=True))
    atomic_write_text(path, text.getvalue())


def read_scores(path: str | os.PathLike[str]) -> ScoreTable:
    """Read a scores file; columns may have any order, and additional ones are ignored.

    Raises:
        UserError: no such file, no rows, a missing column, a field that is not a number, NaN or infinity, a
            label other than 0 or 1, p_fake outside [0, 1], or one image twice in the same dataset and tier.
    """
    text = read_text(path, "a scores file")
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"expected a scores file at {path}, got text that is not CSV ({error})") from error
    header = lines[0] if lines else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(
            f"expected columns {','.join(COLUMNS)} in {path}, got {','.join(header) or 'an empty file'} "
            f"(missing: {', '.join(missing)}); give a file written by evaluate.py"
        )
    rows = [line for line in lines[1:] if line]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise UserError(
                f"expected {len(header)} fields in image row {number} of {path}, got {len(row)}; "
                "the file is damaged: write it again"
            )
    columns = {name: [row[header.index(name)] for row in rows] for name in COLUMNS}
    numbers = {name: _numbers(columns, name, path) for name in ("label", "logit", "p_fake")}
    table = ScoreTable(**{**columns, **numbers})  # type: ignore[arg-type]
    _check(table, f"in {path}")
    table.label = table.label.astype(np.int64)
    return table


def _numbers(columns: dict[str, list[str]], name: str, path: str | os.PathLike[str]) -> np.ndarray:
    """Return a column as float64."""
    numbers = np.empty(len(columns[name]))
    for row, text in enumerate(columns[name]):
        try:
            numbers[row] = float(text)
        except ValueError as error:
            raise UserError(
                f"expected a number in column {name}, image row {row + 1} of {path}, got {text!r}; "
                "the file is damaged: write it again"
            ) from error
    return numbers


def _check(table: ScoreTable, where: str) -> None:
    """Check a table against the rules of the format; ``where`` ends up in the message. Raises UserError."""
    if not len(table):
        raise UserError(f"expected one row per image {where}, got none; no image could be scored")
    bad_labels = (table.label != 0) & (table.label != 1)
    if np.any(bad_labels):
        raise UserError(
            f"expected labels 0 (real) or 1 (fake) {where}, got {int(bad_labels.sum())} others, "
            f"the first is {table.label[bad_labels][0]:g}; correct the labels"
        )
    for name in ("logit", "p_fake"):
        bad = int(np.sum(~np.isfinite(getattr(table, name))))
        if bad:
            raise UserError(
                f"expected finite numbers in column {name} {where}, got {bad} of {len(table)} NaN or "
                "infinite; the checkpoint that made them is broken"
            )
    outside = int(np.sum((table.p_fake < 0) | (table.p_fake > 1)))
    if outside:
        raise UserError(f"expected p_fake in [0, 1] {where}, got {outside} of {len(table)} outside of it")
    rows = Counter(zip(table.path, table.dataset, table.tier, strict=True))
    (image, dataset, tier), times = rows.most_common(1)[0]
    if times > 1:
        n_twice = sum(count > 1 for count in rows.values())
        raise UserError(
            f"expected one row per image, dataset and tier {where}, got {n_twice} repeated, the first is "
            f"{image} ({dataset}, {tier}) {times} times; remove the copies"
        )


def sidecar_path(scores_path: str | os.PathLike[str]) -> Path:
    """Return the JSON file of a scores file: the same name ending in .json instead of .csv or .csv.gz."""
    return Path(os.fspath(scores_path).removesuffix(".gz")).with_suffix(".json")


def write_sidecar(scores_path: str | os.PathLike[str], **info: Any) -> Path:
    """Write the facts about the run of a scores file, and return the path of the JSON file.

    Keys: checkpoint (path), model, threshold (the one in force), thresholds (name -> value), dataset, split,
    unreadable (list of {"path", "reason"}, plus dataset and tier where a file has several), n_images (listed,
    read or not), data_fingerprint, root (the folder that the paths start from); those left out are null,
    unreadable is []. Further keys are kept as they are.

    Raises:
        UserError: the file cannot be written, or the scores file is itself called .json.
    """
    target = sidecar_path(scores_path)
    if target == Path(scores_path):
        raise UserError(f"expected a scores file that ends in .csv or .csv.gz, got {scores_path}; choose another name")
    write_json(target, {**dict.fromkeys(SIDECAR_KEYS), "unreadable": [], **info})
    return target


def read_sidecar(scores_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON file of a scores file; without one, every key is None and unreadable is [].

    Raises:
        UserError: the file is there but is not what ``write_sidecar`` writes.
    """
    empty: dict[str, Any] = {**dict.fromkeys(SIDECAR_KEYS), "unreadable": []}
    source = sidecar_path(scores_path)
    if not source.exists():
        return empty
    info = read_json(source, "the JSON file of a scores file")
    unreadable = info.get("unreadable", []) if isinstance(info, dict) else None
    is_listed = isinstance(unreadable, list) and all(
        isinstance(item, dict) and {"path", "reason"} <= set(item) for item in unreadable
    )
    kinds = {**dict.fromkeys(("checkpoint", "model", "dataset", "split"), str), "threshold": int | float}
    if not is_listed or any(info.get(key) is not None and not isinstance(info[key], kinds[key]) for key in kinds):
        raise UserError(
            f"expected an object with names, a threshold and a list 'unreadable' of path and reason in {source}, got "
            "something else; remove the file or write the scores again"
        )
    return {**empty, **info}
