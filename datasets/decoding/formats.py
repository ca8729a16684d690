"""The structure of image files (headers, markers and chunks), and the cost of decoding that follows from it.

Some files of a few kilobytes take minutes to decode, so the cost is bounded before any pixel is decoded.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from PIL import Image

from datasets.decoding.colour import MAX_PROFILE_BYTES
from datasets.decoding.heif import heif_passes
from datasets.listing.storage import UnreadableImage

# Passes over all pixels that an image of the largest size may take; a smaller one may take more. Progressive JPEG files
# have 10 scans in colour and 18 in CMYK.
MAX_PASSES = 20
MAX_SEGMENTS = 100_000  # of a JPEG file
JPEG_2000_PASSES = 8  # in addition to one per quality layer: even a flat image is slow to decode

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 ... SOF15
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # one that ends entropy-coded data
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
_JPEG_2000_STYLE = re.compile(rb"\xff\x52\x00[\x0c-\x2d][\x00-\x07][\x00-\x04](..)", re.DOTALL)  # the layers


def check_cost(width: int, height: int, passes: int, max_pixels: int) -> None:
    """Raise UnreadableImage for more than ``max_pixels``, or for more work than MAX_PASSES passes over so many."""
    if width * height > max_pixels:
        raise UnreadableImage(f"too large: {width} x {height} pixels, the limit is {max_pixels:,}")
    limit = MAX_PASSES * max_pixels // max(1, width * height)
    if passes > limit:
        raise UnreadableImage(f"too costly: {passes} passes over {width} x {height} pixels, the limit is {limit}")


class JpegHeader(NamedTuple):
    """What the markers before the first scan of a JPEG file say; ``scan`` is the offset of that scan."""

    width: int
    height: int
    channels: int
    exif: bytes | None
    profile: bytes | None
    scan: int


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Read the markers up to the first scan. None for a header that needs Pillow. Raises UnreadableImage."""
    frame, exif, at = None, None, 2
    profile: dict[int, bytes] = {}  # the parts of the colour profile by their number
    for _ in range(MAX_SEGMENTS):
        if at + 4 > len(data):
            break
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            parts = b"".join(profile[number] for number in sorted(profile))
            return JpegHeader(*frame, exif, parts or None, at) if frame else None
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS and at + 10 <= len(data):
            height, width = (int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big"))
            if data[at + 4] != 8 or not height or not width:
                return None
            frame = (width, height, data[at + 9])
        elif marker == 0xE1 and exif is None and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 4 : at + 2 + length]
        elif marker == 0xE2 and length >= 16 and data[at + 4 : at + 16] == b"ICC_PROFILE\0":
            profile[data[at + 16]] = data[at + 18 : at + 2 + length]
        at += 2 + length
    raise UnreadableImage("truncated")


def count_scans(data: bytes, at: int) -> int:
    """Count the scans of a JPEG file from the marker at an offset on; the first image of several counts."""
    scans = 0
    for _ in range(MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, at)
        if not found or found[0] == b"\xff\xd9":
            return scans
        scans += found[0] == b"\xff\xda"
        at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
    raise UnreadableImage("corrupt JPEG data (too many segments)")


class PngChunks(NamedTuple):
    """The chunk types of a PNG file, the file without texts, and its colour profile."""

    kinds: set[bytes]
    plain: bytes
    profile: bytes | None


def png_chunks(data: bytes) -> PngChunks:
    """Read the chunks of a complete PNG. Texts are left out because libpng would inflate them without a limit.

    Checksums are verified because decoders disagree on errors. Raises UnreadableImage.
    """
    kinds: set[bytes] = set()
    profile = None
    kept, start = [], 0
    at, view = 8, memoryview(data)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            raise UnreadableImage("truncated")
        kind = data[at + 4 : at + 8]
        if not kinds and (kind != b"IHDR" or end - at != 21):
            raise UnreadableImage("corrupt PNG data")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise UnreadableImage("corrupt PNG data")
        if kind == b"iCCP" and kind not in kinds:
            profile = _inflate_profile(data[at + 8 : end])
        kinds.add(kind)
        if kind in _PNG_TEXTS:
            kept.append(view[start:at])
            start = end + 4
        if kind == b"IEND":
            return PngChunks(kinds, b"".join([*kept, view[start : end + 4]]) if kept else data, profile)
        at = end + 4
    raise UnreadableImage("truncated")


def _inflate_profile(chunk: bytes) -> bytes | None:
    """The profile in an iCCP chunk; None if it is damaged or larger than any profile in use."""
    _, _, packed = chunk.partition(b"\0")
    try:
        profile = zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return None
    return profile if 0 < len(profile) <= MAX_PROFILE_BYTES else None


def passes_of(image: Image.Image, data: bytes) -> int:
    """How often a decoder goes over the pixels: scans of JPEG data, quality layers of JPEG 2000, HEIF."""
    if image.format in ("JPEG", "MPO"):
        return count_scans(data, 2)
    if image.format == "TIFF" and image.info.get("compression") == "jpeg":
        return data.count(b"\xff\xda") if b"\xff\xc2" in data else 1  # only progressive scans are cheap to repeat
    if image.format == "JPEG2000":
        layers = (int.from_bytes(found, "big") for found in _JPEG_2000_STYLE.findall(data))
        return JPEG_2000_PASSES + max(layers, default=0)
    return heif_passes(data, *image.size) if image.format == "HEIF" else 1
