"""Adversarial images as files: rounded to 8 bits, compressed, or exported as a data set with a figure of examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.decoding.images import read_image
from datasets.listing.spec import LABEL_NAMES, Listing
from datasets.perturbations import jpeg
from datasets.transforms import Geometry
from utils.attacks.cells import Cell
from utils.attacks.threat_model import size_name
from utils.figures import new_figure, save_figure, styled
from utils.files import atomic_write_bytes

JPEG_QUALITY = 90
EXAMPLES = 3  # rows of the figure


def to_pixels(images: Tensor) -> np.ndarray:
    """Convert images ``(N, 3, H, W)`` in [0, 1] to the pixels of a PNG file, ``(N, H, W, 3)`` uint8."""
    return images.detach().mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def from_pixels(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Convert pixels to what a detector reads from such files, channels last."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float()
    # Divide by a tensor, as the scorer does: for a plain number, a GPU multiplies by the rounded reciprocal.
    return images.div_(torch.tensor(255.0, device=device)).contiguous(memory_format=torch.channels_last)


def rounded(images: Tensor) -> Tensor:
    """Round images to 8 bits per channel."""
    return from_pixels(to_pixels(images), images.device)


def recompressed(images: Tensor, quality: int = JPEG_QUALITY) -> Tensor:
    """Compress images as JPEG and decode them again."""
    return from_pixels(np.stack([jpeg(image, quality) for image in to_pixels(images)]), images.device)


class Exporter:
    """Writes each adversarial image as ``folder/{real,fake}/<number>.png``, in the geometry of the attacked detector.

    The number is the position of the original in the listing. The scores of these images are the ``rounded_p_fake`` of
    the cell.
    """

    def __init__(self, folder: Path, listing: Listing, geometry: Geometry) -> None:
        self.folder, self.listing, self.geometry = folder, listing, geometry
        # An earlier export may have had more images.
        for file in folder.glob("*/[0-9][0-9][0-9][0-9][0-9].png"):
            file.unlink()

    def __call__(self, indices: Tensor, adversarial: Tensor) -> None:
        for index, image in zip(indices.tolist(), to_pixels(adversarial), strict=True):
            data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
            atomic_write_bytes(self.file(index), data)

    def file(self, index: int) -> Path:
        """Path of the adversarial version of an image."""
        return self.folder / LABEL_NAMES[self.listing.records[index].label or 0] / f"{index:05}.png"

    def draw_example(self, cell: Cell, indices: np.ndarray) -> None:
        """Write example.pdf and example.png: images that the attack turned, fakes first.

        The figure shows photographs of the data set: check their terms before you publish it.

        Args:
            indices: positions in the listing of the rows of the cell, ``(N,)``.
        """
        won = cell.right("clean") & ~cell.right() & cell.attacked
        order = np.argsort(-cell.table.label, kind="stable")  # fakes that pass as real are the usual goal
        rows = [row for row in order if won[row]][:EXAMPLES] or [int(np.flatnonzero(cell.attacked)[0])]
        records = [self.listing.records[indices[row]] for row in rows]
        clean = np.stack([self.geometry(read_image(each.path), each.face_for(self.geometry)) for each in records])
        changed = np.stack([read_image(self.file(indices[row])) for row in rows])
        scores = [(float(cell.extra["clean_p_fake"][row]), float(cell.table.p_fake[row])) for row in rows]
        names = [LABEL_NAMES[cell.table.label[row]] for row in rows]
        plan = cell.info["plan"]
        title = f"{cell.info['checkpoint']}, {plan['attack']} {plan['norm']} {size_name(plan['eps'])}"
        save_figure(example_figure(clean, changed, scores, names, title), self.folder / "example")


@styled
def example_figure(
    clean: np.ndarray, adversarial: np.ndarray, p_fake: Sequence[tuple[float, float]], names: Sequence[str], title: str
) -> Any:
    """Draw rows of image, change times 10 around grey, and adversarial image, with p_fake before and after.

    Args:
        clean: ``(N, H, W, 3)`` uint8, like ``adversarial``.
    """
    figure, axes = new_figure(6.4, 2.25 * len(clean) + 0.4, 3, nrows=len(clean))
    for row, (image, changed) in enumerate(zip(clean, adversarial, strict=True)):
        change = np.clip(127.5 + 10.0 * (changed.astype(float) - image), 0, 255).astype(np.uint8)
        panels = axes[3 * row : 3 * row + 3]
        captions = (f"{names[row]}, p_fake {p_fake[row][0]:.2f}", "change x 10", f"p_fake {p_fake[row][1]:.2f}")
        for panel, picture, caption in zip(panels, (image, change, changed), captions, strict=True):
            panel.imshow(picture, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.grid(visible=False)
            panel.set_title(caption, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure
