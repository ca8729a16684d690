"""Files to load a server with: pictures in the formats of phones and the web, and hostile pictures and videos.

Hostile files are damaged, or small and expensive to decode.
"""

from __future__ import annotations

import io
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.decoding.heif import register_decoder
from datasets.decoding.images import read_image, readable_formats

SIDE = 64  # px, of the pictures that are made hostile
FORMATS = ("JPEG", "HEIF", "PNG", "WEBP", "AVIF")  # Pillow's names
HEADERS = (
    *(b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!doctype html>", b"PK\x03\x04", b"%PDF-1.7", b"\0" * 5000),
    *(b"\xff\xd8\xff", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"BM" + b"\xff" * 60),
    *(b"\0\0\0 ftypavif" + b"\xff" * 40, b"\0\0\0 ftypheic" + b"\xff" * 40, b"MZ\x90\0"),
    *(b"\0\0\0 ftypisom" + b"\xff" * 40, b"\x1a\x45\xdf\xa3" + b"\xff" * 40, b"RIFF\xff\xff\xff\x7fAVI LIST"),
)


def encoded(image: np.ndarray, kind: str) -> bytes:
    """The bytes of ``(H, W, 3)`` uint8 RGB as a file of one of Pillow's formats."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def in_formats(paths: Sequence[str]) -> dict[str, bytes]:
    """Images encoded in turn in those of the FORMATS that can be written here, by new file names."""
    kinds = [kind for kind in FORMATS if kind in readable_formats()]
    chosen = [kinds[number % len(kinds)] for number in range(len(paths))]
    return {
        f"{number}.{kind.lower()}": encoded(read_image(path), kind)
        for number, (path, kind) in enumerate(zip(paths, chosen, strict=True))
    }


def clip(n_frames: int = 8, suffix: str = ".mp4") -> bytes:
    """The bytes of a video of noise."""
    codec = cv2.VideoWriter.fourcc(*("mp4v" if suffix == ".mp4" else "MJPG"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"clip{suffix}"
        writer = cv2.VideoWriter(str(file), codec, 4, (2 * SIDE, SIDE))
        for number in range(n_frames):
            writer.write(np.random.default_rng(number).integers(0, 255, (SIDE, 2 * SIDE, 3), np.uint8))
        writer.release()
        return file.read_bytes()


def hostile_pictures() -> dict[str, bytes]:
    """Hostile pictures by what is wrong with them; without those of HEIC where it cannot be written."""
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    jpeg, png = encoded(noise, "JPEG"), encoded(noise, "PNG")
    gif = encoded(noise[:16, :16], "GIF")
    frame = gif.index(b",", 13 + 3 * 256)  # behind the header and its palette
    profile = struct.pack(">I", 500) + b"\xff" * 496
    files = {
        "GIF of 10,000 frames": gif[:frame] + 10_000 * gif[frame:-1] + b";",
        "GIF of 60,000 px": gif[:6] + struct.pack("<HH", 60_000, 60_000) + gif[10:],
        "JPEG with a broken profile": _with_segments(jpeg, 0xE2, b"ICC_PROFILE\0\1\1" + profile),
        "PNG with a broken profile": _with_chunk(png, b"iCCP", b"x\0\0" + zlib.compress(profile)),
        "PNG with a profile that is a bomb": _with_chunk(png, b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000), 9)),
        "PNG with a text that is a bomb": _with_chunk(png, b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000), 9)),
        "JPEG with 5 MB of EXIF": _with_segments(jpeg, 0xE1, *80 * [b"Exif\0\0" + b"\xff" * 65_000]),
        "PNG with 5 MB of EXIF": _with_chunk(png, b"eXIf", b"MM\0*" + b"\xff" * 5_000_000),
        "JPEG with a damaged manifest": _with_segments(
            jpeg, 0xEB, b"JP\0\1\0\0\0\1" + struct.pack(">I", 4000) + b"jumb" + b"\xff" * 2000
        ),
        "PNG with a damaged manifest": _with_chunk(
            png, b"caBX", (b"\0\0\0\xf0jumb\0\0\0\x20jumd" + b"\x9f" * 40) * 200
        ),
        "PNG with a manifest of nested lists": _with_chunk(
            png, b"caBX", _box(b"jumb", _box(b"cbor", b"\x81" * 60_000))
        ),
    }
    if register_decoder():
        heic = encoded(noise, "HEIF")
        size, meta = heic.index(b"ispe") + 8, heic.index(b"meta") - 4
        files |= {
            "HEIC with a box that is too large": heic[:meta] + struct.pack(">I", 2**31) + heic[meta + 4 :],
            "HEIC with a box that is too small": heic[:meta] + struct.pack(">I", 3) + heic[meta + 4 :],
            "HEIC of 60,000 px": heic[:size] + struct.pack(">II", 60_000, 60_000) + heic[size + 8 :],
            "HEIC, cut": heic[: len(heic) // 2],
        }
    return files


def hostile_videos() -> dict[str, bytes]:
    """Hostile videos by what is wrong with them."""
    mp4, avi = clip(), clip(suffix=".avi")
    entry, times, sizes = (mp4.index(name) for name in (b"mp4v", b"stts", b"stsz"))
    many = struct.pack(">II", 5_000_000, 1)
    head = avi.index(b"avih")
    return {
        "of one frame": clip(1),
        "cut": mp4[: len(mp4) // 2],
        "cut AVI": avi[: len(avi) // 2],
        "without a video stream": mp4.replace(b"vide", b"soun"),
        "without an index": mp4.replace(b"moov", b"free"),
        "of 65,000 px": mp4[: entry + 28] + struct.pack(">HH", 65_000, 65_000) + mp4[entry + 32 :],
        "AVI of 16,000 px": _with_frames_of(avi, 16_000),
        "of millions of frames": mp4[: times + 12] + many + mp4[times + 20 :],
        "of millions of sizes": mp4[: sizes + 12] + struct.pack(">I", 5_000_000) + mp4[sizes + 16 :],
        "AVI of millions of frames": avi[: head + 24] + struct.pack("<I", 2**31) + avi[head + 28 :],
        "with a box that is too small": mp4.replace(
            struct.pack(">I", _length_of(mp4, b"moov")) + b"moov", b"\0\0\0\3moov"
        ),
    }


def mutations(files: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Malformed uploads: real files cut, overwritten, spliced or with another header, and headers alone."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(files[int(rng.integers(len(files)))])
        kind = number % 5
        if kind == 0:
            data = data[: int(rng.integers(1, len(data)))]
        elif kind == 1:
            for place in rng.integers(0, len(data), int(rng.integers(1, 50))):
                data[place] = int(rng.integers(256))
        elif kind == 2:
            start = int(rng.integers(len(data)))
            data[start : start + 64] = rng.integers(0, 256, int(rng.integers(128)), np.uint8).tobytes()
        elif kind == 3:
            data[: int(rng.integers(2, 200))] = HEADERS[int(rng.integers(len(HEADERS)))]
        else:
            data = bytearray(HEADERS[int(rng.integers(len(HEADERS)))] + bytes(data[: int(rng.integers(64))]))
        yield bytes(data)


def _with_segments(jpeg: bytes, marker: int, *bodies: bytes) -> bytes:
    segments = (b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body for body in bodies)
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def _with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def _with_frames_of(avi: bytes, side: int) -> bytes:
    """An AVI file of JPEG frames that are said to be so large, by its header and by the frames."""
    at = avi.index(b"strf") + 12
    avi = avi[:at] + struct.pack("<II", side, side) + avi[at + 8 :]
    start = b"\xff\xc0\0\x11\x08"  # of the header of a frame
    return re.sub(re.escape(start) + b"....", start + struct.pack(">HH", side, side), avi, flags=re.DOTALL)


def _length_of(data: bytes, kind: bytes) -> int:
    """The size of a box as it stands before its type."""
    at = data.index(kind)
    return int.from_bytes(data[at - 4 : at], "big")
