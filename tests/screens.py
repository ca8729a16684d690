"""Generated screens and pages with pictures in them: what people have who send a screenshot."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

INK = (40, 40, 40)


def page(picture: np.ndarray, height: int, width: int, shade: int, top: int, left: int) -> np.ndarray:
    """A picture on a plain page."""
    image = np.full((height, width, 3), shade, np.uint8)
    image[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return image


def white_border(picture: np.ndarray) -> np.ndarray:
    return page(picture, 800, 1000, 255, 90, 610)


def letterbox(picture: np.ndarray) -> np.ndarray:
    return page(picture, picture.shape[0], 900, 0, 0, (900 - picture.shape[1]) // 2)


def phone(picture: np.ndarray) -> np.ndarray:
    """A post on a phone: bars with text and icons above and below the picture, which is not scaled."""
    image = page(picture, 1560, 720, 250, 380, (720 - picture.shape[1]) // 2)
    cv2.putText(image, "12:41", (40, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.2, INK, 3, cv2.LINE_AA)
    cv2.rectangle(image, (620, 36), (680, 62), INK, 3)
    cv2.circle(image, (70, 190), 36, (210, 120, 90), -1, cv2.LINE_AA)
    cv2.putText(image, "some_account", (130, 200), cv2.FONT_HERSHEY_SIMPLEX, 1, INK, 2, cv2.LINE_AA)
    for line in range(5):
        place = (30, 1000 + 44 * line)
        cv2.putText(image, "lorem ipsum dolor sit amet"[line:], place, cv2.FONT_HERSHEY_SIMPLEX, 0.9, INK, 2)
    for column in range(5):
        cv2.circle(image, (72 + 144 * column, 1490), 24, INK, 4, cv2.LINE_AA)
    return image


def grid(pictures: Sequence[np.ndarray], columns: int, gap: int = 12) -> np.ndarray:
    """Pictures of one size in rows, on white."""
    height, width = pictures[0].shape[:2]
    rows = len(pictures) // columns
    image = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        image[top : top + height, left : left + width] = picture
    return image
