"""Figures of maps: one image with its methods, contact sheets by verdict, methods side by side, methods by data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.explanations.names import title_of
from utils.explanations.overlay import normalise, overlay
from utils.figures import GREY, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTCOMES = (
    ("True positives", 1, "fake"),
    ("False negatives", 1, "real"),
    ("True negatives", 0, "real"),
    ("False positives", 0, "fake"),
)
SHEET_COLUMNS = 6
COMPARED_IMAGES = 6
REGION_COLOURS = ("#FFFFFF", "#E69F00", "#56B4E9")  # of the strongest region, the second, the third


@dataclass
class Explained:
    """An image with its maps, all at the image's own size.

    ``heats`` and ``regions`` are ``(H, W)`` per method: the map, and 1, 2, 3 in the strongest segments; ``seen`` is
    what the detector looks at. ``verdict`` is fake, real or unsure, ``target`` fake or real, ``label`` 0, 1 or None.
    """

    name: str
    image: np.ndarray
    heats: Mapping[str, np.ndarray]
    regions: Mapping[str, np.ndarray]
    seen: np.ndarray
    p_fake: float
    verdict: str
    target: str
    label: int | None = None
    source: str = ""


def draw_picture(axes: Axes, image: np.ndarray, title: str = "", **options: Any) -> Any:
    """Show a picture or a map without ticks and frame; returns what a colour bar needs."""
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes.imshow(image, **options)


@styled
def image_figure(item: Explained) -> Figure:
    """One row per method: original, overlay, raw map with colour bar, strongest regions; the verdict above."""
    methods = list(item.heats)
    height, width = item.image.shape[:2]
    row_height = float(np.clip(2.35 * height / width, 1.2, 4.5))
    figure, axes = new_figure(10.2, 0.75 + (row_height + 0.35) * len(methods), 4, nrows=len(methods))
    for row, method in enumerate(methods):
        panels = axes[4 * row : 4 * row + 4]
        heat = item.heats[method]
        name, empty = title_of(method), not heat.max() > 0
        draw_picture(panels[0], item.image, "Original")
        draw_picture(panels[1], overlay(item.image, heat, item.seen), f"{name}, overlay")
        shown = draw_picture(
            panels[2],
            normalise(heat),
            "All zero: no evidence" if empty else f"{name}, map",
            cmap="viridis",
            vmin=0,
            vmax=1,
        )
        bar = figure.colorbar(shown, ax=panels[2], shrink=0.85, ticks=(0, 0.5, 1))
        bar.set_label(f"Evidence for {item.target}, 1 = {heat.max():.2g}", fontsize=8)
        draw_picture(panels[3], item.image, "Top regions" if item.regions[method].any() else "No region")
        _outline(panels[3], item.regions[method])
    known = "" if item.label is None else f", in truth {('real', 'fake')[item.label]}"
    figure.suptitle(f"{item.name}: {item.verdict}, p_fake {item.p_fake:.3f}{known}; evidence for {item.target}")
    return figure


def _outline(axes: Axes, regions: np.ndarray) -> None:
    """Draw the borders of the regions and their ranks."""
    for rank, colour in enumerate(REGION_COLOURS, start=1):
        inside = regions == rank
        if not inside.any():
            continue
        for line_colour, line_width in (("black", 3.0), (colour, 1.5)):
            axes.contour(inside, levels=[0.5], colors=line_colour, linewidths=line_width)
        rows, columns = np.nonzero(inside)
        axes.text(
            columns.mean(),
            rows.mean(),
            str(rank),
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold",
            color="black",
            bbox={"facecolor": colour, "edgecolor": "black", "pad": 1.5},
        )


def _shared_bar(figure: Figure, axes: np.ndarray) -> None:
    """Add one colour bar beside all panels, whose maps each fill its range."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=list(axes), shrink=0.5, aspect=30, ticks=(0, 1), pad=0.01)
    bar.ax.set_yticklabels(["none", "most"])
    bar.set_label("Evidence in this image")


@styled
def contact_sheet(items: Sequence[Explained], method: str, title: str = "") -> Figure:
    """Overlays in four rows: true positives, false negatives, true negatives, false positives; unsure is left out.

    Of each outcome the most confident images are shown, and how many there are in all.
    """
    figure, axes = new_figure(1.6 * SHEET_COLUMNS + 1.2, 8.2, SHEET_COLUMNS, nrows=len(OUTCOMES))
    for row, (name, label, verdict) in enumerate(OUTCOMES):
        found = [item for item in items if item.label == label and item.verdict == verdict]
        found.sort(key=lambda item: item.p_fake, reverse=verdict == "fake")
        panels = axes[SHEET_COLUMNS * row : SHEET_COLUMNS * (row + 1)]
        for panel in panels:
            panel.set_axis_off()
        if not found:
            panels[0].text(0.02, 0.8, "none among these images", transform=panels[0].transAxes)
        panels[0].set_title(f"{name}: {len(found)}", loc="left", fontsize=10, fontweight="bold", pad=16)
        for panel, item in zip(panels, found, strict=False):
            draw_picture(panel, overlay(item.image, item.heats[method], item.seen))
            panel.set_axis_on()
            panel.set_xlabel(f"p_fake {item.p_fake:.3f}", fontsize=8)
    figure.suptitle(title or f"{title_of(method)} by outcome")
    _shared_bar(figure, axes)
    return figure


@styled
def comparison_figure(items: Sequence[Explained], methods: Sequence[str]) -> Figure:
    """The same images under every method: one row per image, the original first."""
    items = items[:COMPARED_IMAGES]
    count = len(methods) + 1
    figure, axes = new_figure(1.35 * count + 1.0, 1.55 * len(items) + 0.5, count, nrows=len(items))
    for row, item in enumerate(items):
        panels = axes[count * row : count * (row + 1)]
        draw_picture(panels[0], item.image, "Original" if row == 0 else "")
        panels[0].set_xlabel(f"{item.verdict} {item.p_fake:.2f}, for {item.target}", fontsize=7)
        for panel, method in zip(panels[1:], methods, strict=True):
            heat = item.heats[method]
            draw_picture(panel, overlay(item.image, heat, item.seen), title_of(method) if row == 0 else "")
            if not heat.max() > 0:
                panel.set_xlabel("all zero", fontsize=7)
    _shared_bar(figure, axes)
    return figure


@styled
def effect_figure(rows: Sequence[Mapping[str, Any]], unfaithful: str) -> Figure:
    """Methods against cells: how far ROAD lies above the random map, in its standard deviations.

    A cross marks what is not faithful there.
    """
    cells = list(dict.fromkeys((row["checkpoint"], row["dataset"]) for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "random"))
    values = np.full((len(methods), len(cells)), np.nan)
    figure, (axes,) = new_figure(2.6 + 0.95 * len(cells), 2.2 + 0.34 * len(methods))
    for row in rows:
        if row["method"] == "random":
            continue
        place = methods.index(row["method"]), cells.index((row["checkpoint"], row["dataset"]))
        values[place] = row["effect"]
        mark = f"{row['effect']:+.2f}" + (" \N{MULTIPLICATION SIGN}" if row["verdict"] == unfaithful else "")
        axes.text(
            place[1],
            place[0],
            mark,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if abs(row["effect"]) > 0.75 else "black",
        )
    axes.set_facecolor(GREY)
    shown = axes.imshow(values, cmap="PuOr_r", vmin=-1.2, vmax=1.2, aspect="auto")
    axes.set(xticks=range(len(cells)), yticks=range(len(methods)), yticklabels=[title_of(name) for name in methods])
    axes.set_xticklabels([f"{checkpoint}\n{dataset}" for checkpoint, dataset in cells], rotation=35, ha="right")
    axes.grid(visible=False)
    figure.colorbar(shown, ax=axes, label="ROAD above the random map (sd)", extend="both")
    axes.set_title("Faithfulness; \N{MULTIPLICATION SIGN} not faithful here", fontsize=10)
    return figure
