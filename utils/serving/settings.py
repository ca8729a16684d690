"""Limits of a server, and the errors that its clients see."""

from __future__ import annotations

from dataclasses import dataclass

# Codes of errors that Flask or waitress finds, by HTTP status; all others are "error".
REASONS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_many_bytes"}


@dataclass(frozen=True)
class Limits:
    """Bounds on one request, one client and the whole server.

    Attributes:
        max_mb: megabytes of one request, all images together.
        max_video_mb: megabytes of a request with a video.
        max_video_frames: frames of a video that are scored, evenly spaced.
        max_pixels: of one image or frame, checked in its header before anything is decoded.
        max_files: images in one request.
        max_seconds: for an upload, and to wait for a decoder and for scores; decoding an image may take a third of it,
            decoding a video and finding its faces twice as long.
        queue: images that may wait for the detector; further requests are refused.
        max_batch: images that the detector scores at once.
        per_minute: API requests of one address per minute; 0 for no limit.
    """

    max_mb: float = 32
    max_video_mb: float = 100
    max_video_frames: int = 64
    max_pixels: int = 32_000_000
    max_files: int = 16
    max_seconds: float = 30
    queue: int = 256
    max_batch: int = 32
    per_minute: int = 0

    @property
    def max_bytes(self) -> int:
        """Bytes of one request."""
        return int(self.max_mb * 1_000_000)

    @property
    def max_video_bytes(self) -> int:
        """Bytes of a request with a video."""
        return int(self.max_video_mb * 1_000_000)


class Refused(Exception):  # noqa: N818
    """A refused request: HTTP status, a code for programs and a sentence for people.

    The sentence reveals no path or cause inside the server. ``retry_after`` (seconds) is sent with a 429 or 503.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after

    def to_dict(self) -> dict[str, str]:
        """The error in an answer of the API."""
        return {"code": self.code, "message": self.message}


def refusal_of(error: Exception, max_pixels: int, what: str) -> Refused:
    """Why an image or video is refused, in words that reveal nothing about the server."""
    reason = str(error)
    if reason.startswith("too large"):
        return Refused(413, "too_many_pixels", f"The {what} has more than {max_pixels / 1e6:g} megapixels.")
    if reason.startswith("HEIC needs"):
        return Refused(415, "not_an_image", "This server cannot read HEIC; convert it to JPEG.")
    if reason.startswith("too costly"):
        return Refused(422, "too_complex", f"The {what} takes too long to decode.")
    if reason.startswith("no video stream"):
        return Refused(422, "unreadable", "The file has no video that can be decoded.")
    if "for a verdict" in reason:  # too small or too narrow
        return Refused(422, "bad_shape", f"The {what} is {reason}.")
    if reason.startswith("no frame at"):
        return Refused(422, "no_frame", f"The {what} has {reason}.")
    return Refused(422, "unreadable", f"The {what} is damaged or incomplete.")
