"""Which images a run may train on, choose on and report on; mixes several data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from datasets.spec import DatasetSpec, Listing, Record, open_records, parse_spec
from utils.errors import UserError

VALID_SHARE = 0.1


@dataclass(frozen=True)
class TrainingData:
    """The listings of a training run, one of each kind per data set; ``test`` is empty where a set has none."""

    train: list[Listing]
    valid: list[Listing]
    test: list[Listing]
    notes: list[str]

    @property
    def train_records(self) -> list[Record]:
        """The training records of all datasets."""
        return [record for listing in self.train for record in listing.records]

    def describe(self) -> list[dict]:
        """Plain values for the checkpoint: what was trained on and chosen on."""
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


def open_training_data(specs: Sequence[str], exclude_generators: Sequence[str] = ()) -> TrainingData:
    """Open the train, valid and test parts of every spec.

    The fakes of ``exclude_generators`` are left out of the training and the validation part and stay in the test
    part, so that a detector is tested on what it has never seen.

    A set without a validation split gives up a tenth of its training images, chosen by a hash of their path, so
    that the same image is held out on every machine and in every run. A set without any split is treated alike.

    Raises:
        UserError: a spec is wrong, names a split itself, has unlabelled images, or all together lack one class;
            no set has fakes of a generator that is to be excluded.
    """
    data = TrainingData([], [], [], [])
    check_generators(specs, exclude_generators)
    for text in specs:
        spec = parse_spec(text)
        if "split" in spec.options:
            raise UserError(
                f"expected --data without split= for training, got {text!r}; the splits are chosen by train.py"
            )
        first = open_records(spec)
        part = "train" if "train" in first.splits else "all"
        train = _open_part(spec, part, exclude_generators)
        if not first.splits:
            data.notes.append(f"{train.name} has no splits: a tenth is held out for validation, nothing for a test")
        elif "train" not in first.splits:
            raise UserError(f"expected a train split in {text!r}, found {', '.join(first.splits)} only")
        if "valid" in first.splits:
            valid = _open_part(_without(spec, "repeat"), "valid", exclude_generators)
        else:
            once = _open_part(_without(spec, "repeat"), part, exclude_generators)
            train, valid = hold_out(train)[0], hold_out(once)[1]
            if first.splits:
                data.notes.append(f"{train.name} has no valid split: a tenth of its training images is held out")
        data.train.append(train)
        data.valid.append(valid)
        if "test" in first.splits:
            data.test.append(open_records(_without(spec, "repeat"), "test"))
    for part in ("train", "valid"):
        check_two_classes([record for listing in getattr(data, part) for record in listing.records], part)
    return data


def hold_out(listing: Listing) -> tuple[Listing, Listing]:
    """Divide a listing into training and validation records by a hash of each image's path below the root.

    A class of which this would hold out nothing, as happens in sets of a few images, gives up one image.
    """

    def share(record: Record) -> float:
        # However the spec names the folder (`faces`, `./faces/`, `/data/faces`), the hash is the same.
        relative = record.path.removeprefix(listing.root).lstrip("/")
        return int(hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) / 2**32

    shares = {record.path: share(record) for record in listing.records}
    held_out = {path for path, value in shares.items() if value < VALID_SHARE}
    for label in (0, 1):
        paths = {record.path for record in listing.records if record.label == label}
        if len(paths) > 1 and not paths & held_out:
            held_out.add(min(paths, key=lambda path: shares[path]))
    parts = []
    for split, wanted in (("train", False), ("valid", True)):
        records = [record for record in listing.records if (record.path in held_out) == wanted]
        parts.append(Listing(listing.name, split, records, listing.fingerprint, listing.root, listing.splits))
    return parts[0], parts[1]


def check_two_classes(records: Sequence[Record], part: str) -> None:
    """Raise UserError unless the records hold labelled images of both classes."""
    unlabelled = sum(record.label is None for record in records)
    if unlabelled:
        raise UserError(f"expected a label for every image of the {part} split, got {unlabelled} without")
    counts = count(records, 0), count(records, 1)
    if 0 in counts:
        raise UserError(
            f"expected real and fake images in the {part} split, got {counts[0]} real and {counts[1]} fake; "
            "add a --data spec that holds the missing class"
        )


def count(records: Sequence[Record], label: int) -> int:
    """Number of records with this label."""
    return sum(record.label == label for record in records)


def fake_generators(listing: Listing) -> list[str]:
    """Names of the generators whose fakes are in a listing, sorted."""
    return sorted({record.generator for record in listing.records if record.label == 1})


def check_generators(specs: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError unless some data set has fakes of each of these generators, in any case of letters."""
    if not names:
        return
    found = sorted({name for text in specs for name in fake_generators(open_records(text, "all"))})
    missing = [name for name in names if name.lower() not in map(str.lower, found)]
    if missing:
        raise UserError(
            f"expected --exclude-generator with generators of the data ({', '.join(found)}), got {', '.join(missing)}"
        )


def _open_part(spec: DatasetSpec, part: str, exclude: Sequence[str]) -> Listing:
    """Open one split without the fakes of some generators, of which it may hold none."""
    listing = open_records(spec, part)
    unwanted = {name for name in fake_generators(listing) if name.lower() in map(str.lower, exclude)}
    if not unwanted:
        return listing
    unwanted.update(filter(None, spec.options.get("exclude_generator", "").split("+")))
    options = {**spec.options, "exclude_generator": "+".join(sorted(unwanted))}
    return open_records(DatasetSpec(spec.kind, spec.location, options), part)


def _without(spec: DatasetSpec, option: str) -> DatasetSpec:
    options = {key: value for key, value in spec.options.items() if key != option}
    return DatasetSpec(spec.kind, spec.location, options)
