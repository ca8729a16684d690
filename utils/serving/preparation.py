"""From the bytes of an upload to the views that detectors score; runs in worker processes and imports no torch."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from datasets.decoding.images import UnreadableImage, check_shape, decode_image
from datasets.decoding.video import sample_frames
from datasets.faces.finder import Face, FaceFinder, face_views
from datasets.faces.framing import Box
from datasets.listing.records import Sampling
from datasets.perturbations import SEVERITIES, apply_tier, screenshot, severity_name
from datasets.transforms import Geometry
from utils.metadata.findings import Finding, read_findings

SHOWN_SIDE = 1024  # px, the longer side of an overlay
STILL_SIDE = 256  # px, the longer side of a frame in an answer
JPEG_QUALITY = 85
VIDEO_CHUNK = 8  # frames that are handed over at once
SURROUNDINGS = 2  # side of an overlay : side of the judged square in it
STRESS_PIXELS = 16_000_000  # of an image that is degraded a dozen times
SCREENSHOTS = {0.75: 85, 1.25: 85}  # display scale to JPEG quality of the post
SHARED = {"web": "one upload to a web site", "hard": "shared several times"}

Step = tuple[str, float | None, str, Callable[[np.ndarray], np.ndarray]]  # kind, level, label, function

_finder = functools.cache(FaceFinder)


@dataclass(frozen=True)
class Choice:
    """What a client wants judged in a picture.

    Attributes:
        faces: each face, not only the largest; without effect unless faces are searched.
        whole: the whole picture if no face is found; without it there is no verdict then.
        face: the face to explain, counted from 0, the largest first; None for the most suspicious.
    """

    faces: bool = True
    whole: bool = False
    face: int | None = None


class Part(NamedTuple):
    """A part of a picture in px."""

    left: int
    top: int
    width: int
    height: int


@dataclass
class Prepared:
    """An upload ready to be scored.

    Attributes:
        size: height and width of the picture in px.
        faces: the faces that are judged; ``[None]`` if the whole picture is; empty if no face was found.
        views: the detector's view of each face, ``(N, size, size, 3)`` uint8 RGB.
        shown: each face with its surroundings, or the whole picture, reduced for the screen; empty unless asked for.
        metadata: what the file says about itself.
    """

    size: tuple[int, int]
    faces: list[Face | None]
    views: np.ndarray
    shown: list[tuple[Part, np.ndarray]] = field(default_factory=list)
    metadata: list[Finding] = field(default_factory=list)


def prepare(
    data: bytes,
    max_pixels: int,
    geometry: Geometry,
    finder: str | None,
    every_face: bool,
    needs_face: bool = False,
    show: bool = False,
) -> Prepared:
    """Decode an image and cut out what the detector sees of it, or of each face (``datasets.faces.finder.face_views``).

    With ``needs_face``, nothing is judged in a picture where no face is found.

    Raises:
        UnreadableImage: the image is damaged, or has more than ``max_pixels`` pixels.
    """
    cv2.setNumThreads(1)
    pixels = check_shape(decode_image(data, max_pixels))
    views, found = face_views(pixels, geometry, _finder(finder) if finder else None, every_face)
    faces: list[Face | None] = [*found] or ([] if needs_face else [None])
    parts = [_surroundings(geometry, pixels.shape, face) for face in faces] if show else []
    shown = [(part, _reduced(_cut(pixels, part), SHOWN_SIDE)) for part in parts]
    return Prepared(pixels.shape[:2], faces, views[: len(faces)], shown, read_findings(data))


class Still(NamedTuple):
    """A picture ``(height, width)`` as a JPEG file."""

    data: bytes
    shape: tuple[int, int]


def prepare_preview(data: bytes, max_pixels: int) -> Still:
    """Decode an image and encode it for a browser, reduced to SHOWN_SIDE. Raises UnreadableImage."""
    cv2.setNumThreads(1)
    return _still(decode_image(data, max_pixels), SHOWN_SIDE)


class PreparedFrame(NamedTuple):
    """A frame of a video, ready to be scored.

    Attributes:
        time: in s.
        size: height and width in px.
        boxes: of the faces in it.
        views: the detector's view of each face, or of the whole frame, ``(N, size, size, 3)``; possibly none.
        stills: the same for people.
    """

    time: float
    size: tuple[int, int]
    boxes: list[Box]
    views: np.ndarray
    stills: list[Still]


def prepare_video(
    data: bytes, max_pixels: int, geometry: Geometry, finder: str, sampling: Sampling, whole: bool
) -> Iterator[list[PreparedFrame]]:
    """Yield frames of a video in chunks, so that memory does not grow with their number.

    With ``whole``, whole frames are views too until a face is found.

    Raises:
        UnreadableImage: as ``sample_frames``.
    """
    cv2.setNumThreads(1)
    chunk: list[PreparedFrame] = []
    needs_face = not whole
    for time, pixels in sample_frames(io.BytesIO(data), sampling, max_pixels):
        views, faces = face_views(pixels, geometry, _finder(finder), every_face=True)
        needs_face = needs_face or bool(faces)
        views = views if faces or not needs_face else views[:0]
        stills = [_still(view, STILL_SIDE) for view in views]
        chunk.append(PreparedFrame(time, pixels.shape[:2], [face.box for face in faces], views, stills))
        if len(chunk) == VIDEO_CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def prepare_frame(data: bytes, max_pixels: int, time: float) -> bytes:
    """The frame of a video at a time in s, as a PNG file: its pixels are those that were scored.

    Raises:
        UnreadableImage: as ``sample_frames``, or the video ends before ``time``.
    """
    cv2.setNumThreads(1)
    try:
        frame = next(sample_frames(io.BytesIO(data), Sampling(max_frames=1), max_pixels, time))
    except UnreadableImage as error:
        if time and str(error).startswith("no frame"):
            raise UnreadableImage(f"no frame at {time:g} s or later") from None
        raise
    return cv2.imencode(".png", cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))[1].tobytes()


def prepare_stress(data: bytes, max_pixels: int, geometry: Geometry, face: Face | None) -> np.ndarray:
    """Views of an image, or of a face in it, after each stress step: ``(steps, size, size, 3)`` uint8.

    Raises:
        UnreadableImage: as :func:`prepare`.
    """
    cv2.setNumThreads(1)
    pixels = check_shape(decode_image(data, max_pixels))
    changed = [degrade(pixels) for *_, degrade in stress_steps()]
    return np.stack([geometry.of_face(image, face.box) if face else geometry(image) for image in changed])


def stress_steps() -> list[Step]:
    """What happens to a picture online: JPEG, resizing, screenshots and sharing; the first step changes nothing."""

    def tier(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda image: apply_tier(image, name)

    def capture(scale: float, quality: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda image: screenshot(image, scale, quality)

    steps: list[Step] = [("original", None, "unchanged", tier("clean"))]
    steps += [("jpeg", q, f"JPEG quality {q:g}", tier(severity_name("jpeg", q))) for q in SEVERITIES["jpeg"]]
    smaller = sorted((scale for scale in SEVERITIES["resize"] if scale < 1), reverse=True)
    steps += [("resize", s, f"scaled to {100 * s:.0f} %", tier(severity_name("resize", s))) for s in smaller]
    steps += [("screenshot", s, f"screenshot at {100 * s:.0f} %", capture(s, q)) for s, q in SCREENSHOTS.items()]
    return steps + [("shared", None, label, tier(name)) for name, label in SHARED.items()]


def _surroundings(geometry: Geometry, shape: tuple[int, ...], face: Face | None) -> Part:
    """The part of a picture ``(H, W)`` that shows a face and what is around it; without a face, the whole picture."""
    height, width = shape[:2]
    if face is None:
        return Part(0, 0, width, height)
    top, left, side = geometry.square(shape, face.box)
    margin = (SURROUNDINGS - 1) * side // 2
    left, right = max(0, left - margin), min(width, left + side + margin)
    top, bottom = max(0, top - margin), min(height, top + side + margin)
    return Part(left, top, right - left, bottom - top)


def _cut(pixels: np.ndarray, part: Part) -> np.ndarray:
    return pixels[part.top : part.top + part.height, part.left : part.left + part.width]


def _still(pixels: np.ndarray, side: int) -> Still:
    small = _reduced(pixels, side)
    file = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return Still(file.tobytes(), small.shape[:2])


def _reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    factor = side / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    size = tuple(max(1, round(length * factor)) for length in pixels.shape[1::-1])
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
