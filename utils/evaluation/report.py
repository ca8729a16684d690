"""Tables and figures from scores files; needs neither a model nor an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.perturbations import CLEAN, NO_CHANGE, ladder_place, parse_severity
from utils.errors import UserError
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
from utils.evaluation.scored_sets import IN_DOMAIN, ScoredSet
from utils.figures import save_figure
from utils.files import atomic_write_text, write_json
from utils.scoring.table import ScoreTable
from utils.tables import columns, csv_table, unique_names, write_table

COLUMNS = [
    *columns(checkpoint="Checkpoint", dataset="Data", split="Split", seen="Seen", tier="Tier", n_real="Real"),
    *columns(n_fake="Fake", auc="AUC", ap="AP", acc="Acc", real_acc="Real acc", fake_acc="Fake acc", f1="F1"),
    *columns(eer="EER", tpr_at_fpr1="TPR@1%FPR", ece="ECE", brier="Brier", threshold="Threshold"),
    *columns(unreadable="Unreadable"),
]
GENERATOR_COLUMNS = [COLUMNS[0], COLUMNS[1], ("generator", "Generator"), *COLUMNS[4:12]]
SEVERITY_COLUMNS = [*COLUMNS[:4], ("perturbation", "Perturbation"), ("severity", "Severity"), *COLUMNS[5:12]]
ONE_CLASS_COLUMNS = [column for column in COLUMNS if column[0] not in ("ece", "brier", "unreadable")]
DAGGER = "\N{DAGGER}"
CAPTION = "Detection of fake faces; 95 % bootstrap intervals."


def write_report(sets: Sequence[ScoredSet], folder: Path, n_boot: int) -> tuple[list[dict[str, Any]], int]:
    """Write every table and figure, unseen sources first and in-domain rows last.

    Returns:
        The metrics rows, those of the severity ladders last, and the number of unreadable images.
    """
    sets = sorted(sets, key=lambda scored: scored.seen == IN_DOMAIN)
    whole = [scored for scored in sets if not parse_severity(scored.tier)]
    rows = [{**scored.row(scored.table, n_boot), "generator": "all"} for scored in whole]
    by_generator = [row for scored in whole for row in generator_rows(scored, n_boot)]
    by_severity = severity_rows([scored for scored in sets if parse_severity(scored.tier)], n_boot)
    write_json(folder / "metrics.json", rows + by_severity + by_generator)
    write_marked_table(rows, COLUMNS, folder / "metrics", CAPTION)
    if by_generator:
        caption = f"{CAPTION} One generator at a time."
        write_marked_table(by_generator, GENERATOR_COLUMNS, folder / "generators", caption)
    if by_severity:
        write_marked_table(by_severity, SEVERITY_COLUMNS, folder / "severity", f"{CAPTION} One degradation at a time.")
        write_severity_figures(rows, by_severity, folder)
    write_figures(whole, folder)
    unreadable = {(scored.info["dataset"], item["path"]) for scored in sets for item in scored.info["unreadable"]}
    return rows + by_severity, len(unreadable)


def write_marked_table(rows: Sequence[dict[str, Any]], shown: list[tuple[str, str]], stem: Path, caption: str) -> None:
    """Write a table with a dagger at degradations that the checkpoint was trained with; the CSV has a column for it."""
    mark = next(key for key, _ in shown if key in ("tier", "perturbation"))
    marked = [{**row, mark: f"{row[mark]}{DAGGER if row['trained_on_tier'] else ''}"} for row in rows]
    if any(row["trained_on_tier"] for row in rows):
        caption += f" {DAGGER} degraded in ways that the checkpoint's training augmentation already applied."
    write_table(marked, shown, stem, caption)
    atomic_write_text(f"{stem}.csv", csv_table(rows, [*shown, ("trained_on_tier", "Trained on tier")]))


def write_one_class(sets: Sequence[ScoredSet], reals: Sequence[str], folder: Path, n_boot: int) -> str:
    """Measure sets of fakes only against the real images of the data sets ``reals``; returns the table as Markdown.

    One row per checkpoint, tier and set. All images should have gone through one recipe, the tier ``common``, or the
    file format tells the sets apart.

    Raises:
        UserError: the scores have no real image of such a data set, or no set of fakes only.
    """
    rows = []
    for name, tier in dict.fromkeys((scored.info["checkpoint"], scored.tier) for scored in sets):
        own = [scored for scored in sets if (scored.info["checkpoint"], scored.tier) == (name, tier)]
        known = {scored.info["dataset"]: scored.table.select(scored.table.label == 0) for scored in own}
        for other in reals:
            if not len(known.get(other, ())):
                raise UserError(f"expected --pair of data sets with real images, {', '.join(known)}, got {other!r}")
        others = [known[other] for other in reals]
        for scored in own:
            if scored.table.label.all():
                row = scored.row(ScoreTable.join([scored.table, *others]), n_boot)
                rows.append({**row, "dataset": f"{row['dataset']} / {' + '.join(reals)}"})
    if not rows:
        raise UserError("expected a set of fakes only for --pair, got none; the other sets need no pairing")
    caption = "Sets of fakes only, against the real images of other sets; 95 % bootstrap intervals."
    write_json(folder / "one_class.json", rows)
    return write_table(rows, ONE_CLASS_COLUMNS, folder / "one_class", caption)[1].read_text(encoding="utf-8")


def generator_rows(scored: ScoredSet, n_boot: int) -> list[dict[str, Any]]:
    """Rows of the fakes of each generator against all reals; none where there is only one generator."""
    generators = np.array(scored.table.generator)
    is_fake = scored.table.label == 1
    names = sorted(set(generators[is_fake]))
    if len(names) < 2:
        return []
    parts = {name: scored.table.select(~is_fake | (generators == name)) for name in names}
    return [{**scored.row(part, n_boot), "generator": name} for name, part in parts.items()]


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
    """Return ``cnn-demo on demo`` for a metrics row, with the split unless it is test."""
    split = "" if row["split"] in (None, "", "test") else f" ({row['split']})"
    return f"{row['checkpoint']} on {row['dataset']}{split}"


def write_severity_figures(rows: Sequence[dict[str, Any]], by_severity: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw AUC and accuracy over each ladder, one curve per checkpoint and data set; clean, if scored, is included."""
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


def write_figures(sets: Sequence[ScoredSet], folder: Path) -> None:
    """Draw the curves of each tier's sets in shared figures, and confusion and scores for each set."""
    titles = unique_names([scored.name for scored in sets])
    for tier in dict.fromkeys(scored.tier for scored in sets):
        both = {
            title: (scored.table.label, scored.table.p_fake, scored.threshold)
            for title, scored in zip(titles, sets, strict=True)
            if scored.tier == tier and len(set(scored.table.label.tolist())) == 2
        }
        if not both:
            continue
        figures = {
            "roc": roc_figure({title: roc_curve(*scores[:2])[:2] for title, scores in both.items()}),
            "precision_recall": pr_figure({title: pr_curve(*scores[:2]) for title, scores in both.items()}),
            "reliability": reliability_figure({title: reliability(*scores[:2]) for title, scores in both.items()}),
            "coverage": coverage_figure({title: coverage(*scores) for title, scores in both.items()}),
        }
        for name, figure in figures.items():
            save_figure(figure, folder / (name if tier == CLEAN else f"{name}__{tier}"))
    for scored, title, stem in zip(sets, titles, unique_names([s.stem for s in sets]), strict=True):
        scores = (scored.table.label, scored.table.p_fake, scored.threshold)
        save_figure(confusion_figure(confusion(*scores), title=title), folder / "figures" / f"confusion__{stem}")
        save_figure(score_histogram_figure(*scores, title), folder / "figures" / f"scores__{stem}")
