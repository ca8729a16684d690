"""Scores files in, tables and figures out: needs neither a model nor an image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.perturbations import CLEAN, NO_CHANGE, is_trained_on, ladder_place, parse_severity
from utils.evaluation.curves import confusion, coverage, pr_curve, reliability, roc_curve
from utils.evaluation.figures import (
    confusion_figure,
    coverage_figure,
    pr_figure,
    reliability_figure,
    roc_figure,
    score_histogram_figure,
    severity_figure,
)
from utils.figures import save_figure
from utils.files import atomic_write_text, write_json
from utils.metrics.binary import metrics_row
from utils.scoring.table import ScoreTable, read_scores, read_sidecar, sidecar_path
from utils.tables import csv_table, write_table

COLUMNS = [
    ("checkpoint", "Checkpoint"),
    ("dataset", "Data"),
    ("split", "Split"),
    ("seen", "Seen"),
    ("tier", "Tier"),
    ("n_real", "Real"),
    ("n_fake", "Fake"),
    ("auc", "AUC"),
    ("ap", "AP"),
    ("acc", "Acc"),
    ("real_acc", "Real acc"),
    ("fake_acc", "Fake acc"),
    ("f1", "F1"),
    ("eer", "EER"),
    ("tpr_at_fpr1", "TPR@1%FPR"),
    ("ece", "ECE"),
    ("brier", "Brier"),
    ("threshold", "Threshold"),
    ("unreadable", "Unreadable"),
]
GENERATOR_COLUMNS = [COLUMNS[0], COLUMNS[1], ("generator", "Generator"), *COLUMNS[4:12]]
SEVERITY_COLUMNS = [*COLUMNS[:4], ("perturbation", "Perturbation"), ("severity", "Severity"), *COLUMNS[5:12]]
DAGGER = "\N{DAGGER}"
IN_DOMAIN, UNSEEN = "in-domain", "unseen"
CAPTION = "Detection of fake faces; 95 % bootstrap intervals."
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
        unusual = [part for part, usual in ((self.info["split"], "test"), (self.tier, CLEAN)) if part != usual]
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
    def seen(self) -> str | None:
        """Whether the checkpoint was trained on images of this source; None where its JSON file does not say."""
        trained_on = self.info.get("trained_on")
        if not trained_on:
            return None
        return IN_DOMAIN if (self.info.get("source") or self.info["dataset"]) in trained_on else UNSEEN

    @property
    def stem(self) -> str:
        """Name of its figures; a part that is no file name (``a/b``) becomes one."""
        split = () if self.info["split"] in (None, "test") else (self.info["split"],)
        parts = (self.info["checkpoint"], self.info["dataset"], *split, self.tier)
        return "__".join(str(part).replace("/", "_").replace("\\", "_") for part in parts)

    def row(self, table: ScoreTable, n_boot: int) -> dict[str, Any]:
        """Measure ``table``, a part of these scores, at the checkpoint's threshold."""
        row = metrics_row(
            table.label,
            table.p_fake,
            self.threshold,
            n_boot=n_boot,
            tier=self.tier,
            unreadable=self.unreadable,
            **{key: self.info[key] for key in ("checkpoint", "model", "dataset", "split")},
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


def write_report(sets: Sequence[ScoredSet], folder: Path, n_boot: int) -> tuple[list[dict[str, Any]], int]:
    """Write every table and figure, unseen sources first and in-domain rows last.

    Returns:
        The metrics rows, those of the severity ladders last, and the number of unreadable images.
    """
    sets = sorted(sets, key=lambda scored: scored.seen == IN_DOMAIN)
    steps = [scored for scored in sets if parse_severity(scored.tier)]
    whole = [scored for scored in sets if not parse_severity(scored.tier)]
    rows = [{**scored.row(scored.table, n_boot), "generator": "all"} for scored in whole]
    by_generator = [row for scored in whole for row in generator_rows(scored, n_boot)]
    by_severity = severity_rows(steps, n_boot)
    write_json(folder / "metrics.json", rows + by_severity + by_generator)
    write_marked_table(rows, COLUMNS, folder / "metrics", CAPTION)
    if by_generator:
        write_marked_table(
            by_generator, GENERATOR_COLUMNS, folder / "generators", f"{CAPTION} One generator at a time."
        )
    if by_severity:
        write_marked_table(by_severity, SEVERITY_COLUMNS, folder / "severity", f"{CAPTION} One degradation at a time.")
        write_severity_figures(rows, by_severity, folder)
    write_figures(whole, folder)
    unreadable = {(scored.info["dataset"], item["path"]) for scored in sets for item in scored.info["unreadable"]}
    return rows + by_severity, len(unreadable)


def write_marked_table(
    rows: Sequence[dict[str, Any]], columns: list[tuple[str, str]], stem: Path, caption: str
) -> None:
    """Write a table with a dagger at degradations that the checkpoint was trained with; the CSV has a column for it."""
    mark = next((key for key, _ in columns if key in ("tier", "perturbation")))
    shown = [{**row, mark: f"{row[mark]}{DAGGER if row['trained_on_tier'] else ''}"} for row in rows]
    if any(row["trained_on_tier"] for row in rows):
        caption += f" {DAGGER} degraded in ways that the checkpoint's training augmentation already applied."
    write_table(shown, columns, stem, caption)
    atomic_write_text(f"{stem}.csv", csv_table(rows, [*columns, ("trained_on_tier", "Trained on tier")]))


def severity_rows(steps: Sequence[ScoredSet], n_boot: int) -> list[dict[str, Any]]:
    """Rows of single degradations, with their ``perturbation`` and ``severity``, each ladder in its own order."""
    rows = []
    for scored in steps:
        kind, level = parse_severity(scored.tier) or ("", 0.0)
        row = scored.row(scored.table, n_boot)
        rows.append({**row, "generator": "all", "perturbation": kind, "severity": level})
    sources = list(dict.fromkeys(source_name(row) for row in rows))
    rows.sort(key=lambda row: (sources.index(source_name(row)), ladder_place(row["perturbation"], row["severity"])))
    return rows


def source_name(row: dict[str, Any]) -> str:
    """Name of a curve over severities: ``cnn-demo on demo``, with the split where it is not test."""
    split = "" if row["split"] in (None, "test") else f" ({row['split']})"
    return f"{row['checkpoint']} on {row['dataset']}{split}"


def write_severity_figures(rows: Sequence[dict[str, Any]], by_severity: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw AUC and accuracy over each ladder, a curve per checkpoint and data set; clean, if scored, has its place."""
    for kind in dict.fromkeys(row["perturbation"] for row in by_severity):
        own = [row for row in by_severity if row["perturbation"] == kind]
        curves: dict[str, dict[float, dict[str, Any]]] = {source_name(row): {} for row in own}
        clean = [row for row in rows if row["tier"] == CLEAN and source_name(row) in curves]
        for row in (*({**row, "severity": NO_CHANGE[kind]} for row in clean), *own):
            curves[source_name(row)][row["severity"]] = row
        levels = sorted({level for curve in curves.values() for level in curve}, key=lambda v: ladder_place(kind, v))
        ticks = [CLEAN if clean and level == NO_CHANGE[kind] else f"{level:g}" for level in levels]
        points = {name: [curve.get(level) for level in levels] for name, curve in curves.items()}
        save_figure(severity_figure(kind, ticks, points), folder / "figures" / f"severity__{kind}")


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
    """Draw the curves of each tier's sets in common figures, and confusion and scores for each set."""
    titles = unique_names([scored.name for scored in sets])
    named = list(zip(titles, sets, strict=True))
    for tier in dict.fromkeys(scored.tier for scored in sets):
        both = {title: s for title, s in named if s.tier == tier and len(set(s.table.label.tolist())) == 2}
        if both:
            write_common_figures(both, folder, "" if tier == CLEAN else f"__{tier}")
    for scored, title, stem in zip(sets, titles, unique_names([s.stem for s in sets]), strict=True):
        table = scored.table
        matrix = confusion(table.label, table.p_fake, scored.threshold)
        save_figure(confusion_figure(matrix, title=title), folder / "figures" / f"confusion__{stem}")
        histogram = score_histogram_figure(table.label, table.p_fake, scored.threshold, title)
        save_figure(histogram, folder / "figures" / f"scores__{stem}")


def write_common_figures(sets: dict[str, ScoredSet], folder: Path, suffix: str) -> None:
    """Draw ROC, precision-recall, reliability and coverage with a curve per set; all have both classes."""
    scores = {title: (s.table.label, s.table.p_fake) for title, s in sets.items()}
    figures = {
        "roc": roc_figure({title: roc_curve(*both)[:2] for title, both in scores.items()}),
        "precision_recall": pr_figure({title: pr_curve(*both)[:2] for title, both in scores.items()}),
        "reliability": reliability_figure({title: reliability(*both) for title, both in scores.items()}),
        "coverage": coverage_figure({t: coverage(*both, sets[t].threshold) for t, both in scores.items()}),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}{suffix}")


def unique_names(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once, ``cnn-1, cnn-2``, so that no two in the result are the same."""
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(1))
        repeated = names.count(name) > 1
        unique.append(next(new for new in numbered if new not in (*names, *unique)) if repeated else name)
    return unique
