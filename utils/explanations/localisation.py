"""Does a map point at the place that was manipulated? Measures against known masks and face boxes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MASK_LEVEL = 0.5  # of a soft mask in [0, 1]
FACE_SCALE, FACE_SIDE = 1.2, 0.25  # step of the search; smallest face as a share of the shorter side

Box = tuple[int, int, int, int]  # top, left, bottom, right


def pointing_game(heat: np.ndarray, mask: np.ndarray) -> float:
    """1 if the highest point of the map ``(H, W)`` lies in the mask, else 0; the mean over equals; 0 if all zero.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 (arXiv 1608.00507), without tolerance.
    """
    highest = heat.max()
    return float(mask[heat == highest].mean()) if highest > 0 else 0.0


def mask_iou(ranks: np.ndarray, mask: np.ndarray) -> float:
    """Overlap of the mask with as many of the most relevant pixels as it has, intersection over union."""
    chosen = ranks < mask.sum()
    return float((chosen & mask).sum() / (chosen | mask).sum())


def share_inside(heat: np.ndarray, box: Box) -> float:
    """Share of a map inside a box; NaN for a map that is zero everywhere."""
    total = heat.sum()
    top, left, bottom, right = box
    return float(heat[top:bottom, left:right].sum() / total) if total > 0 else float("nan")


@functools.cache
def _cascade() -> Any:
    import skimage.data
    from skimage.feature import Cascade

    return Cascade(skimage.data.lbp_frontal_face_cascade_filename())


def find_face(image: np.ndarray) -> Box | None:
    """Box of the largest face that a cascade finds in ``(H, W, 3)`` uint8, or None.

    The local binary pattern cascade that scikit-image ships (Liao et al., ICB 2007); it needs no download and misses
    faces that look aside.
    """
    shorter = min(image.shape[:2])
    smallest = max(24, round(FACE_SIDE * shorter))
    if shorter <= smallest:
        return None
    found = _cascade().detect_multi_scale(
        img=image, scale_factor=FACE_SCALE, step_ratio=1, min_size=(smallest, smallest), max_size=(shorter, shorter)
    )
    if not found:
        return None
    face = max(found, key=lambda each: each["width"])
    return face["r"], face["c"], face["r"] + face["height"], face["c"] + face["width"]


def mosaics(fakes: Tensor, masks: np.ndarray, reals: Sequence[Tensor] | Tensor, seed: int) -> tuple[Tensor, np.ndarray]:
    """Lay each fake with three reals out as a 2 x 2 mosaic, ``(N, 3, 2H, 2W)``, and its mask ``(N, 2H, 2W)`` with it.

    Faces are in the middle of their pictures, so a map that always points at the middle wins the pointing game
    without having seen anything. In a mosaic the middle is a corner of all four, and only evidence tells which picture
    is forged. After the grid pointing game of Böhle et al., "Convolutional Dynamic Alignment Networks for
    Interpretable Classifications", CVPR 2021 (arXiv 2104.00032); here the map must hit the manipulated region itself.
    """
    generator = np.random.default_rng(seed)
    count, _, height, width = fakes.shape
    images = torch.empty(count, 3, 2 * height, 2 * width)
    wide = np.zeros((count, 2 * height, 2 * width), bool)
    for index in range(count):
        others = iter(generator.choice(len(reals), 3, replace=False))
        home = int(generator.integers(4))
        for cell in range(4):
            rows = slice(cell // 2 * height, (cell // 2 + 1) * height)
            columns = slice(cell % 2 * width, (cell % 2 + 1) * width)
            images[index, :, rows, columns] = fakes[index] if cell == home else reals[next(others)]
            if cell == home:
                wide[index, rows, columns] = masks[index]
    return images, wide
