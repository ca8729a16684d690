"""Where a detector looks on average: maps over aligned faces per source, with the spectrum of real against fake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from utils.explanations.figures import Explained, draw_picture
from utils.explanations.localisation import find_face
from utils.explanations.names import title_of
from utils.explanations.overlay import normalise
from utils.explanations.spectra import log_spectrum, radial_profile
from utils.figures import FAKE_COLOUR, REAL_COLOUR, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALIGNED = 128  # px
MARGIN = 1.7  # side of the aligned picture in sides of the face box


def align(image: np.ndarray, heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring the face of a picture to the middle at one size; without a face it is the middle square as it is.

    Returns:
        The picture ``(128, 128, 3)`` uint8 and its map ``(128, 128)``.
    """
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
    """One row per source: mean aligned face, mean map of it, mean radial spectrum against that of the reals.

    Maps are normalised before they are averaged, so each image counts alike.
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
            f"{source}: mean of {len(members)}",
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
            line_panel.plot(frequency, profiles.mean(axis=0), dash, color=colour, label=name)
        line_panel.set(ylabel="Log10 power", xlabel="Cycles per pixel")
        line_panel.legend()
    return figure
