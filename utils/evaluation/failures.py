"""The most confident wrong verdicts of each detector on each data set, and a CSV list to test the next one on."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.spec import LABEL_NAMES
from utils.scoring.table import ScoreTable

DEFAULT_THRESHOLD = 0.5  # of scores whose JSON file is missing
FAILURE_KEYS = ("path", "label", "generator", "p_fake", "dataset", "tier", "checkpoint")


@dataclass
class Failure:
    """One wrong verdict; ``others`` maps further tiers to p_fake of the same image."""

    path: str
    label: int
    generator: str
    p_fake: float
    others: dict[str, float] = field(default_factory=dict)


@dataclass
class DataSource:
    """The tiers of one checkpoint on one data set, and its worst errors in ``tier``, the clean or else the first."""

    checkpoint: str
    dataset: str
    split: str
    threshold: float
    tiers: dict[str, ScoreTable] = field(default_factory=dict)
    tier: str = ""
    failures: list[Failure] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Heading of its section: ``cnn-demo on demo``, with the split where it is not test."""
        split = "" if self.split in ("", "test") else f" ({self.split})"
        return f"{self.checkpoint} on {self.dataset}{split}"


def find_failures(sets: Iterable[tuple[ScoreTable, Mapping[str, Any]]], per_source: int) -> list[DataSource]:
    """Group scores into data sources and pick the worst errors of each, the most confident first."""
    sources: list[DataSource] = []
    for table, info in sets:
        threshold = DEFAULT_THRESHOLD if info.get("threshold") is None else float(info["threshold"])
        for (dataset, tier), part in table.groups("dataset", "tier"):
            key = (str(info.get("checkpoint") or "scores"), dataset, str(info.get("split") or ""), threshold)
            same = [
                s for s in sources if (s.checkpoint, s.dataset, s.split, s.threshold) == key and tier not in s.tiers
            ]
            if not same:
                same = [DataSource(*key)]
                sources += same
            same[0].tiers[tier] = part
    for source in sources:
        source.tier = "clean" if "clean" in source.tiers else next(iter(source.tiers))
        source.failures = _worst(source, per_source)
    return sources


def _worst(source: DataSource, count: int) -> list[Failure]:
    table = source.tiers[source.tier]
    wrong = np.flatnonzero((table.p_fake >= source.threshold) != (table.label == 1))
    confidence = np.abs(_evidence(table.p_fake[wrong]) - _evidence(np.array(source.threshold)))
    # Certain verdicts tie at p_fake 0 or 1, where the raw logit still tells them apart; then the row order.
    worst = wrong[np.lexsort((-np.abs(table.logit[wrong]), -confidence))][:count]
    others = {
        tier: dict(zip(part.path, part.p_fake.tolist(), strict=True))
        for tier, part in source.tiers.items()
        if tier != source.tier
    }
    failures = []
    for row in worst:
        path = table.path[row]
        there = {tier: scores[path] for tier, scores in others.items() if path in scores}
        failures.append(Failure(path, int(table.label[row]), table.generator[row], float(table.p_fake[row]), there))
    return failures


def _evidence(p_fake: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), held in [-30, 30]: beyond, p_fake near 1 has no digits left, and both ends should tie."""
    p_fake = np.clip(p_fake, 1e-15, 1 - 1e-15)
    return np.clip(np.log(p_fake) - np.log1p(-p_fake), -30, 30)


def failures_csv(sources: Sequence[DataSource], folder: Path) -> str:
    """The failures as a CSV list: labels by name, paths from ``folder``, every image once."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FAILURE_KEYS)
    seen = set()
    for source in sources:
        for item in source.failures:
            path = _relative(item.path, folder)
            if path not in seen:
                seen.add(path)
                label = LABEL_NAMES[item.label]
                where = (source.dataset, source.tier, source.checkpoint)
                writer.writerow([path, label, item.generator, item.p_fake, *where])
    return text.getvalue()


def _relative(path: str, folder: Path) -> str:
    """The path of an image as seen from a folder; links on the way are followed, since ``..`` does not see them."""
    parent, name = os.path.split(path)
    image = os.path.join(os.path.realpath(parent), name)
    try:
        return os.path.relpath(image, os.path.realpath(folder)).replace(os.sep, "/")
    except ValueError:  # another drive
        return image
