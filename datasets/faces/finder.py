"""Finding the faces in a picture.

There are two finders. YuNet runs in OpenCV, from an ONNX file (Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face
Detector", Machine Intelligence Research 2023). The frontal cascade of local binary patterns that comes with
scikit-image (Viola and Jones, "Rapid Object Detection using a Boosted Cascade of Simple Features", CVPR 2001) needs no
file but misses more faces, mainly those turned away from the camera.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datasets.faces.framing import Box
from datasets.faces.search import SEARCHED_SIDE, Found, Search, search_faces
from utils.errors import UserError
from utils.files import file_digest, user_cache

if TYPE_CHECKING:
    from datasets.transforms import Geometry

CASCADE = "cascade"
DETECTOR_VARIABLE = "DEEPFAKE_FACE_DETECTOR"
YUNET_FILE = "face_detection_yunet_2023mar.onnx"  # in the user's cache
SCORE = 0.6
CASCADE_FACE = 32  # px, the smallest face after reduction
CASCADE_SCALE = 1.17  # boxes of YuNet are larger than those of the cascade, by the median over 113 portraits


@dataclass(frozen=True)
class Face:
    """A face in a picture and the confidence of the finder, in [0, 1] (None: unknown)."""

    box: Box
    confidence: float | None = None


class FaceFinder:
    """Finds the faces in a picture; thread-safe, and picklable for loader workers.

    Args:
        file: YuNet as an ONNX file; ``cascade`` for the bundled cascade.

    Raises:
        UserError: the file is missing or is not a face detector; scikit-image is not installed.
    """

    def __init__(self, file: str = CASCADE) -> None:
        self.file = file
        self.name = CASCADE if file == CASCADE else "yunet"
        self._own = threading.local()
        self._search()

    def __getstate__(self) -> dict:
        return {"file": self.file}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def digest(self) -> str:
        """Differs between finders that may find different faces."""
        return f"{self.name}-{CASCADE_SCALE}" if self.file == CASCADE else f"{self.name}-{file_digest(self.file)[:16]}"

    def _search(self) -> Search:
        """The detector of this thread and process; it keeps state between calls."""
        if getattr(self._own, "process", None) != os.getpid():
            self._own.search = _cascade() if self.file == CASCADE else _yunet(self.file)
            self._own.process = os.getpid()
        return self._own.search

    def __call__(self, image: np.ndarray) -> list[Face]:
        """The faces in ``(H, W, 3)`` uint8 RGB, the largest first, at most MAX_FACES."""
        height, width = image.shape[:2]
        return [
            Face(Box(left / width, top / height, across / width, down / height), _confidence(score))
            for left, top, across, down, score in search_faces(self._search(), image, self.name)
        ]


def open_finder(file: str | None = None, is_needed: bool = True) -> FaceFinder | None:
    """Return the finder with YuNet, if its file is known, else with the bundled cascade; None if none is needed.

    The file is that of the flag ``--face-detector``, of the variable DEEPFAKE_FACE_DETECTOR, or the one that
    ``python -m datasets.download yunet`` stored.

    Raises:
        UserError: it is no face detector, or the flag was passed but nothing looks for faces.
    """
    if not is_needed:
        if file:
            raise UserError(
                "expected --faces, or a checkpoint of --geometry face, with --face-detector; got a checkpoint that "
                "judges whole pictures: add --faces or drop the flag"
            )
        return None
    return FaceFinder(known_yunet(file) or CASCADE)


def known_yunet(file: str | None = None) -> str | None:
    """Return the file of the flag, of DEEPFAKE_FACE_DETECTOR, or the one that was fetched; None if there is none."""
    stored = user_cache() / YUNET_FILE
    return file or os.environ.get(DETECTOR_VARIABLE) or (str(stored) if stored.is_file() else None)


def check_face_detector(file: str | None) -> None:
    """Check the file of --face-detector before anything else is loaded. Raises UserError: it is no face detector."""
    if file:
        FaceFinder(file)


Finder = Callable[[np.ndarray], list[Face]]


def face_views(
    image: np.ndarray, geometry: Geometry, finder: Finder | None, every_face: bool = False
) -> tuple[np.ndarray, list[Face]]:
    """What a detector with this geometry sees of ``(H, W, 3)`` uint8 RGB: its views ``(V, size, size, 3)``, the faces.

    Without faces the only view is that of the whole picture. A ``finder`` is asked for the largest face if the
    geometry needs it, or for ``every_face``.
    """
    faces = finder(image)[: None if every_face else 1] if finder and (every_face or geometry.needs_face) else []
    views = [geometry.of_face(image, face.box) for face in faces] or [geometry(image)]
    return np.stack(views), faces


def highest_of_each(indices: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest logits ``(..., N)`` of each picture, whose faces have equal ``indices`` ``(M,)`` in a row."""
    pictures, starts = np.unique(indices, return_index=True)
    return pictures, np.maximum.reduceat(logits, starts, axis=-1) if len(starts) else logits


def _confidence(score: float) -> float | None:
    return None if math.isnan(score) else round(score, 4)


def open_yunet(file: str) -> cv2.FaceDetectorYN:
    """Open YuNet in OpenCV. Raises UserError: the file is missing or is not a face detector."""
    expected = "expected --face-detector to be a YuNet ONNX file"
    if not Path(file).is_file():
        raise UserError(f"{expected}, found no file {file!r}; fetch one with: python -m datasets.download yunet")
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # of advice that is no help to users
    try:
        detector = cv2.FaceDetectorYN.create(file, "", (SEARCHED_SIDE, SEARCHED_SIDE), SCORE)
        detector.detect(np.zeros((SEARCHED_SIDE, SEARCHED_SIDE, 3), np.uint8))  # other networks fail here
    except cv2.error:
        raise UserError(f"{expected}, OpenCV cannot use {file!r}; get one: python -m datasets.download yunet") from None
    finally:
        cv2.utils.logging.setLogLevel(level)
    return detector


def _yunet(file: str) -> Search:
    detector = open_yunet(file)

    def search(image: np.ndarray) -> list[Found]:
        detector.setInputSize((image.shape[1], image.shape[0]))
        found = detector.detect(np.ascontiguousarray(image[:, :, ::-1]))[1]
        rows = np.empty((0, 15)) if found is None else np.asarray(found, np.float64)
        return [tuple(row) for row in rows[:, [0, 1, 2, 3, 14]].tolist()]

    return search


def _cascade() -> Search:
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError:
        raise UserError(
            "expected the package scikit-image to find faces, which is not installed; "
            "pip install scikit-image, or name a YuNet file with --face-detector"
        ) from None
    cascade: Any = Cascade(lbp_frontal_face_cascade_filename())

    def search(image: np.ndarray) -> list[Found]:
        if min(image.shape[:2]) < CASCADE_FACE:
            return []
        found = cascade.detect_multi_scale(
            img=image, scale_factor=1.15, step_ratio=1, min_size=(CASCADE_FACE,) * 2, max_size=image.shape[:2]
        )
        faces = [(face["c"], face["r"], face["width"], face["height"]) for face in found]
        sides, moved = CASCADE_SCALE, (CASCADE_SCALE - 1) / 2
        return [(left - moved * w, top - moved * h, sides * w, sides * h, math.nan) for left, top, w, h in faces]

    return search
