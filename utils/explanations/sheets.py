"""Figures of many images: one for each, contact sheets by outcome, methods side by side, average maps by source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from tqdm import tqdm

from datasets.faces.finder import FaceFinder
from models.detector import Detector
from utils.explanations.figures import draw_picture, image_figure, write_overlay
from utils.explanations.images import Explained, explain_files
from utils.explanations.maps import Settings
from utils.explanations.overlay import normalise, overlay
from utils.explanations.regions import find_face
from utils.explanations.registry import title_of
from utils.explanations.spectra import log_spectrum, radial_profile
from utils.figures import FAKE_COLOUR, REAL_COLOUR, name_text, new_figure, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTCOMES = (
    ("True positives", 1, "fake"),
    ("False negatives", 1, "real"),
    ("True negatives", 0, "real"),
    ("False positives", 0, "fake"),
)
FIGURE_SIDE, SHEET_SIDE = 768, 256  # px, the longer side of an image in its figure and in sheets
SHEET_COLUMNS = 6
COMPARED_IMAGES = 6
ALIGNED = 128  # px
MARGIN = 1.7  # side of the aligned picture, in sides of the face box


def draw_maps(
    detector: Detector,
    paths: Sequence[str],
    stems: Sequence[Path],
    settings: Settings,
    contact_sheet: bool,
    finder: FaceFinder | None = None,
) -> list[dict[str, Any]]:
    """Write the maps of files as ``<stem>.png``, .pdf and ``<stem>__<method>.png``, and the sheets next to them.

    Returns:
        A row per image and method, or the path and error of an unreadable image.
    """
    rows: list[dict[str, Any]] = []
    kept: list[Explained] = []
    results = explain_files(detector, paths, settings, finder)
    results = tqdm(results, total=len(paths), unit="img", disable=None, leave=False)
    for stem, (path, item) in zip(stems, results, strict=True):
        if isinstance(item, str):
            rows.append({"path": path, "error": item})
            continue
        save_figure(image_figure(item.shrunk(FIGURE_SIDE)), stem)
        facts = {"path": path, "p_fake": item.p_fake, "verdict": item.verdict, "target": item.target}
        facts |= {"framed": item.framed, "finder": finder.name} if finder else {}
        for method, heat in item.heats.items():
            write_overlay(Path(f"{stem}__{method}.png"), item.image, heat, item.seen)
            all_zero = "no" if heat.max() > 0 else "yes"
            rows.append({**facts, "method": method, "all_zero": all_zero, "figure": f"{stem}.png"})
        if contact_sheet or len(kept) < COMPARED_IMAGES:
            kept.append(item.shrunk(SHEET_SIDE))
    if kept:
        write_sheets(kept, settings.methods, stems[0].parent, contact_sheet)
    return rows


def write_sheets(items: Sequence[Explained], methods: Sequence[str], folder: Path, contact_sheet: bool) -> None:
    """Write a comparison of the methods and, with ``contact_sheet``, sheets by outcome and average maps."""
    if len(methods) > 1:
        save_figure(comparison_figure(items, methods), folder / "comparison")
    for method in methods if contact_sheet else ():
        suffix = "" if len(methods) == 1 else f"__{method}"
        save_figure(outcome_figure(items, method), folder / f"contact_sheet{suffix}")
        save_figure(average_figure(items, method), folder / f"average_maps{suffix}")


def _shared_bar(figure: Figure, axes: np.ndarray) -> None:
    """Add one colour bar next to all panels; each map is normalised to its range."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=list(axes), shrink=0.5, aspect=30, ticks=(0, 1), pad=0.01)
    bar.ax.set_yticklabels(["none", "most"])
    bar.set_label("Evidence in this image")


@styled
def outcome_figure(items: Sequence[Explained], method: str) -> Figure:
    """Overlays of the most confident images of each outcome, with the number of all; unsure verdicts are left out."""
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
    figure.suptitle(f"{title_of(method)} by outcome")
    _shared_bar(figure, axes)
    return figure


@styled
def comparison_figure(items: Sequence[Explained], methods: Sequence[str]) -> Figure:
    """The first images with every method: one row per image, the original on the left."""
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


def align(image: np.ndarray, heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre the face at a fixed size, or the middle square if no face is found: ``(128, 128, 3)``, ``(128, 128)``."""
    height, width = image.shape[:2]
    face = find_face(image)
    if face is None:
        side, middle = float(min(height, width)), (height / 2, width / 2)
    else:
        side, middle = MARGIN * (face[2] - face[0]), ((face[0] + face[2]) / 2, (face[1] + face[3]) / 2)
    scale = ALIGNED / side
    matrix = np.array([[scale, 0, ALIGNED / 2 - middle[1] * scale], [0, scale, ALIGNED / 2 - middle[0] * scale]])
    size, reflect = (ALIGNED, ALIGNED), cv2.BORDER_REFLECT
    picture = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_AREA, borderMode=reflect)
    return picture, cv2.warpAffine(heat.astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR, borderValue=0)


@styled
def average_figure(items: Sequence[Explained], method: str) -> Figure:
    """One row per source: mean aligned face, mean map, mean radial spectrum compared with the reals.

    Maps are normalised before averaging, so that every image has the same weight.
    """
    sources = list(
        dict.fromkeys(item.source for item in sorted(items, key=lambda item: (item.label or 0, item.source)))
    )
    reals = [item for item in items if item.label == 0]
    figure, axes = new_figure(8.6, 2.5 * len(sources) + 0.3, 3, nrows=len(sources), width_ratios=(1, 1.15, 1.7))
    for row, source in enumerate(sources):
        face_panel, map_panel, line_panel = axes[3 * row : 3 * row + 3]
        members = [item for item in items if item.source == source]
        pairs = [align(item.image, normalise(item.heats[method])) for item in members]
        draw_picture(
            face_panel,
            np.mean([pair[0] for pair in pairs], axis=0).astype(np.uint8),
            f"{name_text(source)}: mean of {len(members)}",
        )
        mean_map = np.mean([pair[1] for pair in pairs], axis=0)
        shown = draw_picture(map_panel, mean_map, f"{title_of(method)}, mean map", cmap="viridis", vmin=0)
        figure.colorbar(shown, ax=map_panel, shrink=0.85)
        groups = [("real", reals, REAL_COLOUR, "-")] if reals else []
        if members[0].label != 0 or not reals:
            groups.append((source, members, FAKE_COLOUR, "--"))
        for name, group, colour, dash in groups:
            profiles = np.stack([radial_profile(log_spectrum(item.image)) for item in group])
            frequency = np.arange(profiles.shape[1]) / (2 * profiles.shape[1])
            line_panel.plot(frequency, profiles.mean(axis=0), dash, color=colour, label=name_text(name))
        line_panel.set(ylabel="Log10 power", xlabel="Cycles per pixel")
        line_panel.legend()
    return figure
