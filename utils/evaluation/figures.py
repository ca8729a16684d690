"""Figures of scores: ROC, precision-recall, confusion, histogram, reliability, coverage, severity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.listing.spec import LABEL_NAMES
from utils.figures import FAKE_COLOUR, GREY, REAL_COLOUR, legend_below, line_style, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def roc_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw ROC curves, name -> (fpr, tpr)."""
    figure, (axes,) = new_figure(4.8, 5.1)
    _unit_square(axes, "False positive rate (reals called fake)", "True positive rate (fakes called fake)")
    axes.plot([0.0, 1.0], [0.0, 1.0], color=GREY, linewidth=1, linestyle=(0, (1, 2)), label="chance")
    for index, (name, (fpr, tpr)) in enumerate(curves.items()):
        _curve(axes, index, fpr, tpr, name)
    legend_below(figure, axes)
    return figure


@styled
def pr_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw precision-recall curves, name -> (recall, precision)."""
    figure, (axes,) = new_figure(4.8, 5.1)
    _unit_square(axes, "Recall (fakes called fake)", "Precision (fakes among those called fake)")
    for index, (name, (recall, precision)) in enumerate(curves.items()):
        # The left end jumps up and down with every image: markers at even steps of recall, not of arc length.
        marked = np.searchsorted(recall, np.arange(0.1 + 0.03 * (index % 5), 1.0, 0.18)).tolist()
        _curve(axes, index, recall, precision, name, markevery=marked)
    legend_below(figure, axes)
    return figure


def _curve(axes: Axes, index: int, x: np.ndarray, y: np.ndarray, name: str, **kwargs: Any) -> None:
    """Draw a curve with markers at intervals of arc length, shifted from curve to curve so that few coincide."""
    spaced = {"markevery": (0.03 + 0.02 * (index % 5), 0.14)}
    axes.plot(x, y, label=name, **(line_style(index) | spaced | kwargs))


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
    """Set axes over [0, 1] x [0, 1], slightly wider so that curves along the frame are seen whole."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label, aspect="equal")


@styled
def confusion_figure(matrix: np.ndarray, title: str = "") -> Figure:
    """Draw a confusion matrix of counts, rows the truth and columns the call, shaded by the fraction of the row."""
    totals = matrix.sum(axis=1, keepdims=True)
    fractions = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    figure, (axes,) = new_figure(4.0, 3.4)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        share = f"{fractions[row, column]:.1%}" if totals[row, 0] else "none"
        look: Any = {"ha": "center", "va": "center", "fontsize": 11}
        colour = "white" if fractions[row, column] > 0.55 else "black"
        axes.text(column, row, f"{share}\n({matrix[row, column]:,})", color=colour, **look)
    axes.set_xticks(range(2), LABEL_NAMES)
    axes.set_yticks(range(2), LABEL_NAMES)
    axes.set(xlabel="Called", ylabel="Truth", title=title)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="Fraction of the true class", shrink=0.9, ticks=[0, 0.25, 0.5, 0.75, 1])
    return figure


@styled
def score_histogram_figure(
    labels: np.ndarray, p_fake: np.ndarray, threshold: float, title: str = "", n_bins: int = 40
) -> Figure:
    """Draw histograms of p_fake for reals and fakes, each as a fraction of its class so that unequal sets compare."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = new_figure(5.4, 3.4)
    bins = np.linspace(0, 1, n_bins + 1)
    looks = ((0, "real", REAL_COLOUR, "////", "-"), (1, "fake", FAKE_COLOUR, r"\\\\", "--"))
    for label, name, colour, hatch, dash in looks:
        scores = p_fake[labels == label]
        if len(scores):
            common = {"bins": bins, "weights": np.full(len(scores), 1 / len(scores))}
            axes.hist(scores, histtype="stepfilled", facecolor=colour, edgecolor="none", alpha=0.3, **common)
            line = {"histtype": "step", "color": colour, "linestyle": dash, "linewidth": 1.4, "hatch": hatch}
            axes.hist(scores, alpha=0.9, label=f"{name} (n = {len(scores):,})", **common, **line)
    axes.axvline(threshold, color="black", linewidth=1.2, linestyle="-.", label=f"threshold {threshold:.3g}")
    axes.set(xlim=(0, 1), xlabel="p_fake", ylabel="Share of the class", title=title)
    axes.yaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    legend_below(figure, axes, n_columns=3)
    return figure


@styled
def reliability_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Draw reliability curves, name -> (mean_p_fake, fraction_fake, count) per bin, above a histogram of the scores.

    Above the diagonal there are more fakes than p_fake says, below it fewer. Empty bins are skipped.
    """
    figure, (upper, lower) = new_figure(4.4, 5.8, nrows=2, sharex=True, gridspec_kw={"height_ratios": [3.4, 1]})
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (1, 2)), label="perfect calibration")
    for index, (name, (mean, fraction, count)) in enumerate(curves.items()):
        style, filled = line_style(index), count > 0
        upper.plot(mean[filled], fraction[filled], label=name, **style)
        edges, share = np.linspace(0, 1, len(count) + 1), count / max(1, np.sum(count))
        lower.stairs(share, edges, color=style["color"], linestyle=style["linestyle"], linewidth=1.4)
    upper.set(ylim=(-0.02, 1.02), ylabel="Fraction of fakes")
    lower.set(xlim=(-0.02, 1.02), xlabel="p_fake (mean of the bin)", ylabel="Images")
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_formatter(_percent)
    legend_below(figure, upper, n_columns=1)
    return figure


@styled
def coverage_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw the accuracy of the verdicts against the share of images answered, name -> (share, acc), see ``coverage``.

    Shares below 5 % are not drawn: a single image moves the curve there.
    """
    figure, (axes,) = new_figure(4.8, 4.4)
    for index, (name, (share, accuracy)) in enumerate(curves.items()):
        shown = share >= 0.05
        _curve(axes, index, share[shown], accuracy[shown], name)
    axes.set(xlim=(0, 1.01), xlabel="Images answered (the others are unsure)", ylabel="Accuracy of the answers")
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    legend_below(figure, axes, n_columns=1)
    return figure


SEVERITY_LABELS = {
    "jpeg": "JPEG quality",
    "resize": "Scale of each side",
    "blur": "Blur, sigma in px",
    "noise": "Noise, std as a fraction of the range",
    "crop": "Kept fraction of each side",
}


@styled
def severity_figure(
    kind: str, ticks: Sequence[str], curves: Mapping[str, Sequence[Mapping[str, Any] | None]]
) -> Figure:
    """Draw AUC and accuracy over the levels of one degradation, with their intervals as bands.

    ``curves`` maps a name to a metrics row, or None, per tick. Levels are evenly spaced.
    """
    figure, panels = new_figure(8.0, 3.6, 2)
    for index, (name, rows) in enumerate(curves.items()):
        style = line_style(index)
        for axes, key in zip(panels, ("auc", "acc"), strict=True):
            found = {place: row for place, row in enumerate(rows) if row is not None and row[key] is not None}
            axes.plot(list(found), [row[key] for row in found.values()], label=name, **style)
            if found and all(row[f"{key}_ci"] for row in found.values()):
                low, high = zip(*(row[f"{key}_ci"] for row in found.values()), strict=True)
                axes.fill_between(list(found), low, high, color=style["color"], alpha=0.15, linewidth=0)
    for axes, label in zip(panels, ("AUC", "Accuracy"), strict=True):
        axes.set(xlabel=SEVERITY_LABELS.get(kind, kind), ylabel=label, xticks=range(len(ticks)), xticklabels=ticks)
    legend_below(figure, panels[0])
    return figure


def _percent(value: float, position: int) -> str:
    """Format a tick in per cent, with as many digits as its place needs."""
    return f"{100 * value:.3g}%"
