"""Uploads of a request, checked by their bytes before anything is decoded.

The type is read from the content, never from the name or the declared media type. Nothing is written to disk: uploads
stay in memory, bounded by the size of the request.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO

from flask import Request

from datasets.decoding.containers import looks_like_video
from datasets.decoding.heif import HEIC_SIGNATURE
from utils.serving.settings import Refused

ACCEPTED = "JPEG, PNG, WebP, AVIF, HEIC, GIF or BMP"
MAX_NAME = 100  # characters of a file name in an answer


class MemoryRequest(Request):
    """A Flask request that keeps uploads in memory; Werkzeug would write those above 500 kB to a temporary file."""

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
    """A file of a request, picture or video: a name that is safe to show, and its bytes."""

    name: str
    data: bytes

    def check(self) -> None:
        """Raise Refused if the file is empty or not an accepted image."""
        if not self.data:
            raise Refused(422, "unreadable", "The file is empty.")
        if sniff(self.data) is None:
            raise Refused(415, "not_an_image", f"This is not a {ACCEPTED} file.")

    def check_video(self) -> None:
        """Raise Refused if the file is empty or not a video."""
        if not self.data:
            raise Refused(422, "unreadable", "The file is empty.")
        if not looks_like_video(self.data[:400]):
            raise Refused(415, "not_a_video", "This is not a video file.")


def sniff(data: bytes) -> str | None:
    """Accepted format that the first bytes of a file declare, None for anything else."""
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
    if HEIC_SIGNATURE.match(data):
        return "heic"
    return "bmp" if data[:2] == b"BM" else None


def shown_name(name: str | None) -> str:
    """Last part of a client's file name without control characters; for display only."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:MAX_NAME] or "image"


def read_uploads(request: Request, field: str, max_files: int) -> list[Upload]:
    """Take the files of a multipart request, at least one.

    Raises:
        Refused: there are none or too many.
    """
    files = request.files.getlist(field)
    if not files:
        raise Refused(400, "no_file", f"Expected a multipart form with a file in the field '{field}', got none.")
    if len(files) > max_files:
        raise Refused(
            413,
            "too_many_files",
            f"Expected at most {max_files} {'files' if max_files > 1 else 'file'}, got {len(files)}.",
        )
    return [Upload(shown_name(file.filename), file.stream.read()) for file in files]
