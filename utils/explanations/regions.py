"""Regions of an image (segments, manipulated regions, faces) and how well a map agrees with them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEGMENTS = 36
COMPACTNESS = 15.0  # of SLIC: low values follow edges, high values give round segments
MASK_LEVEL = 0.5  # of a soft mask in [0, 1]
FACE_SCALE, FACE_SIDE = 1.2, 0.25  # step of the search; smallest face as a share of the shorter side

Box = tuple[int, int, int, int]  # top, left, bottom, right


def segment(image: np.ndarray, count: int = SEGMENTS) -> np.ndarray:
    """Divide ``(H, W, 3)`` uint8 RGB into about ``count`` connected segments, ``(H, W)`` int numbered from 0.

    Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", TPAMI 2012.
    """
    from skimage.segmentation import slic

    labels = slic(image, n_segments=count, compactness=COMPACTNESS, start_label=0, max_num_iter=5)
    if labels.max() + 1 < count / 3:  # noise has no edges to follow and collapses into one segment; use squares
        side = max(1, round(count**0.5))
        rows, columns = (np.arange(length) * side // length for length in image.shape[:2])
        labels = rows[:, None] * side + columns[None]
    return np.unique(labels, return_inverse=True)[1].reshape(image.shape[:2])


def top_segments(heat: np.ndarray, segments: np.ndarray, count: int) -> np.ndarray:
    """Mark the segments with the highest mean: ``(H, W)`` int, 1 for the strongest, then 2, ..., 0 elsewhere.

    Segments with a mean of 0 are never marked.
    """
    flat = segments.reshape(-1)
    means = np.bincount(flat, heat.reshape(-1).astype(np.float64)) / np.bincount(flat)
    order = np.argsort(-means, kind="stable")[:count]
    ranks = np.zeros(len(means), np.int64)
    for rank, index in enumerate(order, start=1):
        ranks[index] = rank if means[index] > 0 else 0
    return ranks[segments]


def pointing_game(heat: np.ndarray, mask: np.ndarray) -> float:
    """1 if the highest point of the map ``(H, W)`` lies in the mask, else 0; ties are averaged, an all-zero map is 0.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 (arXiv 1608.00507), without tolerance.
    """
    highest = heat.max()
    return float(mask[heat == highest].mean()) if highest > 0 else 0.0


def mask_iou(ranks: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of the mask and the same number of most relevant pixels."""
    chosen = ranks < mask.sum()
    return float((chosen & mask).sum() / (chosen | mask).sum())


def share_inside(heat: np.ndarray, box: Box) -> float:
    """Share of a map inside a box; NaN for an all-zero map."""
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

    Uses the local binary pattern cascade shipped with scikit-image (Liao et al., ICB 2007), which misses profiles.
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


def mosaics(fakes: Tensor, masks: np.ndarray, reals: Sequence[Tensor], seed: int) -> tuple[Tensor, np.ndarray]:
    """Arrange each fake and three reals in a mosaic ``(N, 3, 2H, 2W)``; returns it with the masks ``(N, 2H, 2W)``.

    Faces are centred, so a map that always points at the centre wins the plain pointing game. In a mosaic the centre is
    a corner of all four images. After the grid pointing game of Böhle et al., "Convolutional Dynamic Alignment Networks
    for Interpretable Classifications", CVPR 2021 (arXiv 2104.00032); here the map must hit the manipulated region.
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
