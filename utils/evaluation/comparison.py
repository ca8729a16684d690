"""A comparison of two detectors as a table, a figure and files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.spec import LABEL_NAMES
from utils.figures import FAKE_COLOUR, GREY, REAL_COLOUR, legend_below, new_figure, save_figure, styled
from utils.files import atomic_write_text, write_json
from utils.metrics.comparison import match_images
from utils.scoring.table import ScoreTable
from utils.tables import csv_table, markdown_table, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISAGREEMENT_KEYS = ("path", "dataset", "tier", "label", "p_fake_a", "p_fake_b")
FORMATS = {"p": ".2g"}


def comparison_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each test of ``compare_scores``: figure, a, b, difference (with intervals), test and p."""
    mcnemar, drawn, delong = result["mcnemar"], result["bootstrap"], result["delong"] or {}
    keys = ("a", "a_ci", "b", "b_ci")
    auc = {"figure": "AUC", **{key: delong.get(f"auc_{key}") for key in keys}, "difference": delong.get("difference")}
    acc = {"figure": "Acc", **{key: mcnemar.get(f"acc_{key}") for key in keys}, "difference": mcnemar["difference"]}
    return [
        {**auc, "difference_ci": delong.get("difference_ci"), "test": "DeLong", "p": delong.get("p")},
        {**acc, "difference_ci": drawn["acc_difference_ci"], "test": "McNemar, exact", "p": mcnemar["p_exact"]},
        {**acc, "difference_ci": drawn["acc_difference_ci"], "test": "McNemar, mid-p", "p": mcnemar["p_mid"]},
    ]


def comparison_columns(names: tuple[str, str]) -> list[tuple[str, str]]:
    """The columns of the table of ``comparison_rows``, with the names of the two detectors."""
    return [
        ("figure", "Figure"),
        ("a", names[0]),
        ("b", names[1]),
        ("difference", "Difference"),
        ("test", "Test"),
        ("p", "p"),
    ]


def comparison_caption(result: Mapping[str, Any], names: tuple[str, str]) -> str:
    """What the table shows, on how many images, and how the verdicts split; one paragraph."""
    counts, n_boot = result["mcnemar"], result["bootstrap"]["n_boot"]
    text = (
        f"{names[0]} minus {names[1]} on the same {result['n_real']:,} real and {result['n_fake']:,} fake images, "
        f"thresholds {result['threshold_a']:.3g} and {result['threshold_b']:.3g}. 95 % intervals: AUC by DeLong, the "
        f"difference in accuracy by {n_boot:,} paired bootstrap resamples. Both right: {counts['both_right']:,}, only "
        f"{names[0]}: {counts['only_a_right']:,}, only {names[1]}: {counts['only_b_right']:,}, neither: "
        f"{counts['both_wrong']:,}."
    )
    return f"{text} No AUC: {result['delong_reason']}." if result["delong_reason"] else text


def comparison_markdown(result: Mapping[str, Any], names: tuple[str, str] = ("a", "b")) -> str:
    """The comparison as a paragraph and a Markdown table; ends with a line feed."""
    table = markdown_table(comparison_rows(result), comparison_columns(names), FORMATS)
    return f"{comparison_caption(result, names)}\n\n{table}"


@styled
def comparison_figure(
    a: ScoreTable, b: ScoreTable, threshold_a: float, threshold_b: float, names: tuple[str, str] = ("a", "b")
) -> "Figure":
    """The p_fake of both detectors, one point per image; the images on which the verdicts differ stand out.

    The dotted lines are the thresholds: disagreements lie in the upper left and the lower right field.

    Raises:
        UserError: the tables do not hold the same images with the same labels.
    """
    a, b = match_images(a, b)
    differ = (a.p_fake >= threshold_a) != (b.p_fake >= threshold_b)
    figure, (axes,) = new_figure(5.2, 5.8)
    axes.axvline(threshold_a, color=GREY, linewidth=1, linestyle=":", zorder=1)
    axes.axhline(threshold_b, color=GREY, linewidth=1, linestyle=":", zorder=1)
    for label, colour, marker in ((0, REAL_COLOUR, "o"), (1, FAKE_COLOUR, "^")):
        for marked in (False, True):
            rows = (a.label == label) & (differ == marked)
            look = {"s": 42, "edgecolors": "black", "linewidths": 0.8, "alpha": 0.95, "zorder": 3}
            faint = {"s": 16, "edgecolors": "none", "alpha": 0.45, "zorder": 2}
            name = f"{LABEL_NAMES[label]}, {'verdicts differ' if marked else 'same verdict'} ({int(rows.sum()):,})"
            if rows.any():
                axes.scatter(
                    a.p_fake[rows],
                    b.p_fake[rows],
                    marker=marker,
                    color=colour,
                    label=name,
                    **(look if marked else faint),
                )
    # Room beyond 0 and 1, where most points lie: none is cut in half by the frame.
    limits = (-0.03, 1.03)
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"p_fake, {names[0]}", ylabel=f"p_fake, {names[1]}")
    legend_below(figure, axes)
    return figure


def write_comparison(
    result: Mapping[str, Any], a: ScoreTable, b: ScoreTable, folder: Path, names: tuple[str, str] = ("a", "b")
) -> list[Path]:
    """Write the comparison of tables a and b, ``compare_scores(a, b, ...)``, to a folder; returns the paths.

    comparison.json (everything), comparison.csv, .md and .tex (the table), disagreements.csv (the images on which the
    verdicts differ) and comparison.pdf and .png (the figure).

    Raises:
        UserError: a file cannot be written.
    """
    data, listed = folder / "comparison.json", folder / "disagreements.csv"
    write_json(data, {"name_a": names[0], "name_b": names[1], **result})
    rows, columns = comparison_rows(result), comparison_columns(names)
    tables = write_table(rows, columns, folder / "comparison", comparison_caption(result, names), FORMATS)
    images = [{**image, "label": LABEL_NAMES[image["label"]]} for image in result["disagreements"]]
    atomic_write_text(listed, csv_table(images, [(key, key) for key in DISAGREEMENT_KEYS]))
    figure = comparison_figure(a, b, result["threshold_a"], result["threshold_b"], names)
    return [data, *tables, listed, *save_figure(figure, folder / "comparison")]
