"""Search pictures of any size for faces: where, at which scale, and which results to keep.

Small pictures, like those that detectors are trained on, are searched once. In a large one, plain borders are removed;
if the faces found are small in it, as in a screenshot, a collage or a crowd, it is searched once more at a
larger size. A face is then kept only if it is found again in its surroundings alone. This also gives it the box that it
would have in a separate picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from datasets.decoding.borders import Area, inside_borders, up_to_borders
from datasets.faces.framing import MARGIN, Box, square_around

SEARCHED_SIDE = 320  # px, the longer side of the searched picture; larger pictures are reduced
BORDER = 0.25  # of each side, replicated around a picture without a face: a face that fills it is found then
LARGE = 600  # px, the longer side of pictures that may have borders, or faces that the first search misses
SMALL = 0.2  # of the longer side of the picture: if no face is larger, it is searched again
FINE_SIDE = {"yunet": 960, "cascade": 640}  # px, the longer side in that search; the cascade takes long
SMALLEST = 40  # px, the longer side of faces in it: below, there is too little to judge
SURROUNDINGS = 2.0  # side of the square that is searched around such a face : longer side of the face
MAX_FACES = 32
HALVED = 4  # times the longer side in a search; pictures from there on are halved before they are reduced to it
OVERLAP = 0.3  # two boxes that share more of their union are one face

Found = tuple[float, float, float, float, float]  # left, top, width, height in px; score, NaN if unknown
Search = Callable[[np.ndarray], list[Found]]  # of a small picture (H, W, 3) uint8 RGB


def search_faces(search: Search, image: np.ndarray, finder: str) -> list[Found]:
    """The faces in ``(H, W, 3)`` uint8 RGB, the largest first, at most MAX_FACES, by the search of this finder."""
    if max(image.shape[:2]) <= LARGE:
        return distinct(_by_size(_search_once(search, image)))[:MAX_FACES]
    top, left, height, width = inside_borders(image)
    inner = image[top : top + height, left : left + width]
    found = distinct(_by_size(_search_once(search, inner)))
    if max(height, width) > LARGE and not any(max(each[2:4]) > SMALL * max(height, width) for each in found):
        candidates = distinct(_by_size(_search_reduced(search, inner, FINE_SIDE[finder])) + found)[:MAX_FACES]
        again = [_search_again(search, inner, each) for each in candidates if max(each[2:4]) >= SMALLEST]
        found = distinct(_by_size([each for each in again if each]))
    is_bordered = inner.shape != image.shape
    inside = [_inside_picture(inner, each, is_bordered) for each in found[:MAX_FACES]]
    return [(x + left, y + top, w, h, score) for x, y, w, h, score in inside]


def distinct(found: Sequence[Found]) -> list[Found]:
    """Drop boxes that overlap an earlier one."""
    kept: list[Found] = []
    for each in found:
        if all(overlap(each, other) <= OVERLAP for other in kept):
            kept.append(each)
    return kept


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes that begin with left, top, width and height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared) if shared else 0.0


def _by_size(found: list[Found]) -> list[Found]:
    return sorted(found, key=lambda each: (-each[2] * each[3], each))


def _search_once(search: Search, image: np.ndarray) -> list[Found]:
    """Search a picture, and once more with its border extended if it shows no face."""
    height, width = image.shape[:2]
    found = _search_reduced(search, image)
    if not found:
        rows, columns = math.ceil(height * BORDER), math.ceil(width * BORDER)
        wide = cv2.copyMakeBorder(image, rows, rows, columns, columns, cv2.BORDER_REPLICATE)
        found = [(left - columns, top - rows, *rest) for left, top, *rest in _search_reduced(search, wide)]
    return [each for each in found if 0 < each[0] + each[2] / 2 < width and 0 < each[1] + each[3] / 2 < height]


def _search_reduced(search: Search, image: np.ndarray, side: int = SEARCHED_SIDE) -> list[Found]:
    """Search a picture reduced to a longer side of at most ``side`` px; the boxes are those of the picture itself."""
    height, width = image.shape[:2]
    factor = max(1.0, max(height, width) / side)
    while max(image.shape[:2]) >= HALVED * side:  # several times faster than a single step
        rows, columns = (length // 2 for length in image.shape[:2])
        image = cv2.resize(image[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
    if factor > 1.0:
        size = (max(1, round(width / factor)), max(1, round(height / factor)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    found = search(image)
    return [(left * factor, top * factor, w * factor, h * factor, score) for left, top, w, h, score in found]


def _search_again(search: Search, image: np.ndarray, face: Found) -> Found | None:
    """Search the surroundings of a face, and return what is found at its place."""
    (top, left, height, width), _ = _surroundings(image, face, SURROUNDINGS)
    found = distinct(_by_size(_search_once(search, image[top : top + height, left : left + width])))
    moved = [(x + left, y + top, w, h, score) for x, y, w, h, score in found]
    best = max(moved, key=lambda each: overlap(each, face), default=None)
    return best if best and overlap(best, face) > OVERLAP else None


def _inside_picture(image: np.ndarray, face: Found, is_bordered: bool) -> Found:
    """Move and reduce a face so that the square that detectors see ends where plain borders begin.

    In the picture alone, the square ends at its edge (:func:`datasets.faces.framing.square_around`).
    """
    for scale in (SURROUNDINGS, MARGIN):
        (top, left, height, width), has_border = _surroundings(image, face, scale)
        if is_bordered or has_border:
            x, y, w, h, score = face
            side = MARGIN * max(w, h)
            reach = min(side, height, width)
            across = min(max(x + w / 2, left + reach / 2), left + width - reach / 2)
            down = min(max(y + h / 2, top + reach / 2), top + height - reach / 2)
            w, h = w * reach / side, h * reach / side
            face = across - w / 2, down - h / 2, w, h, score
    return face


def _surroundings(image: np.ndarray, face: Found, scale: float) -> tuple[Area, bool]:
    """The square around a face, of ``scale`` times its longer side, inside plain borders; whether it has any."""
    height, width = image.shape[:2]
    box = Box(face[0] / width, face[1] / height, face[2] / width, face[3] / height)
    top, left, side = square_around(image.shape, box, scale)
    x, y, w, h = face[0] - left, face[1] - top, face[2], face[3]
    middle = round(y + h / 4), round(x + w / 4), round(h / 2), round(w / 2)  # the rest may be outside of the picture
    first, start, rows, columns = up_to_borders(image[top : top + side, left : left + side], middle)
    return (top + first, left + start, rows, columns), (rows, columns) != (side, side)
