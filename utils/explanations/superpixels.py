"""Superpixels: segments of an image that follow its edges, and what a map says about them."""

from __future__ import annotations

import numpy as np

SEGMENTS = 36
COMPACTNESS = 15.0  # between following edges and staying round


def segment(image: np.ndarray, count: int = SEGMENTS) -> np.ndarray:
    """Divide ``(H, W, 3)`` uint8 RGB into about ``count`` connected segments, ``(H, W)`` int numbered from 0.

    Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", TPAMI 2012.
    """
    from skimage.segmentation import slic

    labels = slic(image, n_segments=count, compactness=COMPACTNESS, start_label=0, max_num_iter=5)
    if labels.max() + 1 < count / 3:  # noise has no edges to follow, and its shreds are merged into one: squares then
        side = max(1, round(count**0.5))
        rows, columns = (np.arange(length) * side // length for length in image.shape[:2])
        labels = rows[:, None] * side + columns[None]
    return np.unique(labels, return_inverse=True)[1].reshape(image.shape[:2])


def segment_means(heat: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Mean of a map ``(H, W)`` over each segment, ``(S,)``."""
    flat = segments.reshape(-1)
    return np.bincount(flat, heat.reshape(-1).astype(np.float64)) / np.bincount(flat)


def top_segments(heat: np.ndarray, segments: np.ndarray, count: int) -> np.ndarray:
    """Mark the segments with the highest mean: ``(H, W)`` int, 1 for the strongest, 2 ..., 0 elsewhere.

    A segment without any evidence (mean 0) is never marked.
    """
    means = segment_means(heat, segments)
    order = np.argsort(-means, kind="stable")[:count]
    ranks = np.zeros(len(means), np.int64)
    for rank, index in enumerate(order, start=1):
        ranks[index] = rank if means[index] > 0 else 0
    return ranks[segments]
