"""Figures of the protocols on unseen data: a matrix of values, and how a score grows with more images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.figures import FAKE_COLOUR, legend_below, line_style, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def matrix_figure(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    marked: Sequence[Sequence[bool]] | None = None,
    x_label: str = "",
    y_label: str = "",
    value_label: str = "",
    low: float = 0.5,
    high: float = 1.0,
) -> "Figure":
    """Values in [0, 1] as a shaded table with the number in each cell; ``marked`` cells have a frame, None is empty."""
    figure, (axes,) = new_figure(2.4 + 0.95 * len(columns), 1.5 + 0.42 * len(rows))
    grid = np.array([[np.nan if value is None else value for value in line] for line in values], dtype=float)
    image = axes.imshow(grid, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        if np.isnan(value):
            continue
        dark = value < (low + high) / 2
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black", fontsize=9)
        if marked and marked[i][j]:
            axes.add_patch(_frame(j, i))
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(False)
    figure.colorbar(image, ax=axes, label=value_label)
    return figure


def _frame(x: float, y: float):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=FAKE_COLOUR, linewidth=2.2)


@styled
def adaptation_figure(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], x_label: str, y_label: str, title: str = ""
) -> "Figure":
    """Medians over seeds with the range as a band, a curve per name; points are ``{x, median, low, high}``.

    The x axis is a list of steps, not a scale: 0, 10, 50 and 200 are equally far apart.
    """
    figure, (axes,) = new_figure(5.2, 3.6)
    steps = sorted({point["x"] for points in curves.values() for point in points})
    for index, (name, points) in enumerate(curves.items()):
        places = [steps.index(point["x"]) for point in points]
        style = line_style(index)
        axes.plot(places, [point["median"] for point in points], label=name, **style)
        low, high = ([point[key] for point in points] for key in ("low", "high"))
        axes.fill_between(places, low, high, alpha=0.15, color=style["color"], linewidth=0)
    axes.set_xticks(range(len(steps)), [str(step) for step in steps])
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    legend_below(figure, axes)
    return figure
