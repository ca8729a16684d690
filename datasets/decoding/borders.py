"""Plain borders around a picture, as in a letterbox, a collage or a screenshot."""

from __future__ import annotations

import cv2
import numpy as np

PLAIN = 4  # of 255, the most that the pixels of a row or column may differ in a channel
SAMPLES = 256  # of the pixels of a row or column around a face
ROUNDS = 4  # a border may hide another one: a letterbox in a white page

Area = tuple[int, int, int, int]  # top, left, height, width in px


def inside_borders(image: np.ndarray) -> Area:
    """The part of ``(H, W, 3)`` uint8 inside rows and columns of one colour at its edges; all of a plain picture."""
    area = top, left, height, width = 0, 0, *image.shape[:2]
    for _ in range(ROUNDS):
        before = area
        for axis in (1, 0):  # rows, then columns
            first, count = _content(image[top : top + height, left : left + width], axis)
            if axis:
                top, height = top + first, count
            else:
                left, width = left + first, count
        area = top, left, height, width
        if area == before or not height * width:
            break
    return area if height * width else (0, 0, *image.shape[:2])


def up_to_borders(image: np.ndarray, inner: Area) -> Area:
    """The part of ``(H, W, 3)`` uint8 around an area in it, on each side up to the first row or column of one colour.

    Beyond that may be other pictures, as in a collage.
    """
    area = 0, 0, *image.shape[:2]
    for _ in range(ROUNDS):
        before, (top, left, height, width) = area, area
        sampled = image[top : top + height, left : left + width : max(1, width // SAMPLES)]
        top, height = _around(_plain(sampled, 1), inner[0] - top, inner[2], top)
        sampled = image[top : top + height : max(1, height // SAMPLES), left : left + width]
        left, width = _around(_plain(sampled, 0), inner[1] - left, inner[3], left)
        area = top, left, height, width
        if area == before:
            break
    return area


def _around(plain: np.ndarray, start: int, count: int, offset: int) -> tuple[int, int]:
    """The first and the number of the lines around ``count`` lines from ``start`` on up to the nearest plain ones."""
    start = max(0, start)
    before, after = np.flatnonzero(plain[:start]), np.flatnonzero(plain[start + count :])
    first = int(before[-1]) + 1 if len(before) else 0
    last = start + count + int(after[0]) if len(after) else len(plain)
    return offset + first, last - first


def _content(image: np.ndarray, axis: int) -> tuple[int, int]:
    """The first line that is not plain and the number of lines up to the last one; lines are rows if ``axis`` is 1."""
    count = image.shape[1 - axis]
    edges = image[[0, -1]] if axis else image[:, [0, -1]]
    if not image.size or not _plain(edges, axis).any():  # as in nearly all photographs
        return 0, count
    lines = np.flatnonzero(~_plain(image, axis))
    return (int(lines[0]), int(lines[-1] - lines[0] + 1)) if len(lines) else (0, 0)


def _plain(image: np.ndarray, axis: int) -> np.ndarray:
    image = np.ascontiguousarray(image)
    highest, lowest = (cv2.reduce(image, axis, kind).reshape(-1, 3) for kind in (cv2.REDUCE_MAX, cv2.REDUCE_MIN))
    return (highest - lowest).max(1) <= PLAIN
