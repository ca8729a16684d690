"""The images of an audit: their labels, splits and groups, and the selection of a clean list."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.listing.records import LABEL_NAMES, Record, relative_path
from datasets.listing.spec import open_records, parse_spec, read_source
from datasets.listing.storage import same_image_key
from utils.audit.duplicates import Pair, components
from utils.errors import UserError
from utils.files import open_output

# Which copy stays: evaluation images are compared across papers, so training images give way.
KEPT_FIRST = {"test": 0, "valid": 1, "": 2, "train": 3}


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of one dataset.

    ``split`` is empty in datasets without splits; ``name`` is the dataset and the path below its root.
    """

    path: str
    label: int | None
    generator: str
    dataset: str
    split: str
    name: str
    group: str = ""

    @property
    def label_name(self) -> str:
        return "unlabelled" if self.label is None else LABEL_NAMES[self.label]


def open_entries(specs: Sequence[str], sample: int | None = None) -> list[Entry]:
    """List the images of all splits of all specs.

    A file named twice with the same split and label counts once, however its path is spelt. ``sample`` takes at most
    so many images of each spec, balanced over the classes. Raises UserError.
    """
    entries: list[Entry] = []
    seen: set[tuple] = set()
    names: set[str] = set()
    for text in specs:
        spec = parse_spec(text).limited(sample)
        source = read_source(spec)
        listing = open_records(spec, "all", source)
        splits: dict[tuple, list[str]] = {}
        for split, records in source.by_split.items():
            for record in records:
                splits.setdefault(_row(record), []).append(split)
        name = _unused(listing.name, names)
        for record in listing.records:
            choices = splits[_row(record)]
            split = listing.split if listing.split != "all" else choices.pop(0) if len(choices) > 1 else choices[0]
            key = *same_image_key(record.path), split, record.label
            if key not in seen:
                seen.add(key)
                shown = f"{name}/{relative_path(record.path, listing.root)}"
                entries.append(Entry(record.path, record.label, record.generator, name, split, shown, record.group))
    return entries


def _row(record: Record) -> tuple:
    return record.path, record.label


def _unused(name: str, names: set[str]) -> str:
    number, candidate = 1, name
    while candidate in names:
        number += 1
        candidate = f"{name}-{number}"
    names.add(candidate)
    return candidate


def kind_of(pair: Pair, entries: Sequence[Entry]) -> str:
    """Classify two copies.

    Returns:
        ``conflicts``: equal pixels as real and as fake; ``leaks``: copies in different splits, of one dataset or of
        two; ``counterparts``: an original and its forgery in one split, as datasets of forgeries contain on purpose;
        ``repeats``: other copies in one split.
    """
    first, second = entries[pair.first], entries[pair.second]
    if pair.kind != "near" and first.label != second.label and None not in (first.label, second.label):
        return "conflicts"
    if first.split != second.split:
        return "leaks"
    return "counterparts" if pair.kind == "near" and first.label != second.label else "repeats"


def divided_groups(entries: Sequence[Entry]) -> list[dict]:
    """Groups, such as the frames of a video, with images in several splits: dataset, group, splits, image counts."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for entry in entries:
        if entry.group:
            splits = counts.setdefault((entry.dataset, entry.group), {})
            splits[entry.split] = splits.get(entry.split, 0) + 1
    return [
        {"dataset": dataset, "group": group, "splits": ", ".join(sorted(splits)), "images": sum(splits.values())}
        for (dataset, group), splits in counts.items()
        if len(splits) > 1
    ]


def clean_indices(entries: Sequence[Entry], pairs: Sequence[Pair], broken: Collection[int]) -> list[int]:
    """Choose the images without broken files, copies, contradicting labels and divided groups.

    One of each set of copies stays: that of the test split, else valid, else train; within a split the first. Of a
    group, the images of one split stay. Equal pixels under both labels are all dropped, because either label may be
    wrong. An original and its forgery in one split both stay.
    """
    dropped = set(broken)
    equal = [(pair.first, pair.second) for pair in pairs if pair.kind != "near"]
    for copies in components(len(entries), equal):
        if len({entries[at].label for at in copies}) > 1:
            dropped.update(copies)
    best_split: dict[tuple[str, str], str] = {}
    for entry in entries:
        key = entry.dataset, entry.group
        best_split[key] = min(best_split.get(key, entry.split), entry.split, key=KEPT_FIRST.__getitem__)
    dropped.update(at for at, e in enumerate(entries) if e.group and e.split != best_split[e.dataset, e.group])
    links = [(pair.first, pair.second) for pair in pairs if kind_of(pair, entries) != "counterparts"]
    for copies in components(len(entries), links):
        rest = [at for at in copies if at not in dropped]
        best = min(rest, key=lambda at: (KEPT_FIRST[entries[at].split], at), default=None)
        dropped.update(at for at in rest if at != best)
    return [at for at in range(len(entries)) if at not in dropped]


def write_clean_lists(folder: Path, entries: Sequence[Entry], names: Iterable[str]) -> list[str]:
    """Write one CSV list per data set, named after it, that `csv:FILE` reads; paths are relative. Raises UserError.

    Of ``names``, the data sets without an entry are returned; a list of theirs from an earlier audit is removed.
    """
    columns = ["path", "label", "generator", "split", *(["group"] if any(entry.group for entry in entries) else [])]
    filled = dict.fromkeys(entry.dataset for entry in entries)
    emptied = [name for name in names if name not in filled]
    for name in emptied:
        (folder / f"{name}.csv").unlink(missing_ok=True)
    for name in filled:
        with open_output(str(folder / f"{name}.csv")) as stream:
            writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
            writer.writerow(columns)
            for entry in (entry for entry in entries if entry.dataset == name):
                row = [_path_from(folder, entry), entry.label_name, entry.generator, entry.split, entry.group]
                writer.writerow(row[: len(columns)])
    return emptied


def _path_from(folder: Path, entry: Entry) -> str:
    try:
        return Path(os.path.relpath(entry.path, folder.absolute())).as_posix()
    except ValueError:  # another drive
        return Path(os.path.abspath(entry.path)).as_posix()


def check_clean_lists(folder: Path, entries: Sequence[Entry], specs: Sequence[str]) -> None:
    """Refuse, before any image is read, clean lists that could not be read back. Raises UserError."""
    inputs = [Path(parse_spec(text).location) for text in specs]
    for name in dict.fromkeys(entry.dataset for entry in entries):
        file = folder / f"{name}.csv"
        if any(file.exists() and path.exists() and file.samefile(path) for path in inputs):
            raise UserError(f"expected --write-clean-lists beside no input, got {folder}; name a new folder")
    if any(entry.label is None for entry in entries):
        raise UserError("expected a label for every image of --write-clean-lists, got images without")
