"""Figures of an audit: distributions of files and brightness per class, and how telling metadata is."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.audit.image_facts import ImageFacts
from utils.audit.shortcuts import column
from utils.figures import FAKE_COLOUR, REAL_COLOUR, interval_bar_figure, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("side", "Side, geometric mean (px)"),
    ("bytes_per_pixel", "File bytes per pixel"),
    ("quality", "JPEG quality (estimated)"),
    ("brightness", "Mean brightness"),
)
N_BINS = 30


@styled
def distributions_figure(by_class: Mapping[str, Sequence[ImageFacts]], title: str = "") -> "Figure":
    """Histograms of size, compression, quality and brightness per class, each as a share of its class."""
    figure, axes = new_figure(8.0, 5.2, 2, nrows=2)
    for panel, (key, name) in zip(axes, PANELS, strict=True):
        values = {label: _values(facts, key) for label, facts in by_class.items()}
        pooled = np.concatenate(list(values.values()) or [np.zeros(0)])
        if not len(pooled):
            panel.text(0.5, 0.5, "no such file", ha="center", va="center", transform=panel.transAxes)
        else:
            # Clipped at a percentile: one huge file would squeeze all others into one bar.
            low, high = float(pooled.min()), float(np.percentile(pooled, 99.5))
            edges = np.linspace(low, max(high, low + 1e-6), N_BINS + 1)
            styles = zip((REAL_COLOUR, FAKE_COLOUR), ("-", "--"), strict=True)
            for (label, group), (colour, dash) in zip(values.items(), styles, strict=False):
                counts, _ = np.histogram(group.clip(low, edges[-1]), bins=edges)
                style = {"color": colour, "linestyle": dash, "linewidth": 1.5}
                panel.stairs(
                    counts / max(1, len(group)), edges, label=f"{label} (n = {len(by_class[label]):,})", **style
                )
        panel.set(xlabel=name, ylabel="Share of the class")
        panel.set_ylim(bottom=0)
    if title:
        figure.suptitle(title)
    legend_below(figure, axes[3])
    return figure


def _values(facts: Sequence[ImageFacts], key: str) -> np.ndarray:
    if key == "side":
        return np.sqrt(column(facts, "width") * column(facts, "height"))
    values = column(facts, key)
    return values[np.isfinite(values)]


def metadata_figure(rows: Sequence[Mapping[str, Any]], n_columns: int = 3) -> "Figure":
    """AUC of the metadata-only classifier per dataset, and of the most telling single columns."""
    labels: list[str] = []
    values: list[float | None] = []
    intervals: list[Sequence[float] | None] = []
    groups: list[str] = []
    for row in rows:
        entries = [("all columns", row["auc"], row["auc_ci"])]
        entries += [(found["column"], found["auc"], None) for found in row["columns"][:n_columns]]
        for name, value, interval in entries:
            labels.append(f"{row['dataset']}: {name}")
            values.append(value)
            intervals.append(interval)
            groups.append("classifier, cross-validated" if name == "all columns" else "one column alone")
    x_label = "AUC of real against fake, without any pixel"
    return interval_bar_figure(labels, values, intervals, x_label=x_label, chance=0.5, groups=groups)
