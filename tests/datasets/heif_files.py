"""HEIC files for tests: ordinary ones from pillow-heif, and hostile ones put together box by box."""

import io
import struct

from PIL import Image

from datasets.decoding.heif import register_decoder


def encode_heic(image: Image.Image, **options) -> bytes:
    """The bytes of a HEIC file; needs pillow-heif."""
    register_decoder()
    buffer = io.BytesIO()
    image.save(buffer, "HEIF", **options)
    return buffer.getvalue()


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full_box(kind: bytes, version: int, *parts: bytes) -> bytes:
    return box(kind, bytes([version, 0, 0, 0]), *parts)


def ispe(width: int, height: int) -> bytes:
    return full_box(b"ispe", 0, struct.pack(">II", width, height))


def grid(rows: int, columns: int, width: int, height: int) -> bytes:
    return bytes([0, 1, rows - 1, columns - 1]) + struct.pack(">II", width, height)


def coded_parts(data: bytes) -> tuple[bytes, bytes]:
    """The `hvcC` box and the coded bytes of a HEIC file with one item."""
    at, data_at = data.index(b"hvcC") - 4, data.index(b"mdat")
    box_end, data_end = (start + int.from_bytes(data[start : start + 4], "big") for start in (at, data_at - 4))
    return data[at:box_end], data[data_at + 4 : data_end]


def build_heif(
    items: dict[int, tuple[bytes, list[int], bytes]], parts: dict[int, list[int]], properties: list[bytes], primary: int
) -> bytes:
    """A HEIF file. ``items``: type, numbers of its properties, content; ``parts``: items that an item is made of."""

    def meta(offsets: dict[int, int]) -> bytes:
        infos = b"".join(
            full_box(b"infe", 2, struct.pack(">HH", item, 0), kind, b"\0") for item, (kind, _, _) in items.items()
        )
        places = b"".join(
            struct.pack(">HHHHII", item, 0, 0, 1, offsets.get(item, 0), len(content))
            for item, (_, _, content) in items.items()
        )
        uses = b"".join(
            struct.pack(">HB", item, len(numbers)) + bytes(numbers) for item, (_, numbers, _) in items.items()
        )
        references = [box(b"dimg", struct.pack(f">HH{len(to)}H", item, len(to), *to)) for item, to in parts.items()]
        count = struct.pack(">H", len(items))
        return full_box(
            b"meta",
            0,
            full_box(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, struct.pack(">H", primary)),
            full_box(b"iinf", 0, count, infos),
            full_box(b"iref", 0, *references),
            box(b"iprp", box(b"ipco", *properties), full_box(b"ipma", 0, struct.pack(">I", len(items)), uses)),
            full_box(b"iloc", 1, b"\x44\x00", count, places),
        )

    start = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    at, offsets = len(start) + len(meta({})) + 8, {}
    for item, (_, _, content) in items.items():
        offsets[item] = at
        at += len(content)
    return start + meta(offsets) + box(b"mdat", *(content for _, _, content in items.values()))
