"""HEIC, the format of many phones: the optional decoder pillow-heif, and the cost of decoding, read from the boxes.

A HEIC file is a list of items: coded pictures, and grids and overlays that are put together from other items. A file of
a few kilobytes can name the same large picture a thousand times, and its header shows only the size of the result.

Format: ISO/IEC 23008-12 (HEIF) in the boxes of ISO/IEC 14496-12.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from datasets.listing.storage import UnreadableImage

HEIC_SIGNATURE = re.compile(rb"....ftyp(?:hei[cfmsx]|hev[cmsx]|mif[12]|msf1)", re.DOTALL)
PASSES_PER_PIXEL = 4  # HEVC is slower to decode than a scan of a JPEG
MAX_META_BYTES = 1 << 20  # of the list of items; phones write a few kilobytes
MAX_DEPTH = 8  # of items made of items


def register_decoder() -> bool:
    """Let Pillow read HEIC; False if pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


def heif_passes(data: bytes, width: int, height: int) -> int:
    """How often a decoder goes over as many pixels as the picture has, all items that it needs taken together.

    Raises UnreadableImage.
    """
    try:
        pixels = _decoded_pixels(memoryview(data))
    except (struct.error, IndexError):
        raise UnreadableImage("corrupt HEIC data") from None
    return -(-PASSES_PER_PIXEL * pixels // max(1, width * height))


def _decoded_pixels(data: memoryview) -> int:
    """Pixels of the primary item and of all items it is made of, as often as each is decoded."""
    metas = [body for kind, body in read_boxes(data, has_trailer=True) if kind == b"meta"]
    if len(metas) != 1:  # decoders differ on which of several counts
        raise UnreadableImage("HEIC data without a still picture" if not metas else "corrupt HEIC data")
    if len(metas[0]) > MAX_META_BYTES:
        raise UnreadableImage(
            f"too costly: a list of items of {len(metas[0]):,} bytes, the limit is {MAX_META_BYTES:,}"
        )
    listed = list(read_boxes(metas[0][4:]))
    boxes = dict(listed)
    if not {b"pitm", b"iprp"} <= boxes.keys() or any(
        sum(kind == name for kind, _ in listed) > 1 for name in (b"pitm", b"iprp", b"iref")
    ):
        raise UnreadableImage("corrupt HEIC data")
    sizes = _item_sizes(boxes[b"iprp"])
    parts = _item_parts(boxes.get(b"iref", memoryview(bytes(4))))
    known: dict[int, int] = {}

    def cost(item: int, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise UnreadableImage("too costly: items within items")
        if item not in known:
            known[item] = sizes.get(item, 0) + sum(cost(part, depth + 1) for part in parts.get(item, ()))
        return known[item]

    primary = boxes[b"pitm"]
    return cost(struct.unpack_from(">I" if primary[0] else ">H", primary, 4)[0], 0)


def read_boxes(data: memoryview, has_trailer: bool = False) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of the boxes in a range of bytes.

    Raises UnreadableImage for a box that does not fit in it, unless bytes of another format may follow the boxes.
    """
    at = 0
    while at + 8 <= len(data):
        size, header = struct.unpack_from(">I", data, at)[0], 8
        kind = bytes(data[at + 4 : at + 8])
        if size == 1:
            size, header = struct.unpack_from(">Q", data, at + 8)[0], 16
        end = at + size if size else len(data)
        if (size and size < header) or end > len(data):
            if has_trailer and kind != b"meta":
                return
            raise UnreadableImage("corrupt HEIC data (a box of a wrong size)")
        yield kind, data[at + header : end]
        at = end


def _item_sizes(iprp: memoryview) -> dict[int, int]:
    """Pixels of each item, from its `ispe` property."""
    boxes = list(read_boxes(iprp))
    properties = [
        struct.unpack_from(">II", body, 4) if kind == b"ispe" else (0, 0)
        for name, content in boxes
        if name == b"ipco"
        for kind, body in read_boxes(content)
    ]
    sizes: dict[int, int] = {}
    for name, body in boxes:
        if name != b"ipma":
            continue
        wide_items, wide_numbers = body[0] > 0, body[3] & 1
        count, at = struct.unpack_from(">I", body, 4)[0], 8
        for _ in range(count):
            item = struct.unpack_from(">I" if wide_items else ">H", body, at)[0]
            at += 4 if wide_items else 2
            numbers = struct.unpack_from(f">{body[at]}{'H' if wide_numbers else 'B'}", body, at + 1)
            at += 1 + len(numbers) * (2 if wide_numbers else 1)
            for number in numbers:  # the highest bit marks a property that a reader must understand
                number &= 0x7FFF if wide_numbers else 0x7F
                width, height = properties[number - 1] if number else (0, 0)
                sizes[item] = max(sizes.get(item, 0), width * height)
    return sizes


def _item_parts(iref: memoryview) -> dict[int, list[int]]:
    """Items that each item is made of, with repetitions; those with its transparency too."""
    parts: dict[int, list[int]] = {}
    letter, size = ("I", 4) if iref[0] else ("H", 2)
    for kind, body in read_boxes(iref[4:]):
        item, count = struct.unpack_from(f">{letter}H", body)
        others = struct.unpack_from(f">{count}{letter}", body, size + 2)
        if kind == b"dimg":
            parts.setdefault(item, []).extend(others)
        elif kind == b"auxl":
            for other in others:
                parts.setdefault(other, []).append(item)
    return parts
