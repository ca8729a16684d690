"""From the bytes of an upload to the views that detectors score; runs in worker processes and imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.faces import Face, FaceFinder
from datasets.images import check_shape, decode_image
from datasets.perturbations import SEVERITIES, apply_tier, screenshot, severity_name
from datasets.transforms import Geometry

SHOWN_SIDE = 1024  # px, the longer side of an overlay
STRESS_PIXELS = 16_000_000  # of an image that is degraded a dozen times
SCREENSHOTS = {0.75: 85, 1.25: 85}  # display scale to JPEG quality of the post
SHARED = {"web": "one upload to a web site", "hard": "shared several times"}

Step = tuple[str, float | None, str, Callable[[np.ndarray], np.ndarray]]  # kind, level, label, function

_finder = functools.cache(FaceFinder)


@dataclass
class Prepared:
    """An upload ready to be scored.

    Attributes:
        size: height and width of the picture in px.
        faces: the faces found; ``[None]`` if the whole picture is judged.
        views: the detector's view of each face, ``(N, size, size, 3)`` uint8 RGB.
        shown: the picture reduced for the screen, if asked for.
    """

    size: tuple[int, int]
    faces: list[Face | None]
    views: np.ndarray
    shown: np.ndarray | None = None


def prepare(data: bytes, max_pixels: int, geometry: Geometry, finder: str | None, show: bool = False) -> Prepared:
    """Decode an image and cut out the view of the picture, or of each face if ``finder`` is given.

    Raises:
        UnreadableImage: the image is damaged, or has more than ``max_pixels`` pixels.
    """
    cv2.setNumThreads(1)
    pixels = check_shape(decode_image(data, max_pixels))
    faces: list[Face | None] = [*_finder(finder)(pixels)] if finder else []
    faces = faces or [None]
    views = np.stack([geometry(face.crop(pixels) if face else pixels) for face in faces])
    return Prepared(pixels.shape[:2], faces, views, _reduced(pixels) if show else None)


def prepare_stress(data: bytes, max_pixels: int, geometry: Geometry, face: Face | None) -> np.ndarray:
    """Views of an image, or of a face in it, after each stress step: ``(steps, size, size, 3)`` uint8.

    Raises:
        UnreadableImage: as :func:`prepare`.
    """
    cv2.setNumThreads(1)
    pixels = check_shape(decode_image(data, max_pixels))
    part = face.crop(pixels) if face else pixels
    return np.stack([geometry(degrade(part)) for *_, degrade in stress_steps()])


def stress_steps() -> list[Step]:
    """What happens to a picture online: JPEG, resizing, screenshots and sharing; the first step changes nothing."""

    def tier(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda image: apply_tier(image, name)

    def capture(scale: float, quality: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda image: screenshot(image, scale, quality)

    steps: list[Step] = [("original", None, "unchanged", tier("clean"))]
    steps += [("jpeg", q, f"JPEG quality {q:g}", tier(severity_name("jpeg", q))) for q in SEVERITIES["jpeg"]]
    smaller = sorted((scale for scale in SEVERITIES["resize"] if scale < 1), reverse=True)
    steps += [("resize", s, f"scaled to {s:.0%}", tier(severity_name("resize", s))) for s in smaller]
    steps += [("screenshot", s, f"screenshot at {s:.0%}", capture(s, q)) for s, q in SCREENSHOTS.items()]
    return steps + [("shared", None, label, tier(name)) for name, label in SHARED.items()]


def _reduced(pixels: np.ndarray) -> np.ndarray:
    factor = SHOWN_SIDE / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    size = tuple(max(1, round(side * factor)) for side in pixels.shape[1::-1])
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
