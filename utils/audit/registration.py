"""Whether two thumbnails show the same picture: align one to the other, then compare their details.

Hashes only nominate pairs. Portraits aligned by their eyes look alike at low resolution, so fine structure decides:
after alignment, the detail (what a blur removes) must agree over the whole image and in each part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CHUNK = 256  # pairs aligned at a time
STAGES = ((0, 0.2), (2, 0.75), (4, 1.0))  # steps, and the correlation below which a pair is rejected after them
MARGIN = 2  # px; resampling lacks neighbours at the border
BLOCKS = 4  # the image is judged in 4 x 4 parts
DETAIL_SIGMA = 4.0  # px; coarser structure is shared by aligned portraits
FLOOR = 6.0  # grey levels squared; a part below it contains only coding noise


@dataclass(frozen=True)
class Similarity:
    """How well pairs agree after alignment, each (M,).

    ``correlation`` is that of the detail over the whole image; ``worst_part`` the smallest share of the detail of a
    part that the other image explains, 1 for equality; ``crop`` the largest shift of a border in the alignment, as a
    fraction of the side.
    """

    correlation: np.ndarray
    worst_part: np.ndarray
    crop: np.ndarray


def compare(first: np.ndarray, second: np.ndarray, boxes: np.ndarray) -> Similarity:
    """Compare thumbnails (M, side, side) uint8 pair by pair.

    ``boxes`` (M, 4) are the parts of ``first`` that may be the whole of ``second``: left, right, top, bottom as
    fractions. From there the alignment takes Gauss-Newton steps over two scales, two shifts, brightness and contrast
    (Lucas and Kanade, "An iterative image registration technique", IJCAI 1981).
    """
    n = len(first)
    correlation, worst_part, crop = (np.zeros(n, dtype=np.float32) for _ in range(3))
    for start in range(0, n, CHUNK):
        source, target = _smooth(first[start : start + CHUNK]), _smooth(second[start : start + CHUNK])
        origin = boxes[start : start + CHUNK].astype(np.float32)
        fitted, alive = origin.copy(), np.arange(len(source))
        for steps, least in STAGES:
            fitted[alive] = _align(source[alive], target[alive], fitted[alive], origin[alive], steps)
            warped = _warp(source[alive], fitted[alive])[0]
            agreement = _agreement(warped, target[alive])
            correlation[start + alive], worst_part[start + alive] = agreement
            alive = alive[agreement[0] >= least]
            if not len(alive):
                break
        crop[start : start + len(source)] = np.abs(fitted - np.array([0, 1, 0, 1], dtype=np.float32)).max(axis=1)
    return Similarity(correlation, worst_part, crop)


def _blur(images: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) for image in images])


def _smooth(thumbnails: np.ndarray) -> np.ndarray:
    # A slight blur of both hides that one of them is resampled once more than the other.
    return _blur(thumbnails.astype(np.float32), 0.8)


def _sampling(low: np.ndarray, high: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Left neighbour (M, side) and weight of the right one for ``side`` samples between low and high."""
    place = (np.arange(side, dtype=np.float32) + 0.5) / side
    x = (low[:, None] + (high - low)[:, None] * place) * side - 0.5
    x = x.clip(0, side - 1.001)
    left = x.astype(np.int64)
    return left, (x - left).astype(np.float32)


def _warp(images: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parts ``boxes`` of images at full size, and their derivatives by x and by y in units of the side."""
    side = images.shape[1]
    left, right_weight = _sampling(boxes[:, 0], boxes[:, 1], side)
    top, low_weight = _sampling(boxes[:, 2], boxes[:, 3], side)
    a = np.take_along_axis(images, left[:, None, :], axis=2)
    b = np.take_along_axis(images, left[:, None, :] + 1, axis=2)
    rows, slope = a + (b - a) * right_weight[:, None, :], b - a
    above, below = (np.take_along_axis(rows, (top + step)[:, :, None], axis=1) for step in (0, 1))
    value = above + (below - above) * low_weight[:, :, None]
    slope_above, slope_below = (np.take_along_axis(slope, (top + step)[:, :, None], axis=1) for step in (0, 1))
    by_x = slope_above + (slope_below - slope_above) * low_weight[:, :, None]
    return value, by_x * side, (below - above) * side


def _align(source: np.ndarray, target: np.ndarray, boxes: np.ndarray, origin: np.ndarray, n_steps: int) -> np.ndarray:
    """Refine boxes (M, 4) so that the source inside them matches the target; they stay near ``origin``."""
    side = source.shape[1]
    place = (np.arange(side, dtype=np.float32) + 0.5) / side
    for _ in range(n_steps):
        value, by_x, by_y = _warp(source, boxes)
        columns = (by_x * (1 - place), by_x * place, by_y * (1 - place)[:, None], by_y * place[:, None], value)
        design = np.stack([*columns, np.ones_like(value)], axis=-1)[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
        design = design.reshape(len(source), -1, 6)
        wanted = target[:, MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(len(source), -1, 1)
        turned = design.transpose(0, 2, 1)
        normal = turned @ design + 1e-2 * np.eye(6, dtype=np.float32)
        solution = np.linalg.solve(normal.astype(np.float64), (turned @ wanted).astype(np.float64))[:, :, 0]
        # target = gain * (source + derivative * step) + offset: the first four unknowns carry the gain.
        gain = np.where(np.abs(solution[:, 4]) < 0.2, 1.0, solution[:, 4])
        boxes = boxes + (solution[:, :4] / gain[:, None]).clip(-0.03, 0.03).astype(np.float32)
        boxes = boxes.clip(origin - 0.06, origin + 0.06)
    return boxes


def _agreement(warped: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of the detail and the share of it that is explained in the worst part."""
    inside = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    a = (warped - _blur(warped, DETAIL_SIGMA))[inside]
    b = (target - _blur(target, DETAIL_SIGMA))[inside]
    energy_a, energy_b = (a * a).sum(axis=(1, 2)), (b * b).sum(axis=(1, 2))
    product = (a * b).sum(axis=(1, 2))
    correlation = product / np.sqrt(np.maximum(energy_a * energy_b, 1e-6))
    residual = b - a * (product / np.maximum(energy_a, 1e-6))[:, None, None]
    side = b.shape[1] // BLOCKS

    def per_part(images: np.ndarray) -> np.ndarray:
        return (images**2).reshape(len(images), BLOCKS, side, BLOCKS, side).mean(axis=(2, 4))

    noise = np.maximum(per_part(b), FLOOR)
    return correlation, (1 - per_part(residual) / noise).min(axis=(1, 2))
