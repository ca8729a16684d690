"""Perceptual hashes that survive re-encoding, scaling, mirroring and a crop of a few percent.

A hash holds the signs of the low-frequency cosine coefficients of a thumbnail, each relative to its median over all
images. The usual pHash compares the coefficients of one image with each other, and aligned portraits, all an oval in
the middle, share most bits. Relative to the median, every bit splits the set in half, and aligned portraits differ.

Mirroring negates the odd horizontal coefficients, and cropping corresponds to a cosine basis over a part of the image,
so no image is decoded or scaled again for either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

N_BITS = 128
N_FREQUENCIES = 14
CROP = 0.05  # fraction of a side; the coefficients are so low in frequency that 0.02 to 0.08 still match
CHUNK = 4096  # images processed at a time

Box = tuple[float, float, float, float]  # left, right, top, bottom as fractions of the sides
WHOLE: Box = (0.0, 1.0, 0.0, 1.0)
CROPS: tuple[Box, ...] = (
    (CROP, 1.0, 0.0, 1.0),
    (0.0, 1.0 - CROP, 0.0, 1.0),
    (0.0, 1.0, CROP, 1.0),
    (0.0, 1.0, 0.0, 1.0 - CROP),
    (CROP, 1.0 - CROP, CROP, 1.0 - CROP),
)


@dataclass(frozen=True)
class Hashes:
    """The hashes of one view of all images.

    ``words`` (N, N_BITS / 64) uint64 hold the bits; ``weak`` (N, n_bands, 2) are the two bits of each band of 16
    that are nearest to their median and so flip first.
    """

    words: np.ndarray
    weak: np.ndarray


def _frequencies() -> np.ndarray:
    """The (vertical, horizontal) frequencies of the bits, lowest first: (N_BITS, 2)."""
    pairs = [(v, u) for v in range(N_FREQUENCIES) for u in range(N_FREQUENCIES) if (v, u) != (0, 0)]
    return np.array(sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))[:N_BITS])


FREQUENCIES = _frequencies()
ODD = FREQUENCIES[:, 1] % 2 == 1


def _basis(low: float, high: float, side: int) -> np.ndarray:
    """Cosines over the part [low, high] of a side, pixels weighted by how much of them lies inside."""
    edges = np.arange(side + 1) / side
    inside = (np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)).clip(0) * side
    place = ((edges[1:] + edges[:-1]) / 2 - low) / (high - low)
    basis = np.cos(np.pi * np.arange(N_FREQUENCIES)[:, None] * place[None]) * inside
    return (basis / inside.sum()).astype(np.float32)


def coefficients(thumbnails: np.ndarray, box: Box = WHOLE) -> np.ndarray:
    """Cosine coefficients of the part ``box`` of thumbnails (N, side, side) uint8: (N, N_BITS) float32.

    They are normalised by the contrast of each image; a flat image gives zeros.
    """
    side = thumbnails.shape[1]
    rows, columns = _basis(box[2], box[3], side), _basis(box[0], box[1], side)
    values = np.empty((len(thumbnails), N_BITS), dtype=np.float32)
    for start in range(0, len(thumbnails), CHUNK):
        block = thumbnails[start : start + CHUNK].astype(np.float32)
        block -= block.mean(axis=(1, 2), keepdims=True)
        block /= np.maximum(block.std(axis=(1, 2), keepdims=True), 1e-3)
        spectrum = rows @ block @ columns.T
        values[start : start + CHUNK] = spectrum[:, FREQUENCIES[:, 0], FREQUENCIES[:, 1]]
    return values


def medians(values: np.ndarray) -> np.ndarray:
    """The threshold of every bit: the median over all images and their mirror images, which is 0 for odd bits."""
    return np.where(ODD, np.float32(0), np.median(values, axis=0)).astype(np.float32)


def pack(values: np.ndarray, thresholds: np.ndarray) -> Hashes:
    """Turn coefficients into hashes."""
    margin = values - thresholds
    words = np.packbits(margin > 0, axis=1, bitorder="little").view(np.uint64)
    by_band = np.abs(margin).reshape(len(values), -1, 16)
    weak = np.argpartition(by_band, 1, axis=2)[:, :, :2].astype(np.uint8)
    return Hashes(words, weak)


def views(thumbnails: np.ndarray) -> Iterator[tuple[bool, Box, Hashes]]:
    """Yield (mirrored, box, hashes) of every view: whole first, then mirrored, then each crop and its mirror.

    ``box`` refers to the image as it is stored; the mirror is taken of what is inside it.
    """
    whole = coefficients(thumbnails)
    thresholds = medians(whole)
    for box in (WHOLE, *CROPS):
        values = whole if box == WHOLE else coefficients(thumbnails, box)
        yield False, box, pack(values, thresholds)
        yield True, box, pack(np.where(ODD, -values, values), thresholds)
