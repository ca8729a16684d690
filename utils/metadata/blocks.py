"""The blocks of metadata in an image file: texts, EXIF, XMP, IPTC and C2PA, found without decoding a pixel.

Files are untrusted: every read is bounded, and damage ends the search silently.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from datasets.decoding.formats import MAX_SEGMENTS
from datasets.decoding.heif import read_boxes
from datasets.decoding.images import readable_formats
from datasets.listing.storage import UnreadableImage

MAX_BLOCK_BYTES = 1 << 18  # read of one block; what says where a picture comes from stands at its beginning
MAX_C2PA_BYTES = 8 << 20  # it holds thumbnails
MAX_BLOCKS = 50
TIFF_TAGS = {
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    0x013B: "Artist",
    0x8298: "Copyright",
}
_XMP_KEY = b"XML:com.adobe.xmp"
_JPEG_STARTS = {b"Exif\0\0": "exif", b"http://ns.adobe.com/xap/1.0/\0": "xmp", b"Photoshop 3.0\0": "iptc"}
_C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


class Block(NamedTuple):
    """A piece of metadata: its kind (text, exif, xmp, iptc or c2pa), where it was found, its name and content."""

    kind: str
    where: str
    name: str
    content: bytes


def read_blocks(data: bytes) -> list[Block]:
    """Read the blocks of metadata in the bytes of an image file, at most MAX_BLOCKS; never raises."""
    found: list[Block] = []
    if data[:3] == b"\xff\xd8\xff":
        reader = _jpeg_blocks(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        reader = _png_blocks(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        reader = _webp_blocks(data)
    else:
        reader = _other_blocks(data)
    try:
        for block in reader:
            found.append(block)
            if len(found) >= MAX_BLOCKS:
                break
    except Exception:  # a damaged file: Pillow raises many types
        pass
    return found


def _jpeg_blocks(data: bytes) -> Iterator[Block]:
    """Segments before the first scan; the parts of boxes in APP11 are joined."""
    at = 2
    boxes: dict[bytes, bytearray] = {}
    for _ in range(MAX_SEGMENTS):
        if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] == 0xDA:
            break
        marker, end = data[at + 1], at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        body, at = data[at + 4 : end], end
        if marker in (0xE1, 0xED):
            for start, kind in _JPEG_STARTS.items():
                if body.startswith(start):
                    yield Block(kind, f"JPEG {kind.upper()}", "", body[len(start) :])
        elif marker == 0xFE:
            yield Block("text", "JPEG", "comment", body)
        elif marker == 0xEB and body[:2] == b"JP":
            # JPEG XT: number of the box (2 bytes), of its part (4), header of the box (8, in each part), content.
            box = boxes.setdefault(body[2:4], bytearray(body[8:16]))
            if len(box) < MAX_C2PA_BYTES:
                box += body[16:]
    for box in boxes.values():
        if b"c2pa" in box[:64]:
            yield Block("c2pa", "JPEG APP11", "", bytes(box))


def _png_blocks(data: bytes) -> Iterator[Block]:
    at = 8
    for _ in range(MAX_SEGMENTS):
        if at + 12 > len(data):
            return
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        limit = MAX_C2PA_BYTES if kind == b"caBX" else MAX_BLOCK_BYTES
        body, at = data[at + 8 : at + 8 + min(length, limit)], at + 12 + length
        if kind == b"eXIf":
            yield Block("exif", "PNG EXIF", "", body)
        elif kind == b"caBX":
            yield Block("c2pa", "PNG caBX", "", body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, content = _png_text(kind, body)
            if key == _XMP_KEY:
                yield Block("xmp", "PNG XMP", "", content)
            else:
                yield Block("text", "PNG text", key.decode("latin-1"), content)


def _png_text(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Key and content of a text chunk; compressed ones are inflated up to MAX_BLOCK_BYTES."""
    key, _, content = body.partition(b"\0")
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed = content[:1] == b"\1"
        content = content[2:].split(b"\0", 2)[-1]  # after the language and the translated key
    elif is_packed:
        content = content[1:]
    if is_packed:
        try:
            content = zlib.decompressobj().decompress(content, MAX_BLOCK_BYTES)
        except zlib.error:
            content = b""
    return key, content


def _webp_blocks(data: bytes) -> Iterator[Block]:
    at = 12
    kinds = {b"EXIF": "exif", b"XMP ": "xmp", b"C2PA": "c2pa"}
    for _ in range(MAX_SEGMENTS):
        if at + 8 > len(data):
            return
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name in kinds:
            kind = kinds[name]
            yield Block(kind, f"WebP {kind.upper()}", "", data[at + 8 : at + 8 + min(length, MAX_C2PA_BYTES)])
        at += 8 + length + length % 2


def _other_blocks(data: bytes) -> Iterator[Block]:
    """HEIC, AVIF, TIFF and GIF: what Pillow finds in the header, and the C2PA box."""
    if data[4:8] == b"ftyp":
        yield from _box_blocks(data)
    with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
        name = "HEIC" if image.format == "HEIF" else image.format
        if image.format == "TIFF":
            tags, exif = image.getexif(), Image.Exif()
            for number in set(TIFF_TAGS) & set(tags):
                exif[number] = tags[number]
            yield Block("exif", "TIFF tags", "", exif.tobytes())
        for key, kind in (("exif", "exif"), ("xmp", "xmp")):
            if isinstance(image.info.get(key), bytes):
                yield Block(kind, f"{name} {kind.upper()}", "", image.info[key])
        if isinstance(image.info.get("comment"), bytes):
            yield Block("text", str(name), "comment", image.info["comment"])


def _box_blocks(data: bytes) -> Iterator[Block]:
    try:
        for kind, body in read_boxes(memoryview(data), has_trailer=True):
            if kind == b"uuid" and bytes(body[:16]) == _C2PA_UUID:
                # Version and flags, the purpose of the box, and a place that only videos use.
                start = re.compile(rb"[^\0]{0,32}\0.{8}", re.DOTALL).match(body, 20)
                yield Block("c2pa", "C2PA box", "", bytes(body[start.end() if start else 20 :][:MAX_C2PA_BYTES]))
    except UnreadableImage:
        return
