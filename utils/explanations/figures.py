"""Figure of one image: original, overlay, map and strongest regions for each method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datasets.listing.spec import LABEL_NAMES
from utils.explanations.images import Explained
from utils.explanations.overlay import normalise, overlay
from utils.explanations.registry import title_of
from utils.figures import name_text, new_figure, styled
from utils.files import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGION_COLOURS = ("#FFFFFF", "#E69F00", "#56B4E9")  # strongest, second, third


def draw_picture(axes: Axes, image: np.ndarray, title: str = "", **options: Any) -> Any:
    """Show a picture or a map without ticks and frame; returns the artist for a colour bar."""
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
        name, highest = title_of(method), heat.max()
        draw_picture(panels[0], item.image, "Original")
        draw_picture(panels[1], overlay(item.image, heat, item.seen), f"{name}, overlay")
        title = f"{name}, map" if highest > 0 else "All zero: no evidence"
        shown = draw_picture(panels[2], normalise(heat), title, cmap="viridis", vmin=0, vmax=1)
        bar = figure.colorbar(shown, ax=panels[2], shrink=0.85, ticks=(0, 0.5, 1))
        bar.set_label(f"Evidence for {item.target}, 1 = {highest:.2g}", fontsize=8)
        draw_picture(panels[3], item.image, "Top regions" if item.regions[method].any() else "No region")
        _outline(panels[3], item.regions[method])
    known = "" if item.label is None else f", label {LABEL_NAMES[item.label]}"
    name = name_text(Path(item.path).name)
    figure.suptitle(f"{name}: {item.verdict}, p_fake {item.p_fake:.3f}{known}; evidence for {item.target}")
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
            bbox={"facecolor": colour, "edgecolor": "black", "pad": 1.5},
        )


def write_overlay(path: Path, image: np.ndarray, heat: np.ndarray, seen: np.ndarray) -> None:
    """Write an overlay as PNG at the size of the image."""
    drawn = cv2.cvtColor(overlay(image, heat, seen), cv2.COLOR_RGB2BGR)
    atomic_write_bytes(path, cv2.imencode(".png", drawn)[1].tobytes())
