"""A comparison of two detectors as a table, a figure and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.listing.spec import LABEL_NAMES
from utils.errors import UserError
from utils.evaluation.scored_sets import ScoredSet
from utils.figures import FAKE_COLOUR, GREY, REAL_COLOUR, legend_below, new_figure, save_figure, styled
from utils.files import atomic_write_text, write_json
from utils.metrics.comparison import compare_sets, match_images
from utils.scoring.table import ScoreTable
from utils.tables import csv_table, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISAGREEMENT_KEYS = ("path", "dataset", "tier", "label", "p_fake_a", "p_fake_b")


def write_pair(sets: Sequence[ScoredSet], folder: Path, n_boot: int) -> str:
    """Compare the two checkpoints whose scores these are; returns the table as Markdown.

    Writes comparison.json (everything), comparison.csv, .md and .tex (the table), disagreements.csv (the images on
    which the verdicts differ, the widest gap in p_fake first) and comparison.pdf and .png (the first data set and
    tier).

    Raises:
        UserError: the scores are not of exactly two checkpoints, or not on the same images.
    """
    names = list(dict.fromkeys(scored.info["checkpoint"] for scored in sets))
    if len(names) != 2:
        raise UserError(f"expected scores of two checkpoints for --compare, got {len(names)}: {', '.join(names)}")
    sides = [[scored for scored in sets if scored.info["checkpoint"] == name] for name in names]
    thresholds = [{scored.threshold for scored in side} for side in sides]
    if any(len(values) > 1 for values in thresholds):
        raise UserError("expected one threshold per checkpoint for --compare, got several; score the sets again")
    limits = (thresholds[0].pop(), thresholds[1].pop())
    a, b = match_images(*(ScoreTable.join([scored.table for scored in side]) for side in sides))
    results = compare_sets(a, b, *limits, n_boot)
    images = disagreements(a, b, *limits)
    write_json(folder / "comparison.json", {"name_a": names[0], "name_b": names[1], "sets": results, "images": images})
    columns = [("dataset", "Data"), ("tier", "Tier"), ("figure", "Figure"), ("a", names[0]), ("b", names[1])]
    columns += [("difference", "Difference"), ("test", "Test"), ("p", "p"), ("p_holm", "p, Holm")]
    formats = {"p": ".2g", "p_holm": ".2g"}
    paths = write_table(comparison_rows(results), columns, folder / "comparison", caption(results, names), formats)
    listed = [{**image, "label": LABEL_NAMES[image["label"]]} for image in images]
    atomic_write_text(folder / "disagreements.csv", csv_table(listed, [(key, key) for key in DISAGREEMENT_KEYS]))
    first = (np.array(a.tier) == a.tier[0]) & (np.array(a.dataset) == a.dataset[0])
    figure = comparison_figure(a.select(first), b.select(first), limits, (names[0], names[1]))
    save_figure(figure, folder / "comparison")
    return paths[1].read_text(encoding="utf-8")


def comparison_rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two rows per data set and tier, for AUC and accuracy: a, b, difference (with intervals), test and p values."""
    rows = []
    for result in results:
        mcnemar, delong = result["mcnemar"], result["delong"] or {}
        where = {key: result[key] for key in ("dataset", "tier")}
        row: dict[str, Any] = {**where, "figure": "AUC", "test": "DeLong"}
        row |= {key: delong.get(f"auc_{key}") for key in ("a", "a_ci", "b", "b_ci")}
        rows.append(row | {key: delong.get(key) for key in ("difference", "difference_ci", "p", "p_holm")})
        row = {**where, "figure": "Acc", "test": "McNemar, mid-p"}
        row |= {key: mcnemar[f"acc_{key}"] for key in ("a", "b")}
        row |= {key: mcnemar[key] for key in ("difference", "p", "p_holm")}
        rows.append(row | {"difference_ci": result["acc_difference_ci"]})
    return rows


def caption(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Say what the table shows and how the verdicts split in each data set and tier."""
    text = (
        f"{names[0]} minus {names[1]} on the same images, thresholds {results[0]['threshold_a']:.3g} and "
        f"{results[0]['threshold_b']:.3g}. 95 % intervals: AUC by DeLong, the difference in accuracy by paired "
        f"bootstrap. Each data set and tier is tested alone, and Holm's method corrects p for their number."
    )
    for result in results:
        counts = result["mcnemar"]
        text += (
            f" {result['dataset']}, {result['tier']}: {result['n_real']:,} real and {result['n_fake']:,} fake; both "
            f"right {counts['both_right']:,}, only {names[0]} {counts['only_a_right']:,}, only {names[1]} "
            f"{counts['only_b_right']:,}, neither {counts['both_wrong']:,}."
        )
        text += f" No AUC: {result['delong_reason']}." if result["delong_reason"] else ""
    return text


def disagreements(a: ScoreTable, b: ScoreTable, threshold_a: float, threshold_b: float) -> list[dict[str, Any]]:
    """List the images of matched tables on which the verdicts differ, the widest gap in p_fake first."""
    differ = np.flatnonzero((a.p_fake >= threshold_a) != (b.p_fake >= threshold_b))
    order = differ[np.argsort(-np.abs(a.p_fake - b.p_fake)[differ], kind="stable")]
    columns = (a.path, a.dataset, a.tier, a.label.tolist(), a.p_fake.tolist(), b.p_fake.tolist())
    return [dict(zip(DISAGREEMENT_KEYS, (column[row] for column in columns), strict=True)) for row in order]


@styled
def comparison_figure(
    a: ScoreTable, b: ScoreTable, thresholds: tuple[float, float], names: tuple[str, str] = ("a", "b")
) -> Figure:
    """Draw p_fake of both detectors on matched images; the images on which the verdicts differ stand out.

    Dotted lines are the thresholds: disagreements lie in the upper left and the lower right field.
    """
    differ = (a.p_fake >= thresholds[0]) != (b.p_fake >= thresholds[1])
    figure, (axes,) = new_figure(5.2, 5.8)
    axes.axvline(thresholds[0], color=GREY, linewidth=1, linestyle=":", zorder=1)
    axes.axhline(thresholds[1], color=GREY, linewidth=1, linestyle=":", zorder=1)
    clear = {"s": 42, "edgecolors": "black", "linewidths": 0.8, "alpha": 0.95, "zorder": 3}
    faint = {"s": 16, "edgecolors": "none", "alpha": 0.45, "zorder": 2}
    for label, colour, marker in ((0, REAL_COLOUR, "o"), (1, FAKE_COLOUR, "^")):
        for text, look, marked in (("same verdict", faint, False), ("verdicts differ", clear, True)):
            rows = (a.label == label) & (differ == marked)
            name = f"{LABEL_NAMES[label]}, {text} ({int(rows.sum()):,})"
            if rows.any():
                axes.scatter(a.p_fake[rows], b.p_fake[rows], marker=marker, color=colour, label=name, **look)
    # Room beyond 0 and 1, where most points lie: none is cut in half by the frame.
    limits = (-0.03, 1.03)
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"p_fake, {names[0]}", ylabel=f"p_fake, {names[1]}")
    axes.set_title(f"{a.dataset[0]}, {a.tier[0]}")
    legend_below(figure, axes)
    return figure
