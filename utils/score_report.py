"""Scores files in, tables and figures out: needs neither a model nor an image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.curves import confusion, pr_curve, roc_curve
from utils.figures import save_figure
from utils.files import write_json
from utils.metrics import metrics_row
from utils.score_figures import confusion_figure, pr_figure, roc_figure, score_histogram_figure
from utils.scores import ScoreTable, read_scores, read_sidecar
from utils.tables import write_table

COLUMNS = [
    ("checkpoint", "Checkpoint"), ("dataset", "Data"), ("split", "Split"), ("tier", "Tier"), ("n_real", "Real"),
    ("n_fake", "Fake"), ("auc", "AUC"), ("ap", "AP"), ("acc", "Acc"), ("real_acc", "Real acc"),
    ("fake_acc", "Fake acc"), ("f1", "F1"), ("eer", "EER"), ("tpr_at_fpr1", "TPR@1%FPR"), ("ece", "ECE"),
    ("brier", "Brier"), ("threshold", "Threshold"), ("unreadable", "Unreadable"),
]  # fmt: skip
GENERATOR_COLUMNS = [COLUMNS[0], COLUMNS[1], ("generator", "Generator"), *COLUMNS[3:11]]
DEFAULT_THRESHOLD = 0.5  # of a scores file that came without its JSON file


@dataclass
class ScoredSet:
    """The scores of one checkpoint on one data set and tier, with what its JSON file says."""

    table: ScoreTable
    info: dict[str, Any]
    tier: str

    @property
    def name(self) -> str:
        """Title in figures: ``cnn-demo on demo``, with the split and the tier where they are not the usual ones."""
        unusual = [part for part, usual in ((self.info["split"], "test"), (self.tier, "clean")) if part != usual]
        words = ", ".join(part for part in unusual if part)
        return f"{self.info['checkpoint']} on {self.info['dataset']}" + (f" ({words})" if words else "")

    @property
    def unreadable(self) -> int:
        """Number of images of this data set and tier that have no score."""
        own = {"dataset": self.info["dataset"], "tier": self.tier}  # the JSON file names them where it has several
        return sum(all(item.get(key, own[key]) == own[key] for key in own) for item in self.info["unreadable"])

    @property
    def threshold(self) -> float:
        """The checkpoint's threshold on p_fake."""
        return DEFAULT_THRESHOLD if self.info["threshold"] is None else self.info["threshold"]

    @property
    def stem(self) -> str:
        """Name of its figures; a part that is no file name (``a/b``) becomes one."""
        split = () if self.info["split"] in (None, "test") else (self.info["split"],)
        parts = (self.info["checkpoint"], self.info["dataset"], *split, self.tier)
        return "__".join(str(part).replace("/", "_").replace("\\", "_") for part in parts)

    def row(self, table: ScoreTable, n_boot: int) -> dict[str, Any]:
        """Measure ``table``, a part of these scores, at the checkpoint's threshold."""
        return metrics_row(
            table.label, table.p_fake, self.threshold, n_boot=n_boot, tier=self.tier,
            unreadable=self.unreadable,
            **{key: self.info[key] for key in ("checkpoint", "model", "dataset", "split")},
        )  # fmt: skip


def read_evaluations(files: Sequence[Path]) -> list[ScoredSet]:
    """Read scores files and their JSON files; one entry per file, data set and tier."""
    sets = []
    for file in files:
        info = read_sidecar(file)
        for (dataset, tier), table in read_scores(file).groups("dataset", "tier"):
            known = {"checkpoint": info["checkpoint"] or Path(file).stem, "dataset": dataset}
            sets.append(ScoredSet(table, {**info, **known}, tier))
    return sets


def write_report(sets: Sequence[ScoredSet], folder: Path, n_boot: int) -> tuple[list[dict[str, Any]], int]:
    """Write every table and figure; returns the metrics rows and the number of unreadable images."""
    rows = [{**scored.row(scored.table, n_boot), "generator": "all"} for scored in sets]
    by_generator = [row for scored in sets for row in generator_rows(scored, n_boot)]
    write_json(folder / "metrics.json", rows + by_generator)
    caption = "Detection of fake faces; 95 % bootstrap intervals."
    write_table(rows, COLUMNS, folder / "metrics", caption)
    if by_generator:
        write_table(by_generator, GENERATOR_COLUMNS, folder / "generators", f"{caption} One generator at a time.")
    write_figures(sets, folder)
    return rows, sum(len(info["unreadable"]) for info in {id(s.info["unreadable"]): s.info for s in sets}.values())


def generator_rows(scored: ScoredSet, n_boot: int) -> list[dict[str, Any]]:
    """Rows of the fakes of each generator against all reals; none where there is only one generator."""
    generators = np.array(scored.table.generator)
    is_fake = scored.table.label == 1
    names = sorted(set(generators[is_fake]))
    if len(names) < 2:
        return []
    parts = {name: scored.table.select(~is_fake | (generators == name)) for name in names}
    return [{**scored.row(part, n_boot), "generator": name} for name, part in parts.items()]


def write_figures(sets: Sequence[ScoredSet], folder: Path) -> None:
    """Draw ROC and precision-recall over all sets with both classes; confusion and scores for each set."""
    titles = unique_names([scored.name for scored in sets])
    both = {t: s.table for t, s in zip(titles, sets, strict=True) if len(set(s.table.label.tolist())) == 2}
    if both:
        rocs = {title: roc_curve(table.label, table.p_fake)[:2] for title, table in both.items()}
        save_figure(roc_figure(rocs), folder / "roc")
        curves = {title: pr_curve(table.label, table.p_fake)[:2] for title, table in both.items()}
        save_figure(pr_figure(curves), folder / "precision_recall")
    for scored, title, stem in zip(sets, titles, unique_names([s.stem for s in sets]), strict=True):
        table = scored.table
        matrix = confusion(table.label, table.p_fake, scored.threshold)
        save_figure(confusion_figure(matrix, title=title), folder / "figures" / f"confusion__{stem}")
        histogram = score_histogram_figure(table.label, table.p_fake, scored.threshold, title)
        save_figure(histogram, folder / "figures" / f"scores__{stem}")


def unique_names(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once, ``cnn-1, cnn-2``, so that no two in the result are the same."""
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(1))
        repeated = names.count(name) > 1
        unique.append(next(new for new in numbered if new not in (*names, *unique)) if repeated else name)
    return unique
