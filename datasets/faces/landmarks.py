"""The landmarks of the largest face in a picture."""

from __future__ import annotations

import threading

import cv2
import numpy as np

from datasets.faces.finder import open_yunet


class LandmarkFinder:
    """Finds landmarks with YuNet; thread-safe.

    Args:
        file: YuNet as an ONNX file.

    Raises:
        UserError: the file is missing or is not a face detector.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._own = threading.local()
        self._detector()

    def _detector(self) -> cv2.FaceDetectorYN:
        """The detector of this thread; it keeps state between calls."""
        if not hasattr(self._own, "detector"):
            self._own.detector = open_yunet(self.file)
        return self._own.detector

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        """Return ``(5, 2)`` points in px, x before y: the eyes, the nose, the corners of the mouth, left before right.

        The image is ``(H, W, 3)`` uint8 RGB and should not be much larger than 320 px. None if it shows no face.
        """
        detector = self._detector()
        detector.setInputSize(image.shape[1::-1])
        found = detector.detect(np.ascontiguousarray(image[:, :, ::-1]))[1]
        if found is None:
            return None
        largest = found[np.argmax(found[:, 2] * found[:, 3])]
        return largest[4:14].reshape(5, 2).astype(np.float64)
