"""CSV lists of images: a header, a column of paths and a column of class names.

The path column is one of `path`, `filename`, `file`, `image`, ...; the label column one of `label_str`, `label`,
`class`, `target`, ...; columns `generator`, `split`, `mask` and `group` (such as the video of a frame) are optional;
all others go to the meta of the record. Classes are mapped by name, never by number: the lists of the 140k set
(`,original_path,id,label,label_str,path`) say 1 = real, others say 1 = fake. Numbers need an explicit
`labels=0:real+1:fake`. Relative paths start from the folder of the CSV, or from `real_vs_fake/real-vs-fake/`
below it. A folder with train.csv, valid.csv and test.csv is a dataset with these splits.
"""

from __future__ import annotations

import csv
import io
import itertools
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence

from datasets.listing.records import SPLIT_NAMES, Record, Source, class_label
from datasets.listing.storage import image_exists
from utils.errors import UserError, closest_sibling

PATH_COLUMNS = "path filepath file_path image_path img_path filename file_name file image img".split()
LABEL_COLUMNS = "label_str label_name label class class_name target category ground_truth".split()
GENERATOR_COLUMNS = "generator generator_name method model".split()
SPLIT_COLUMNS = "split subset partition".split()
MASK_COLUMNS = "mask mask_path".split()
GROUP_COLUMNS = "group group_id".split()
NESTED_140K = "real_vs_fake/real-vs-fake"

_NUMBER = re.compile(r"^[+-]?\d+(\.\d*)?$")

log = logging.getLogger(__name__)


def parse_labels(text: str) -> dict[str, int]:
    """Parse `0:real+1:fake` into label by value in the file; an empty text maps nothing. Raises UserError."""
    labels = {}
    for part in filter(None, text.split("+")):
        value, colon, name = part.partition(":")
        label = class_label(name)
        if not colon or not value or label is None:
            raise UserError(f"expected labels=VALUE:real+VALUE:fake, got labels={text}")
        labels[value.strip().lower()] = label
    return labels


def read_csv(
    location: str | os.PathLike[str], labels: Mapping[str, int] | None = None, require_labels: bool = True
) -> Source:
    """Read a CSV list, or a folder with one CSV list per split.

    ``labels`` maps values of the label column to 0 (real) or 1 (fake) where they are not class names. Without
    ``require_labels`` the label column may be absent, and a value that is not a class name means label None.

    Files that do not exist are kept as long as others do: a warning counts them, and they turn out unreadable later.
    Raises UserError, in one line, for whatever is wrong with the list.
    """
    path = os.path.expanduser(os.fspath(location)).replace(os.sep, "/").rstrip("/")
    if not os.path.exists(path):
        raise UserError(f"expected a CSV list, got {location}, which does not exist{closest_sibling(path)}")
    if os.path.isdir(path):
        folder, files, name = path, _split_files(path), os.path.basename(os.path.abspath(path))
    else:
        folder, stem = os.path.dirname(path), os.path.splitext(os.path.basename(path))[0]
        files = [(SPLIT_NAMES.get(stem.lower(), ""), path)]
        name = os.path.basename(os.path.abspath(folder)) if files[0][0] else stem
    reader = _Reader(name, folder, labels or {}, require_labels)
    for split, file in files:
        reader.read(file, split)
    reader.report_missing(os.fspath(location))
    root = next(iter(reader.bases_used)) if len(reader.bases_used) == 1 else folder
    return Source(name, root, reader.by_split)


def _split_files(folder: str) -> list[tuple[str, str]]:
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".csv"))
    stems = [(SPLIT_NAMES.get(os.path.splitext(name)[0].lower(), ""), f"{folder}/{name}") for name in names]
    with_split = [pair for pair in stems if pair[0]]
    if not with_split and len(names) != 1:
        found = ", ".join(names[:6]) or "no .csv file"
        raise UserError(f"expected train.csv, valid.csv or test.csv in {folder}, got {found}; name one file")
    return with_split or stems


def _read_text(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            data = stream.read()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"expected a readable CSV list, got {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise UserError(f"expected UTF-8 text in {file}, got {found}; save it as CSV UTF-8") from None
    if not text.strip():
        raise UserError(f"expected a CSV list with a header, got the empty file {file}")
    return text


def _column_name(cell: str) -> str:
    return re.sub(r"[\s\-]+", "_", cell.strip().strip('"').lower())


def _delimiter(text: str) -> str:
    header = text.lstrip().split("\n", 1)[0]
    for delimiter in ",;\t|":
        if any(_column_name(cell) in PATH_COLUMNS for cell in header.split(delimiter)):
            return delimiter
    return max(",;\t|", key=header.count)


class _Columns:
    """The role of each column of a list; None for roles without a column."""

    def __init__(self, header: list[str], first_row: list[str], any_number: bool, file: str) -> None:
        names = [_column_name(cell) for cell in header]

        def find(candidates: Sequence[str]) -> list[int]:
            return [names.index(name) for name in candidates if name in names]

        def first(candidates: Sequence[str]) -> int | None:
            return next(iter(find(candidates)), None)

        if not (paths := find(PATH_COLUMNS)):
            raise UserError(f"expected a column path (or filename, image, ...) in {file}, got the columns {header}")
        # A list may have a column of numbers and one of names; the first row tells which is which.
        labels = find(LABEL_COLUMNS)
        numeric = [at for at in labels if not any_number and _NUMBER.match("".join(first_row[at : at + 1]).strip())]
        self.path = paths[0]
        self.label = next(iter([at for at in labels if at not in numeric] + numeric), None)
        self.generator = first(GENERATOR_COLUMNS)
        self.split = first(SPLIT_COLUMNS)
        self.mask = first(MASK_COLUMNS)
        self.group = first(GROUP_COLUMNS)
        used = {self.path, self.label, self.generator, self.split, self.mask, self.group}
        others = [(at, sys.intern(cell.strip())) for at, cell in enumerate(header) if at not in used]
        self.meta = [(at, key) for at, key in others if key]
        self.header = header


class _Reader:
    """Turns the rows of one or more lists into records and remembers which files are missing."""

    def __init__(self, name: str, folder: str, labels: Mapping[str, int], require_labels: bool) -> None:
        self.name = name
        self.folder = folder
        self.labels = labels
        self.require_labels = require_labels
        self.bases = [folder, f"{folder}/{NESTED_140K}" if folder else NESTED_140K]
        self.bases_used: set[str] = set()
        self.by_split: dict[str, list[Record]] = {}
        self.total, self.missing, self.first_missing = 0, 0, ""

    def read(self, file: str, split: str) -> None:
        text = _read_text(file)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), skipinitialspace=True)
        try:
            filled = (row for row in rows if any(cell.strip() for cell in row))
            header, first = next(filled), next(filled, None)
            if first is None:
                raise UserError(f"expected rows below the header of {file}, got none")
            columns = _Columns(header, first, bool(self.labels), file)
            if columns.label is None and self.require_labels:
                raise UserError(f"expected a column label (or class, ...) in {file}, got the columns {header}")
            for row in itertools.chain([first], filled):
                self._add(row, columns, split, f"{file} row {rows.line_num}")
        except csv.Error as error:
            raise UserError(f"expected a CSV list, got {file} with row {rows.line_num}: {error}") from None

    def _add(self, row: list[str], columns: _Columns, split: str, where: str) -> None:
        def cell(at: int | None) -> str:
            return row[at].strip() if at is not None and at < len(row) else ""

        if not cell(columns.path):
            raise UserError(f"expected a path in {where}, got an empty cell")
        label = None
        if columns.label is not None:
            label = self._label(cell(columns.label), columns.header[columns.label], where)
        split_cell = cell(columns.split).lower()
        if split_cell and split_cell not in SPLIT_NAMES:
            raise UserError(f"expected train, valid or test as the split in {where}, got {split_cell!r}")
        generator = {0: "real", 1: sys.intern(cell(columns.generator)) or self.name, None: ""}[label]
        meta = {key: cell(at) for at, key in columns.meta if cell(at)}
        mask = self._resolve(cell(columns.mask))[0] if cell(columns.mask) else None
        path, exists = self._resolve(cell(columns.path))
        self.total += 1
        if not exists:
            self.missing += 1
            self.first_missing = self.first_missing or path
        records = self.by_split.setdefault(SPLIT_NAMES.get(split_cell, split), [])
        records.append(Record(path, label, generator, mask, meta or None, sys.intern(cell(columns.group))))

    def _label(self, value: str, column: str, where: str) -> int | None:
        label = self.labels.get(value.lower(), class_label(value))
        if label is not None or not self.require_labels:
            return label
        if _NUMBER.match(value) and not self.labels:
            raise UserError(
                f"expected names such as real and fake in the column {column!r}, got {value} in {where}; "
                "numbers mean different things in different datasets, say which with @labels=0:real+1:fake"
            )
        known = ", ".join(self.labels) or "real, fake or a synonym"
        raise UserError(f"expected the label {known} in {where}, got {value!r}; map others with @labels=VALUE:fake")

    def _resolve(self, text: str) -> tuple[str, bool]:
        """Return the path of a file and whether it exists; the base that worked last is tried first."""
        relative = text.removeprefix("./")
        for spelling in dict.fromkeys((relative, relative.replace("\\", "/"))):
            for base in self.bases:
                path = os.path.join(base, spelling)
                if image_exists(path):
                    self.bases_used.add(base)
                    self.bases.sort(key=lambda candidate: candidate != base)
                    return path.replace(os.sep, "/"), True
        return os.path.join(self.folder, relative).replace(os.sep, "/"), False

    def report_missing(self, location: str) -> None:
        """Warn about files that do not exist. Raises UserError when none does."""
        if not self.missing:
            return
        if self.missing == self.total:
            raise UserError(
                f"expected the paths in {location} to exist (relative ones start from its folder), "
                f"got {self.total} missing file{'s' * (self.total != 1)}, the first is {self.first_missing}"
            )
        counts = f"{self.missing} of {self.total} files are missing"
        log.warning("%s: %s, the first is %s", location, counts, self.first_missing)
