"""The images that a run trains, validates and tests on, from one or more datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from datasets.listing.records import Listing, Record, Source, relative_path
from datasets.listing.spec import DatasetSpec, open_records, parse_spec, parts_in_use, read_source
from datasets.listing.storage import same_image_key
from utils.errors import UserError

VALID_SHARE = 0.1


@dataclass(frozen=True)
class TrainingData:
    """The listings of a training run, one of each kind per dataset.

    ``test`` lacks datasets without a test split, and both it and ``valid`` lack those whose spec says so.
    """

    train: list[Listing]
    valid: list[Listing]
    test: list[Listing]
    notes: list[str]

    @property
    def train_records(self) -> list[Record]:
        """The training records of all datasets."""
        return [record for listing in self.train for record in listing.records]

    def map(self, change: Callable[[Listing], Listing]) -> TrainingData:
        """The same data with every listing changed."""
        train, valid, test = ([change(item) for item in part] for part in (self.train, self.valid, self.test))
        return replace(self, train=train, valid=valid, test=test)

    def describe(self) -> list[dict]:
        """Plain values for the checkpoint: the training and validation data."""
        return [
            {
                "dataset": listing.name,
                "split": listing.split,
                "fingerprint": listing.fingerprint,
                "n_real": count(listing.records, 0),
                "n_fake": count(listing.records, 1),
            }
            for listing in (*self.train, *self.valid)
        ]


def open_training_data(
    specs: Sequence[str], exclude_generators: Sequence[str] = (), needs_train: bool = True
) -> TrainingData:
    """Open the train, valid and test parts of every spec.

    Without ``needs_train``, a dataset with a validation split need not have training images.

    The fakes of ``exclude_generators`` are removed from the training and validation parts but stay in the test part,
    where they are unseen.

    In a dataset without a validation split, a tenth of the training images is held out, chosen by a hash of their
    group or path, so that the same images are held out on every machine and in every run.

    Raises:
        UserError: a spec is wrong, names a split itself, has unlabelled images, or all together lack one class; an
            image has both labels; no dataset has fakes of a generator to exclude.
    """
    data = TrainingData([], [], [], [])
    check_generators(specs, exclude_generators)
    for text in specs:
        spec = parse_spec(text)
        if "split" in spec.options:
            raise UserError(
                f"expected --data without split= for training, got {text!r}; the splits are chosen by train.py"
            )
        source = read_source(spec)
        first = open_records(spec, source=source)
        part = "train" if "train" in first.splits else "all"
        train = _open_part(spec, part, exclude_generators, source)
        if first.splits and "train" not in first.splits:
            if needs_train or "valid" not in first.splits:
                wanted = "train" if needs_train else "train or valid"
                raise UserError(f"expected a {wanted} split in {text!r}, found {', '.join(first.splits)} only")
            train = replace(train, split="train", records=[])
        used, once = parts_in_use(spec), spec.replace(repeat=None)
        valid = [_open_part(once, "valid", exclude_generators, source)] if "valid" in first.splits else []
        if not valid and "valid" in used:
            train, valid = hold_out(train)[0], [hold_out(_open_part(once, part, exclude_generators, source))[1]]
            flat = "splits: a tenth is held out for validation, and there is no test set"
            lacking = "valid split: a tenth of its training images is held out" if first.splits else flat
            data.notes.append(f"{train.name} has no {lacking}")
        tests = [open_records(once, "test", source)] if "test" in first.splits else []
        held_back = {record.group for part in (*valid, *tests) for record in part.records}
        data.train.extend([train] if train.records else [])
        data.valid.extend(listing for listing in valid if listing.records and "valid" in used)
        data.test.extend(tests if "test" in used else [])
        if shared := ({record.group for record in train.records} & held_back) - {""}:
            data.notes.append(f"{train.name}: {len(shared)} groups are in training and in other splits, see audit.py")
    for part in ("train", "valid") if needs_train else ("valid",):
        check_two_classes([record for listing in getattr(data, part) for record in listing.records], part)
    for name in dict.fromkeys(listing.name for listing in data.train):
        roots = dict.fromkeys(listing.root for listing in data.train if listing.name == name)
        if len(roots) > 1:
            data.notes.append(f"{' and '.join(roots)} are both named {name} and count as one source; rename one")
    check_labels(record for listing in (*data.train, *data.valid, *data.test) for record in listing.records)
    return data


def hold_out(listing: Listing) -> tuple[Listing, Listing]:
    """Divide a listing into training and validation records by a hash of each image's group or path below the root.

    Images of one group stay together. A class without any image held out, as happens in small datasets, gives up the
    image or group with the lowest hash.
    """

    def key_of(record: Record) -> str:
        # However the spec names the folder (`faces`, `./faces/`, `/data/faces`), the hash is the same.
        return f"group {record.group}" if record.group else relative_path(record.path, listing.root)

    keys = [key_of(record) for record in listing.records]
    shares = {key: int(hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) for key in {*keys}}
    held_out = {key for key, value in shares.items() if value < VALID_SHARE * 2**32}
    for label in (0, 1):
        own = {key for key, record in zip(keys, listing.records, strict=True) if record.label == label}
        if len(own) > 1 and not own & held_out:
            held_out.add(min(own, key=lambda key: shares[key]))
    parts = []
    for split, wanted in (("train", False), ("valid", True)):
        records = [r for key, r in zip(keys, listing.records, strict=True) if (key in held_out) == wanted]
        parts.append(replace(listing, split=split, records=records))
    return parts[0], parts[1]


def contradictions(records: Iterable[Record]) -> list[tuple[Record, Record]]:
    """Pairs of records of the same file with different labels, however their paths are spelt."""
    first: dict[tuple, Record] = {}
    found = []
    for record in {(record.path, record.label): record for record in records}.values():
        other = first.setdefault(same_image_key(record.path), record)
        if other.label != record.label:
            found.append((other, record))
    return found


def check_labels(records: Iterable[Record]) -> None:
    """Raise UserError if an image is listed as real and as fake."""
    if found := contradictions(records):
        one, other = found[0]
        paths = one.path if one.path == other.path else f"{one.path} ({other.path})"
        raise UserError(
            f"expected one label per image, got real and fake for {len(found)}, such as {paths}; "
            "correct the list, or write a clean one with audit.py --write-clean-lists"
        )


def check_two_classes(records: Sequence[Record], part: str) -> None:
    """Raise UserError unless the records hold labelled images of both classes."""
    unlabelled = sum(record.label is None for record in records)
    if unlabelled:
        raise UserError(f"expected a label for every image of the {part} split, got {unlabelled} without")
    counts = count(records, 0), count(records, 1)
    if not records:
        raise UserError(f"expected images in the {part} split, got none; use= or another option leaves them out")
    if 0 in counts:
        raise UserError(
            f"expected real and fake images in the {part} split, got {counts[0]} real and {counts[1]} fake; "
            "add a --data spec that holds the missing class"
        )


def count(records: Sequence[Record], label: int) -> int:
    """Number of records with this label."""
    return sum(record.label == label for record in records)


def fake_generators(listing: Listing) -> list[str]:
    """Names of the generators of the fakes in a listing, sorted."""
    return sorted({record.generator for record in listing.records if record.label == 1})


def check_generators(specs: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError unless some dataset has fakes of each of these generators; case is ignored."""
    if not names:
        return
    found = sorted({name for text in specs for name in fake_generators(open_records(text, "all"))})
    missing = [name for name in names if name.lower() not in map(str.lower, found)]
    if missing:
        raise UserError(
            f"expected --exclude-generator with generators of the data ({', '.join(found)}), got {', '.join(missing)}"
        )


def _open_part(spec: DatasetSpec, part: str, exclude: Sequence[str], source: Source) -> Listing:
    """Open one split without the fakes of some generators, which it need not contain."""
    listing = open_records(spec, part, source)
    unwanted = {name for name in fake_generators(listing) if name.lower() in map(str.lower, exclude)}
    if not unwanted:
        return listing
    if all(record.generator in unwanted and record.label == 1 for record in listing.records):
        return replace(listing, records=[])
    unwanted.update(filter(None, spec.options.get("exclude_generator", "").split("+")))
    return open_records(spec.replace(exclude_generator="+".join(sorted(unwanted))), part, source)
