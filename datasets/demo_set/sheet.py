"""Draw a contact sheet of the demo set: labelled rows of real images and of the fakes of each generator."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from datasets.demo_set.fakes import GENERATORS
from utils.errors import UserError


def contact_sheet(root: Path, out_png: Path, columns: int = 8, split: str = "test") -> Path:
    """Draw rows real / upsampled / blended / denoised of the folder ``root`` that ``make_demo`` returned.

    Below the blended row, the same images show the outline of the swapped region. Returns ``out_png``. Raises
    UserError if ``root`` does not hold the demo set or one of its images cannot be read.
    """
    root, rows = Path(root), []
    for label in ("real", *GENERATORS):
        folder = root / split / (label if label == "real" else f"fake/{label}")
        files = sorted(folder.glob("*.jpg"))[:columns]
        if not files:
            raise UserError(f"expected the images of the demo set under {folder}, got none; make it first")
        rows.append((label, [_read(path) for path in files]))
        if (root / "masks" / split / f"{files[0].stem}.png").exists():
            rows.append(("swapped\nregion", [_outlined(root, split, path) for path in files]))
    figure = Figure(figsize=(1.28 * columns + 1.25, 1.28 * len(rows)), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    margin = 1.25 / (1.28 * columns + 1.25)
    figure.subplots_adjust(left=margin, right=0.998, bottom=0.004, top=0.996, wspace=0.03, hspace=0.03)
    for line, (label, images) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, interpolation="bicubic")
        line[0].text(-0.08, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=11)
    out_png = Path(out_png)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png)
    return out_png


def _read(path: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise UserError(f"expected an image of the demo set in {path}, got an unreadable file; make the set again")
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])


def _outlined(root: Path, split: str, path: Path) -> np.ndarray:
    """Return the image at twice its size with the half-weight contour of its mask in green."""
    image = cv2.resize(_read(path), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    mask = _read(root / "masks" / split / f"{path.stem}.png", cv2.IMREAD_GRAYSCALE)
    large = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours((large >= 128).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image, contours, -1, (60, 255, 90), 2, cv2.LINE_AA)
