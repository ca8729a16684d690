"""Videos: some of their frames, with the times that the container gives them.

Videos are recognised by content, never by file name. OpenCV decodes with FFmpeg and reads through an open file, so
that neither a name such as ``http:...`` nor a playlist makes it open anything else. It turns frames upright.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import IO, NamedTuple

import cv2
import numpy as np

from datasets.decoding.containers import is_truncated
from datasets.decoding.formats import check_cost
from datasets.decoding.images import MAX_PIXELS, check_shape
from datasets.listing.records import Sampling
from datasets.listing.storage import UnreadableImage

FAR = 10.0  # s; on a longer way to the next sample, seeking is faster than decoding all frames in between
LEAD = 1.0  # s before a start; seeking may end behind its target where the rate of frames varies
ROUNDING = 0.001  # s, of times


class Frame(NamedTuple):
    """A frame ``(H, W, 3)`` uint8 RGB and its time in s from the start of the video."""

    time: float
    image: np.ndarray


def sample_frames(
    source: str | IO[bytes], sampling: Sampling | None = None, max_pixels: int = MAX_PIXELS, start: float = 0.0
) -> Iterator[Frame]:
    """Yield evenly spaced frames of a video, a path or an open file, one at a time, at least one.

    The first one is the first at ``start`` (s) or later: with the time of a frame, that frame again.

    Raises UnreadableImage when the file is missing, truncated, without a video stream, or has frames that are too large
    (more than ``max_pixels``, checked before one is decoded) or too small for a verdict.
    """
    sampling = sampling or Sampling()
    try:
        with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
            if is_truncated(file):
                raise UnreadableImage("truncated")
            capture = _open(file)
            duration = _stated_duration(capture)
            if not duration:  # as in recordings of a browser
                duration = _measured_duration(capture, max_pixels)
                capture = _open(file)
            step, n_frames = max(sampling.every, duration / sampling.max_frames), 0
            if start > FAR:
                capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * (start - LEAD))
            for frame in _frames(capture, start, step, max_pixels):
                yield frame
                n_frames += 1
                if n_frames == sampling.max_frames:
                    return
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror or error})") from None
    if not n_frames:
        raise UnreadableImage("no frame can be decoded")


def _frames(capture: cv2.VideoCapture, wanted: float, step: float, max_pixels: int) -> Iterator[Frame]:
    """The first frame from the time ``wanted`` on, and of each step after it, among those that can be decoded."""
    while _grab(capture, max_pixels):
        time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if time < wanted - ROUNDING:
            continue
        is_good, image = capture.retrieve()
        if is_good:
            yield Frame(max(0.0, time), cv2.cvtColor(check_shape(image), cv2.COLOR_BGR2RGB))
            wanted = step * (math.floor((time + ROUNDING) / step) + 1)
            if wanted - time > FAR:
                capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * wanted)


def _grab(capture: cv2.VideoCapture, max_pixels: int) -> bool:
    """Decode the next frame; False at the end. Raises UnreadableImage; the size may change on the way."""
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    check_cost(int(width), int(height), 1, max_pixels)
    return capture.grab()


def _open(file: IO[bytes]) -> cv2.VideoCapture:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet; read when the first video is opened
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        file.seek(0)
        capture = cv2.VideoCapture(file, cv2.CAP_FFMPEG, [])  # type: ignore[call-overload]
    except cv2.error:
        raise UnreadableImage("no video stream that can be decoded") from None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        raise UnreadableImage("no video stream that can be decoded")
    return capture


def _stated_duration(capture: cv2.VideoCapture) -> float:
    """The duration in s that the container states, 0 if it states none."""
    n_frames, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    return n_frames / rate if n_frames > 0 and rate > 0 else 0.0


def _measured_duration(capture: cv2.VideoCapture, max_pixels: int) -> float:
    time = 0.0
    while _grab(capture, max_pixels):
        time = max(time, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    return time
