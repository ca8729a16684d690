"""Dataset specs: one line of text that names a set of images, `[kind:]location[@key=value,...]`.

    demo                          the generated demo set          demo@n=600,size=96,seed=3
    data/140k                     a folder, by its layout         data/140k@split=test,limit=500
    csv:lists/wild.csv            a CSV list                      csv:lists/wild.csv@labels=0:real+1:fake
    wds:shards/140k               tar shards                      wds:shards/140k/train-*.tar@split=all
    clips:data/ff                 a folder of videos              clips:data/ff@every=1,max_frames=32

Options of every kind: split=train|valid|test|all, limit=N (balanced over the classes, the same images every
time), repeat=N (each record N times, to weigh a dataset in a mix), classes=real|fake, generator=A+B and
exclude_generator=A+B (only, or not, the fakes of these generators; real images stay), use=train|train+valid|train+test
(the splits that training uses; default: all three), and group_by=REGEX: images in whose path below the dataset the
expression matches the same text, or the same first group in parentheses, belong together, such as the frames of a
video, and are never divided between training and validation.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from datasets.listing.readers.clips import read_clips
from datasets.listing.readers.csv_list import parse_labels, read_csv
from datasets.listing.readers.folder import read_folder
from datasets.listing.readers.shards import read_shards
from datasets.listing.records import LABEL_NAMES, SPLIT_NAMES, SPLITS, Listing, Record, Source, relative_path
from datasets.listing.selection import balanced_subset, fingerprint
from utils.errors import UserError, closest
from utils.tables import unique_names

COMMON_OPTIONS = ("split", "limit", "repeat", "classes", "generator", "exclude_generator", "group_by", "use")


@dataclass(frozen=True)
class DatasetSpec:
    """A parsed spec; ``str`` gives its text back."""

    kind: str
    location: str
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        plain = self.kind == "folder" and self.location.partition(":")[0] not in KINDS
        text = "demo" if self.kind == "demo" else self.location if plain else f"{self.kind}:{self.location}"
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{text}@{options}" if options else text

    def replace(self, **options: str | None) -> DatasetSpec:
        """The same spec with other values of some options; None removes an option."""
        merged = {key: value for key, value in {**self.options, **options}.items() if value is not None}
        return DatasetSpec(self.kind, self.location, merged)

    def limited(self, limit: int | None) -> DatasetSpec:
        """The same spec with at most ``limit`` images; a smaller limit of the spec itself stays."""
        return self if limit is None else self.replace(limit=str(min(limit, int_option(self, "limit", limit))))


@dataclass(frozen=True)
class Kind:
    """A kind of location: its reader and the options that it has besides the common ones."""

    read: Callable[[DatasetSpec], Source]
    options: tuple[str, ...] = ()


def _labels_of(spec: DatasetSpec) -> dict[str, int]:
    return parse_labels(spec.options.get("labels", ""))


def _read_demo(spec: DatasetSpec) -> Source:
    from datasets.demo_set.generate import make_demo  # here, because it imports OpenCV

    settings: dict = {key: int_option(spec, key) for key in KINDS["demo"].options if key in spec.options}
    return read_folder(make_demo(Path(os.environ.get("DEMO_DIR") or "data"), **settings), name="demo")


KINDS: dict[str, Kind] = {
    "folder": Kind(lambda spec: read_folder(spec.location)),
    "csv": Kind(lambda spec: read_csv(spec.location, _labels_of(spec)), ("labels",)),
    "wds": Kind(lambda spec: read_shards(spec.location, _labels_of(spec)), ("labels",)),
    "clips": Kind(lambda spec: read_clips(spec.location, spec.options), ("every", "max_frames")),
    "demo": Kind(_read_demo, ("n", "size", "seed")),
}


def parse_spec(text: str | DatasetSpec) -> DatasetSpec:
    """Split the text of a spec into kind, location and options without touching any file.

    Only a known kind before a colon counts, so ``C:\\faces`` is a folder; only text after the last ``@`` that
    contains a ``=`` counts as options, so ``me@home`` is a folder too. Raises UserError.
    """
    text = str(text)
    location, at, tail = text.strip().rpartition("@")
    if not at or "=" not in tail:
        location, tail = text.strip(), ""
    kind, colon, rest = location.partition(":")
    if not colon or kind not in KINDS:
        kind, rest = ("demo", "") if location == "demo" else ("folder", location)
    if (kind == "demo") == bool(rest):
        problem = "which has no location" if kind != "demo" else "but the demo set has no location"
        raise UserError(f"expected a dataset spec [kind:]location[@key=value,...], got {text!r}, {problem}")
    spec = DatasetSpec(kind, rest, _parse_options(tail, kind, text))
    int_option(spec, "limit")
    int_option(spec, "repeat")
    split_name(spec.options.get("split", "all"))
    parts_in_use(spec)
    if spec.options.get("classes", "real") not in LABEL_NAMES:
        raise UserError(f"expected classes=real or classes=fake, got classes={spec.options['classes']}")
    return spec


def _parse_options(tail: str, kind: str, text: str) -> dict[str, str]:
    known = COMMON_OPTIONS + KINDS[kind].options
    options: dict[str, str] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or key in options:
            raise UserError(f"expected key=value, each key once, after the @ of {text!r}, got {part!r}")
        if key not in known:
            raise UserError(f"expected an option of {', '.join(known)}, got {key!r}{closest(key, known)}")
        options[key] = value
    return options


def int_option(spec: DatasetSpec, key: str, default: int = 1) -> int:
    """Return a whole-number option (a seed may be 0, all others are at least 1). Raises UserError."""
    value, least = spec.options.get(key, str(default)), int(key != "seed")
    if not value.isascii() or not value.isdigit() or int(value) < least:
        raise UserError(f"expected {key}=N with a whole number >= {least}, got {key}={value}")
    return int(value)


def split_name(text: str) -> str:
    """Return train, valid, test or all for any accepted spelling (val, Testing, ...). Raises UserError."""
    name = SPLIT_NAMES.get(text.lower(), text.lower())
    if name not in (*SPLITS, "all"):
        raise UserError(f"expected the split train, valid, test or all, got {text!r}")
    return name


def parts_in_use(spec: DatasetSpec) -> set[str]:
    """Return what a training run takes from the set: train, and by default valid and test. Raises UserError."""
    parts = {split_name(name) for name in spec.options.get("use", "train+valid+test").split("+")}
    if "train" not in parts or "all" in parts:
        raise UserError(f"expected use=train, use=train+valid or use=train+test, got use={spec.options['use']}")
    return parts


def read_source(spec: DatasetSpec) -> Source:
    """Everything that a spec names, whatever its options select. Raises UserError."""
    return KINDS[spec.kind].read(spec)


def open_records(
    text: str | DatasetSpec, default_split: str | None = None, source: Source | None = None, videos: bool = False
) -> Listing:
    """List the records that a spec selects, sorted by path; only a caller that takes ``videos`` gets a set of them.

    ``split=`` in the spec takes precedence over ``default_split``; without either it is test if there is one, else
    valid, else all. The fingerprint is 16 hex digits over relative path, label and size of every selected file
    (before ``repeat``), the same on every machine. ``source`` is what ``read_source`` returned, if known. Raises
    UserError.
    """
    spec = parse_spec(text)
    source = source or read_source(spec)
    if source.sampling and not videos:
        raise UserError(
            f"expected pictures, got videos ({spec}); evaluate.py and predict.py score them, "
            "python -m studies.track_sequences trains on them"
        )
    splits = tuple(split for split in SPLITS if source.by_split.get(split))
    usual = "test" if "test" in splits else "valid" if "valid" in splits else "all"
    split = split_name(spec.options.get("split") or default_split or usual)
    if split != "all" and split not in splits:
        present = ", ".join(splits) if splits else "images without splits; @split=all takes them all"
        raise UserError(f"expected a {split} split in {spec.location or spec.kind}, got {present}")
    parts = source.by_split.values() if split == "all" else (source.by_split[split],)
    records = _select([record for part in parts for record in part], spec, source)
    records.sort(key=lambda record: record.path)
    if "group_by" in spec.options:
        records = _grouped(records, spec, source.root)
    content = fingerprint(records, source.root)
    repeats = range(int_option(spec, "repeat"))
    records = [record for record in records for _ in repeats]
    return Listing(source.name, split, records, content, source.root, splits, source.sampling)


def open_limited(text: str, limit: int | None, split: str | None = None) -> Listing:
    """Open a spec with at most ``limit`` images, balanced over the classes; ``split`` replaces that of the spec."""
    spec = parse_spec(text).limited(limit)
    return open_records(spec.replace(split=split) if split else spec)


def _grouped(records: list[Record], spec: DatasetSpec, root: str) -> list[Record]:
    """The records with the group that ``group_by`` finds in their path; without a match an image stays alone."""
    pattern = spec.options["group_by"]
    try:
        found = [re.search(pattern, relative_path(record.path, root)) for record in records]
    except re.error as error:
        raise UserError(f"expected group_by= with a regular expression, got {pattern!r}: {error}") from None
    if not any(found):
        example = relative_path(records[0].path, root)
        raise UserError(f"expected group_by= to match some paths of {spec.location or spec.kind}, such as {example!r}")
    return [
        replace(record, group=sys.intern((match[1] if match.re.groups else match[0]) or "") if match else "")
        for record, match in zip(records, found, strict=True)
    ]


def distinct_names(specs: Sequence[str], listings: Sequence[Listing]) -> list[str]:
    """Return the names of data sets; where two share name and split, such as a/faces and b/faces, numbered ones.

    What the numbers stand for goes to stderr.
    """
    names = [listing.name for listing in listings]
    if len({(listing.name, listing.split) for listing in listings}) == len(listings):
        return names
    names = unique_names(names)
    for name, text in zip(names, specs, strict=True):
        print(f"{name} is {text}", file=sys.stderr)
    return names


def _select(records: list[Record], spec: DatasetSpec, source: Source) -> list[Record]:
    options = spec.options
    if "classes" in options:
        records = [record for record in records if record.label == LABEL_NAMES.index(options["classes"])]
    for key in ("generator", "exclude_generator"):
        if key in options:
            wanted = _generators(options[key], source, key)
            keep = key == "generator"
            records = [r for r in records if r.label != 1 or (r.generator.lower() in wanted) == keep]
    if not records:
        raise UserError(f"expected images to be left by the options of {spec}, got none")
    limit = int_option(spec, "limit", len(records))
    return balanced_subset(records, limit, source.root)


def _generators(value: str, source: Source, key: str) -> set[str]:
    records = chain.from_iterable(source.by_split.values())  # a split need not have all generators
    found = {record.generator.lower(): record.generator for record in records if record.label == 1}
    for name in value.split("+"):
        if name.lower() not in found:
            names, hint = ", ".join(sorted(found.values())) or "none", closest(name, found.values())
            raise UserError(f"expected {key}= with a generator of the dataset ({names}), got {name!r}{hint}")
    return {name.lower() for name in value.split("+")}
