"""Images of noise, and the sizes and geometries that tests of transforms share."""

import numpy as np

from datasets.transforms import Geometry

SIZES = [(1, 1), (1, 50), (50, 1), (2, 3), (31, 33), (32, 32), (33, 31), (32, 90), (47, 61), (64, 64), (101, 40)]

GEOMETRIES = [Geometry("crop", 32), Geometry("crop", 32, 32), Geometry("crop", 32, 41), Geometry("resize", 32)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def find(crop: np.ndarray, image: np.ndarray) -> tuple[int, int] | None:
    """Top left corner at which the exact pixels of ``crop`` stand in ``image``."""
    height, width = crop.shape[:2]
    for top in range(image.shape[0] - height + 1):
        for left in range(image.shape[1] - width + 1):
            if np.array_equal(image[top : top + height, left : left + width], crop):
                return top, left
    return None
