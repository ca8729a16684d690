"""From a request to decoded pictures: every check that can be made on bytes is made before a pixel is decoded.

The type is read from the content, never from a name or a declared media type. Nothing is written to disk: uploads stay
in memory, where the size of the request bounds them, and end with it.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TypeVar

import numpy as np
from flask import Request

from datasets.images import UnreadableImage, decode_image
from utils.serving.settings import Limits, Refused

ACCEPTED = "JPEG, PNG, WebP, AVIF, GIF or BMP"
MAX_NAME = 100  # characters of a file name that are repeated to the client

T = TypeVar("T")

_room = threading.BoundedSemaphore(os.cpu_count() or 1)


class MemoryRequest(Request):
    """A Flask request whose uploads never touch the disk; Werkzeug would spool those above 500 kB to a file."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        return io.BytesIO()


@dataclass(frozen=True)
class Upload:
    """A file of a request: a name fit to be shown, and its bytes."""

    name: str
    data: bytes


def sniff(data: bytes) -> str | None:
    """The format that the first bytes of a file declare, of those that are accepted; None for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return "bmp" if data[:2] == b"BM" else None


def shown_name(name: str | None) -> str:
    """Reduce the name that a client gave a file to its last part, without control characters; it opens nothing."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:MAX_NAME] or "image"


def read_uploads(request: Request, field: str, limits: Limits) -> list[Upload]:
    """Take the files of a multipart request, at least one.

    Raises:
        Refused: there are none, or too many.
    """
    files = request.files.getlist(field)
    if not files:
        raise Refused(400, "no_image", f"Expected a multipart form with an image in the field '{field}', got none.")
    if len(files) > limits.max_files:
        raise Refused(413, "too_many_files", f"Expected at most {limits.max_files} images, got {len(files)}.")
    return [Upload(shown_name(file.filename), file.stream.read()) for file in files]


def with_pixels(upload: Upload, limits: Limits, use: Callable[[np.ndarray], T]) -> T:
    """Decode an upload, ``(H, W, 3)`` uint8 RGB, and return what ``use`` makes of it before the pixels are let go.

    A decoded picture is many times its file, so only as many are held at a time as there are cores to decode them.

    Raises:
        Refused: it is no image of an accepted kind, damaged, too large, or there was no room in time.
    """
    if not upload.data:
        raise Refused(422, "unreadable", "The file is empty.")
    if sniff(upload.data) is None:
        raise Refused(415, "not_an_image", f"This is no {ACCEPTED} file.")
    if not _room.acquire(timeout=limits.max_seconds):
        raise Refused(503, "busy", "The server is busy. Please try again in a few seconds.", retry_after=2)
    try:
        return use(decode_image(upload.data, limits.max_pixels))
    except (UnreadableImage, MemoryError) as error:
        if str(error).startswith("too large"):
            limit = f"{limits.max_pixels / 1e6:g} megapixels"
            raise Refused(413, "too_many_pixels", f"The picture has more than {limit}.") from None
        raise Refused(422, "unreadable", "The image is damaged or incomplete.") from None
    finally:
        _room.release()
