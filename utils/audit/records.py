"""The images that an audit looks at, where each stands, and which of them a clean list keeps."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.spec import KINDS, LABEL_NAMES, DatasetSpec, open_records, parse_spec
from utils.audit.duplicates import Pair, components
from utils.errors import UserError
from utils.files import open_output

# Which copy survives: an evaluation set is what others compare with, so it keeps its images and training gives way.
KEPT_FIRST = {"test": 0, "valid": 1, "": 2, "train": 3}
CLEAN_COLUMNS = ("path", "label", "generator", "split")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of one set: ``split`` is empty in sets without splits; ``name`` is set and path below its root."""

    path: str
    label: int | None
    generator: str
    dataset: str
    split: str
    name: str

    @property
    def label_name(self) -> str:
        return "unlabelled" if self.label is None else LABEL_NAMES[self.label]


def open_entries(specs: Sequence[str], sample: int | None = None) -> list[Entry]:
    """List the images of all splits of all specs; a file named twice for the same split counts once.

    ``sample`` takes at most so many images of each spec, balanced over the classes. Raises UserError.
    """
    entries: list[Entry] = []
    seen: set[tuple[str, str]] = set()
    names: set[str] = set()
    for text in specs:
        spec = parse_spec(text)
        if sample is not None:
            limit = min(sample, int(spec.options.get("limit", sample)))
            spec = DatasetSpec(spec.kind, spec.location, spec.options | {"limit": str(limit)})
        listing = open_records(spec, "all")
        splits = _splits_by_path(spec)
        name = _unused(listing.name, names)
        for record in listing.records:
            choices = splits[record.path]
            split = listing.split if listing.split != "all" else choices.pop(0) if len(choices) > 1 else choices[0]
            key = os.path.abspath(record.path), split
            if key not in seen:
                seen.add(key)
                shown = f"{name}/{record.path.removeprefix(listing.root).lstrip('/')}"
                entries.append(Entry(record.path, record.label, record.generator, name, split, shown))
    return entries


def _splits_by_path(spec: DatasetSpec) -> dict[str, list[str]]:
    """The splits that each file of a set belongs to: one, or several where a list is wrong."""
    splits: dict[str, list[str]] = {}
    for split, records in KINDS[spec.kind].read(spec).by_split.items():
        for record in records:
            splits.setdefault(record.path, []).append(split)
    return splits


def _unused(name: str, names: set[str]) -> str:
    number, candidate = 1, name
    while candidate in names:
        number += 1
        candidate = f"{name}-{number}"
    names.add(candidate)
    return candidate


def is_leak(first: Entry, second: Entry) -> bool:
    """Whether two copies stand in different splits, of one set or of two."""
    return first.split != second.split


def is_counterpart(pair: Pair, entries: Sequence[Entry]) -> bool:
    """Whether a near pair is an original and its forgery in one split, which a set of forgeries has on purpose."""
    first, second = entries[pair.first], entries[pair.second]
    return pair.kind == "near" and first.label != second.label and not is_leak(first, second)


def clean_indices(entries: Sequence[Entry], pairs: Sequence[Pair], broken: Collection[int]) -> list[int]:
    """Choose the images that are left without broken files and without duplicates.

    Of a group of copies one stays: that of the test split, else valid, else train; within a split the first. Equal
    pixels under both labels are left out altogether, because nothing tells which label is right. An original and
    its forgery in one split both stay.
    """
    links = [(pair.first, pair.second) for pair in pairs if not is_counterpart(pair, entries)]
    equal = [(pair.first, pair.second) for pair in pairs if pair.kind != "near"]
    dropped = set(broken)
    for group in components(len(entries), equal):
        if len({entries[at].label for at in group}) > 1:
            dropped.update(group)
    for group in components(len(entries), links):
        rest = [at for at in group if at not in dropped]
        best = min(rest, key=lambda at: (KEPT_FIRST[entries[at].split], at), default=None)
        dropped.update(at for at in rest if at != best)
    return [at for at in range(len(entries)) if at not in dropped]


def write_clean_list(file: str, entries: Sequence[Entry]) -> None:
    """Write a CSV list that `csv:FILE` reads back; paths are relative to its folder. Raises UserError."""
    folder = os.path.dirname(os.path.abspath(file))
    with open_output(file) as stream:
        writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
        writer.writerow(CLEAN_COLUMNS)
        for entry in entries:
            try:
                path = os.path.relpath(entry.path, folder)
            except ValueError:  # another drive
                path = os.path.abspath(entry.path)
            writer.writerow([Path(path).as_posix(), entry.label_name, entry.generator, entry.split])


def check_clean_list(file: str | None, entries: Sequence[Entry], specs: Sequence[str]) -> None:
    """Refuse, before anything is read, a clean list that could not be read back. Raises UserError."""
    if file is None:
        return
    if not file.lower().endswith(".csv") or os.path.isdir(file):
        raise UserError(f"expected --write-clean-list with the name of a .csv file, got {file}")
    inputs = [parse_spec(text).location for text in specs]
    if any(os.path.exists(file) and os.path.exists(path) and os.path.samefile(file, path) for path in inputs):
        raise UserError(f"expected --write-clean-list to be another file than the inputs, got {file}; rename it")
    if any(entry.label is None for entry in entries):
        raise UserError("expected a label for every image of --write-clean-list, got images without")
