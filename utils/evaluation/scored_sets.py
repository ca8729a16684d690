"""The scores of a checkpoint on a data set and tier, as read from scores files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.perturbations import CLEAN, is_trained_on
from models.operating_point import DEFAULT_THRESHOLD
from utils.metrics.binary import metrics_row
from utils.scoring.table import ScoreTable, read_scores, read_sidecar, sidecar_path

IN_DOMAIN, UNSEEN = "in-domain", "unseen"
OTHER_NAMES = {"140k": "faces140k"}  # of the same source: the whole set that users download, the part in the releases


def is_among(source: str, trained_on: Collection[str]) -> bool:
    """Tell whether a source is one of those that a detector was trained on, by its name."""
    return OTHER_NAMES.get(source, source) in {OTHER_NAMES.get(name, name) for name in trained_on}


@dataclass
class ScoredSet:
    """The scores of one checkpoint on one data set and tier, with what their JSON file says."""

    table: ScoreTable
    info: dict[str, Any]
    tier: str

    @property
    def name(self) -> str:
        """Title in figures: ``cnn-demo on demo``, with the split unless it is test and the tier unless it is clean."""
        unusual = [
            part for part, usual in ((self.info["split"], "test"), (self.tier, CLEAN)) if part not in (None, usual)
        ]
        return f"{self.info['checkpoint']} on {self.info['dataset']}" + (f" ({', '.join(unusual)})" if unusual else "")

    @property
    def stem(self) -> str:
        """File name of its figures; a part such as ``a/b`` loses its slash."""
        split = () if self.info["split"] in (None, "test") else (self.info["split"],)
        parts = (self.info["checkpoint"], self.info["dataset"], *split, self.tier)
        return "__".join(str(part).replace("/", "_").replace("\\", "_") for part in parts)

    @property
    def unreadable(self) -> int:
        """Number of images of this data set and tier without a score."""
        own = {"dataset": self.info["dataset"], "tier": self.tier}  # the JSON file names them where it has several
        return sum(all(item.get(key, own[key]) == own[key] for key in own) for item in self.info["unreadable"])

    @property
    def threshold(self) -> float:
        """The checkpoint's threshold on p_fake."""
        return DEFAULT_THRESHOLD if self.info["threshold"] is None else self.info["threshold"]

    @property
    def seen(self) -> str | None:
        """Whether the checkpoint was trained on a source of this name; None where the JSON file does not say."""
        trained_on = self.info.get("trained_on")
        if not trained_on:
            return None
        return IN_DOMAIN if is_among(self.info.get("source") or self.info["dataset"], trained_on) else UNSEEN

    @property
    def images(self) -> list[str]:
        """Paths of the image files, from the folder in which evaluate.py ran."""
        root = self.info.get("root")
        return [f"{root}/{path}" if root else path for path in self.table.path]

    def row(self, table: ScoreTable, n_boot: int) -> dict[str, Any]:
        """Measure ``table``, some of these scores, at the checkpoint's threshold."""
        identity: dict[str, Any] = {key: self.info.get(key) for key in ("checkpoint", "model", "dataset", "split")}
        row = metrics_row(
            table.label, table.p_fake, self.threshold, n_boot, tier=self.tier, unreadable=self.unreadable, **identity
        )
        trained = is_trained_on(self.tier, self.info.get("augmentation"))
        return {**row, "seen": self.seen, "trained_on_tier": trained}


def read_evaluations(files: Sequence[Path]) -> list[ScoredSet]:
    """Read scores files and their JSON files; one entry per file, data set and tier."""
    sets = []
    for file in files:
        info = read_sidecar(file)
        for (dataset, tier), table in read_scores(file).groups("dataset", "tier"):
            known = {"checkpoint": info["checkpoint"] or sidecar_path(file).stem, "dataset": dataset}
            sets.append(ScoredSet(table, {**info, **known}, tier))
    return sets
