"""Draw the contact sheet of the demo set: labelled rows of real images and of the fakes of each generator.

  python -m studies.demo_sheet --output results/demo/contact_sheet.png

Below the blended row, the same images show the outline of the swapped region.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from datasets.decoding.images import UnreadableImage, read_image
from datasets.demo_set.fakes import GENERATORS
from datasets.demo_set.generate import make_demo
from utils.args import make_parser, run_script
from utils.errors import UserError


def contact_sheet(root: Path, file: Path, columns: int = 8, split: str = "test") -> Path:
    """Draw the sheet of the folder ``root`` that ``make_demo`` returned and return ``file``.

    Raises:
        UserError: ``root`` does not hold the demo set, or one of its images cannot be read.
    """
    rows = []
    for label in ("real", *GENERATORS):
        paths = sorted((root / split / (label if label == "real" else f"fake/{label}")).glob("*.jpg"))[:columns]
        if not paths:
            raise UserError(
                f"expected {label} images of the demo set under {root}/{split}, got none; generate it first"
            )
        masks = [root / "masks" / split / f"{path.stem}.png" for path in paths]
        rows.append((label, [_read(path) for path in paths]))
        if masks[0].exists():
            rows.append(("swapped\nregion", [_outlined(_read(p), _read(m)) for p, m in zip(paths, masks, strict=True)]))
    width, height = 1.28 * columns + 1.25, 1.28 * len(rows)
    figure = Figure(figsize=(width, height), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(left=1.25 / width, right=0.998, bottom=0.004, top=0.996, wspace=0.03, hspace=0.03)
    for line, (label, images) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, interpolation="bicubic")
        line[0].text(-0.08, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.draw()
    # 256 colours suffice on a page, and keep the file below 300 kB.
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(256).save(file, optimize=True)
    return file


def _read(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except UnreadableImage as error:
        raise UserError(f"expected an image of the demo set in {path}: {error}; generate the set again") from None


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image at twice its size with the half-weight contour of its mask in green."""
    large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    weights = cv2.resize(mask[..., 0], large.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours((weights >= 128).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(large, contours, -1, (60, 255, 90), 2, cv2.LINE_AA)


def main(argv: Sequence[str] | None = None) -> dict:
    """Generate the demo set, unless it exists, and draw its sheet."""
    parser = make_parser(__doc__, "python -m studies.demo_sheet")
    parser.add_argument("--output", default="results/demo/contact_sheet.png", metavar="PNG")
    args = parser.parse_args(argv)
    file = contact_sheet(make_demo(Path(os.environ.get("DEMO_DIR") or "data")), Path(args.output))
    print(file)
    return {"figure": str(file)}


if __name__ == "__main__":
    run_script(main)
