"""What a server allows its clients, in one place; errors that a client is meant to see."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request, one client and the whole server may use.

    Attributes:
        max_mb: megabytes of one request, all its images together.
        max_pixels: of one image, read from its header before anything is decoded.
        max_files: images in one request.
        max_seconds: how long an upload may take, and how long a request may then wait for its scores.
        queue: images that may wait for the detector; more are turned away.
        max_batch: images that the detector scores at once.
        per_minute: requests to the API that one address may make in a minute; 0 for any number.
    """

    max_mb: float = 32
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


class Refused(Exception):  # noqa: N818
    """A request that is turned down: HTTP status, a code for programs and a sentence for people.

    The sentence says nothing about the server's inside. ``retry_after`` (seconds) is sent with a 429 or 503.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after

    def to_dict(self) -> dict[str, str]:
        """The error as the API delivers it."""
        return {"code": self.code, "message": self.message}
