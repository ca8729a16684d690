"""Faces in a picture, and the regions of a picture that a detector judges.

There are two finders. YuNet runs in OpenCV, from an ONNX file that you name (Wu, Peng and Yu, "YuNet: A Tiny
Millisecond-level Face Detector", Machine Intelligence Research 2023). The frontal cascade of local binary patterns
that comes with scikit-image (Viola and Jones, "Rapid Object Detection using a Boosted Cascade of Simple Features",
CVPR 2001) needs no file but misses more faces, above all those that are turned away from the camera.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.errors import UserError

CASCADE = "cascade"
MARGIN = 0.3  # of the sides of a face, added on each of its four sides
MAX_FACES = 8
YUNET_SIDE, CASCADE_SIDE = 480, 400  # px, the longer side of the searched picture; larger pictures are reduced
YUNET_SCORE = 0.6
CASCADE_FACE = 36  # px, the smallest face after reduction
OVERLAP = 0.3  # two boxes that share more of their union are one face

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Face:
    """A square region of a picture in pixels, margin included, and the confidence of the finder (None: unknown)."""

    left: int
    top: int
    side: int
    confidence: float | None = None

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Cut the region out of ``(H, W, 3)``; the part beyond the border of the picture is not filled."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


Box = tuple[float, float, float, float, float]  # left, top, width, height, score


class FaceFinder:
    """Finds the faces in a picture; thread-safe, and picklable for loader workers.

    Args:
        file: YuNet as an ONNX file; ``cascade`` for the bundled cascade.

    Raises:
        UserError: the file is missing or is not a face detector; scikit-image is not installed.
    """

    def __init__(self, file: str = CASCADE) -> None:
        self.file = file
        self._open()

    def _open(self) -> None:
        """Load the detector; it keeps state between calls, so each process has a separate one, behind a lock."""
        self._process, self._lock = os.getpid(), threading.Lock()
        self._search = _cascade() if self.file == CASCADE else _yunet(self.file)

    def __getstate__(self) -> dict:
        return {"file": self.file}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, image: np.ndarray) -> list[Face]:
        """The faces in ``(H, W, 3)`` uint8 RGB, the largest first, at most MAX_FACES."""
        if self._process != os.getpid():
            self._open()
        with self._lock:
            boxes = self._search(image)
        boxes = sorted(boxes, key=lambda box: (-box[2] * box[3], box))
        height, width = image.shape[:2]
        return [with_margin(box, height, width) for box in distinct(boxes)[:MAX_FACES]]


Finder = Callable[[np.ndarray], list[Face]]


def face_crops(image: np.ndarray, path: str, finder: Finder | None) -> list[np.ndarray]:
    """The faces in a picture ``(H, W, 3)``; the whole picture without a finder or, with a warning, without a face."""
    faces = finder(image) if finder else []
    if finder and not faces:
        log.warning("%s: no face found, the whole picture is scored", path)
    return [face.crop(image) for face in faces] or [image]


def highest_of_each(indices: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest logits ``(..., N)`` of each picture, whose faces have equal ``indices`` ``(M,)`` in a row."""
    pictures, starts = np.unique(indices, return_index=True)
    return pictures, np.maximum.reduceat(logits, starts, axis=-1) if len(starts) else logits


def with_margin(box: Box, height: int, width: int, margin: float = MARGIN) -> Face:
    """Square a box around its centre and widen it by ``margin`` of its longer side on each side, inside the picture."""
    left, top, box_width, box_height, score = box
    side = min(round(max(box_width, box_height) * (1 + 2 * margin)), max(height, width))
    x, y = round(left + box_width / 2 - side / 2), round(top + box_height / 2 - side / 2)
    # Moved inside where there is room: a face near the border keeps its surroundings on the other side.
    x, y = max(0, min(x, width - side)), max(0, min(y, height - side))
    return Face(x, y, max(1, side), None if score < 0 else round(float(score), 4))


def distinct(boxes: Sequence[Box]) -> list[Box]:
    """Drop boxes that overlap an earlier one."""
    kept: list[Box] = []
    for box in boxes:
        if all(_overlap(box, other) <= OVERLAP for other in kept):
            kept.append(box)
    return kept


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared) if shared else 0.0


def _reduced(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """Shrink so that no side exceeds ``longest``; returns the image and the factor back."""
    factor = max(1.0, max(image.shape[:2]) / longest)
    if factor == 1.0:
        return image, factor
    size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), factor


def _yunet(file: str) -> Callable[[np.ndarray], list[Box]]:
    if not Path(file).is_file():
        raise UserError(f"expected --face-detector to be a YuNet ONNX file, found no file {file!r}")
    try:
        detector = cv2.FaceDetectorYN.create(file, "", (YUNET_SIDE, YUNET_SIDE), YUNET_SCORE)
    except cv2.error:
        raise UserError(f"expected --face-detector to be a YuNet ONNX file, OpenCV cannot read {file!r}") from None

    def search(image: np.ndarray) -> list[Box]:
        small, factor = _reduced(image, YUNET_SIDE)
        detector.setInputSize((small.shape[1], small.shape[0]))
        found = detector.detect(np.ascontiguousarray(small[:, :, ::-1]))[1]
        rows = np.empty((0, 15)) if found is None else np.asarray(found, np.float64)
        return [tuple(row) for row in np.column_stack([rows[:, :4] * factor, rows[:, 14]]).tolist()]

    return search


def _cascade() -> Callable[[np.ndarray], list[Box]]:
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError:
        raise UserError(
            "expected the package scikit-image for --faces, which is not installed; "
            "pip install scikit-image, or name a YuNet file with --face-detector"
        ) from None
    cascade: Any = Cascade(lbp_frontal_face_cascade_filename())

    def search(image: np.ndarray) -> list[Box]:
        small, factor = _reduced(image, CASCADE_SIDE)
        if min(small.shape[:2]) < CASCADE_FACE:
            return []
        found = cascade.detect_multi_scale(
            img=small, scale_factor=1.15, step_ratio=1, min_size=(CASCADE_FACE,) * 2, max_size=small.shape[:2]
        )
        return [(f["c"] * factor, f["r"] * factor, f["width"] * factor, f["height"] * factor, -1.0) for f in found]

    return search
