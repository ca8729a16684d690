"""Containers of videos, by their first bytes: which files are videos, and how long they must be."""

from __future__ import annotations

import io
import os
import re
from typing import IO

from datasets.listing.storage import looks_like_image

VIDEO_SUFFIXES = tuple(".mp4 .m4v .mov .3gp .avi .mkv .webm .mpg .mpeg .m2ts .mts .wmv .flv .ogv".split())
MAX_BOXES = 100_000  # of an MP4 file

_SIGNATURE = re.compile(
    rb"....(?:ftyp|moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|\0\0\x01[\xb3\xba]|OggS"
    rb"|\x30\x26\xb2\x75\x8e\x66\xcf\x11|G.{187}G.{187}G",  # Windows Media; MPEG transport stream
    re.DOTALL,
)


def looks_like_video(head: bytes) -> bool:
    """Whether the first bytes of a file, 400 or more, are those of a video; sound in such a container counts too."""
    return _SIGNATURE.match(head) is not None and not looks_like_image(io.BytesIO(head))


def is_video_file(path: str) -> bool:
    """Whether a file is a video by its suffix or its first bytes."""
    return path.lower().endswith(VIDEO_SUFFIXES) or is_video(path)


def is_video(path: str) -> bool:
    """Whether a file starts like a video, whatever its name."""
    if not os.path.isfile(path):  # to open a pipe would block
        return False
    try:
        with open(path, "rb") as file:
            return looks_like_video(file.read(400))
    except OSError:
        return False


def is_truncated(file: IO[bytes]) -> bool:
    """Whether a file is shorter than its headers say; some containers do not state a size."""
    size = file.seek(0, os.SEEK_END)
    return _stated_size(file, size) > size


def _stated_size(file: IO[bytes], size: int) -> int:
    """The size in bytes that a file must have according to its headers; 0 if they do not state one."""
    file.seek(0)
    head = file.read(64)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] == b"\x1a\x45\xdf\xa3":  # Matroska and WebM: a header, then a segment with everything else
        header, start = _matroska_size(head, 4)
        segment, start = _matroska_size(head, start + header + 4)
        return start + segment
    return _end_of_boxes(file, size) if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") else 0


def _matroska_size(data: bytes, at: int) -> tuple[int, int]:
    """The size of an element, a number of one to eight bytes (0: unknown), and the offset behind it."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    is_known = first > 0 and value != (1 << 7 * length) - 1
    return (value if is_known else 0), at + length


def _end_of_boxes(file: IO[bytes], size: int) -> int:
    """Where the last box of an MP4 or QuickTime file ends; 0 if it goes to the end of the file."""
    at = 0
    for _ in range(MAX_BOXES):
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or length < 8:
            return 0
        at += length
        if at >= size:
            return at
    return 0
