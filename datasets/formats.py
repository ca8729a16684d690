"""The structure of image files, read from their bytes: headers, markers and chunks, and what decoding will cost.

Some files of a few kilobytes take minutes to decode, so the cost is bounded before any pixel is decoded.
"""

from __future__ import annotations

import re
import zlib

from PIL import Image

from datasets.storage import UnreadableImage

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


def jpeg_header(data: bytes) -> tuple[int, int, int, bytes | None, int] | None:
    """Read the markers up to the first scan: width, height, channels, EXIF block, offset of the scan.

    None for a header that needs Pillow. Raises UnreadableImage.
    """
    frame, exif, at = None, None, 2
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
            return (*frame, exif, at) if frame else None
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS and at + 10 <= len(data):
            height, width = (int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big"))
            if data[at + 4] != 8 or not height or not width:
                return None
            frame = (width, height, data[at + 9])
        elif marker == 0xE1 and exif is None and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 4 : at + 2 + length]
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


def png_chunks(data: bytes) -> tuple[set[bytes], bytes]:
    """Return the chunk types of a complete PNG, and the file without texts, which libpng would inflate.

    Checksums are verified because decoders disagree on errors.
    """
    chunks: set[bytes] = set()
    kept, start = [], 0
    at, view = 8, memoryview(data)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            raise UnreadableImage("truncated")
        kind = data[at + 4 : at + 8]
        if not chunks and (kind != b"IHDR" or end - at != 21):
            raise UnreadableImage("corrupt PNG data")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise UnreadableImage("corrupt PNG data")
        chunks.add(kind)
        if kind in _PNG_TEXTS:
            kept.append(view[start:at])
            start = end + 4
        if kind == b"IEND":
            return chunks, b"".join([*kept, view[start : end + 4]]) if kept else data
        at = end + 4
    raise UnreadableImage("truncated")


def passes_of(image: Image.Image, data: bytes) -> int:
    """How often a decoder goes over the pixels: scans of JPEG data, quality layers of JPEG 2000."""
    if image.format in ("JPEG", "MPO"):
        return count_scans(data, 2)
    if image.format == "TIFF" and image.info.get("compression") == "jpeg":
        return data.count(b"\xff\xda") if b"\xff\xc2" in data else 1  # only progressive scans are cheap to repeat
    if image.format == "JPEG2000":
        layers = (int.from_bytes(found, "big") for found in _JPEG_2000_STYLE.findall(data))
        return JPEG_2000_PASSES + max(layers, default=0)
    return 1
