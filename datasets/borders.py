"""Plain borders around a picture: of a letterbox, a collage, a screenshot."""

from __future__ import annotations

import cv2
import numpy as np

PLAIN = 4  # of 255, the most that the pixels of a row or column may differ in a channel
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
