"""The square around a face that a detector sees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MARGIN = 1.3  # side of a frame : longer side of the face in it
FACE_MARGIN = 1.6  # of the faces that --faces cuts out for a detector that does not frame them itself


class Box(NamedTuple):
    """A face as fractions of the width and height of its picture, so that a resized copy of it has the same box.

    A face that the border cuts may reach beyond [0, 1].
    """

    left: float
    top: float
    width: float
    height: float


def square_around(
    shape: tuple[int, ...], box: Box | None, margin: float, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> tuple[int, int, int]:
    """Top, left and side in px of the square around a face in a picture of this ``(H, W)``, moved inside the picture.

    Its side is ``margin`` times the longer side of the box, at most the shorter side of the picture; without a box it
    is the central square of the picture. Then ``zoom`` multiplies the side, and ``shift`` (right, down) moves the
    centre by these fractions of it.
    """
    height, width = shape[:2]
    if box is None:
        across, down, side = width / 2, height / 2, min(height, width) * zoom
    else:
        across, down = (box.left + box.width / 2) * width, (box.top + box.height / 2) * height
        side = margin * zoom * max(box.width * width, box.height * height)
    whole = max(1, round(min(side, height, width)))
    top, left = round(down + shift[1] * whole - whole / 2), round(across + shift[0] * whole - whole / 2)
    return max(0, min(top, height - whole)), max(0, min(left, width - whole)), whole


def cut(image: np.ndarray, square: tuple[int, int, int]) -> np.ndarray:
    """Cut a square (top, left, side) out of an image."""
    top, left, side = square
    return image[top : top + side, left : left + side]
