"""Decoding of image files into RGB arrays, strict about broken files.

OpenCV decodes ordinary JPEG and PNG files (about twice as fast as Pillow, same pixels), Pillow all others.
The format is recognised by content, never by file name. For every decoded image:

- The EXIF orientation is applied exactly once.
- Transparent pixels are composited over white, as a browser shows them.
- 16-bit samples are scaled to 8 bits (divided by 257), not clipped.
- The first frame of an animation or a multi-page file is used.
- Colours are converted from the embedded profile to sRGB; without a profile, or in sRGB, they stay unchanged.
- HEIC needs the optional package pillow-heif.
- The cost of decoding is bounded before any pixel is decoded: a file of a few kilobytes may otherwise take minutes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.decoding.colour import array_to_srgb, to_srgb
from datasets.decoding.containers import looks_like_video
from datasets.decoding.formats import check_cost, count_scans, jpeg_header, passes_of, png_chunks
from datasets.decoding.heif import HEIC_SIGNATURE, register_decoder
from datasets.listing.records import Record
from datasets.listing.storage import IMAGE_SUFFIXES, UnreadableImage, looks_like_image, read_bytes

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "UnreadableImage",
    "check_shape",
    "decode_image",
    "read_image",
    "read_record",
    "read_size",
    "readable_formats",
]

warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata, without the name of the file
MAX_PIXELS = 64_000_000
MIN_SIDE, MAX_RATIO = 16, 20  # px and long side : short side; beyond them an image gets no verdict

# Only formats that hold plain pixels: Pillow would hand EPS to an external interpreter.
_PIL_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "HEIF")
_TURNS = {  # by the EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def read_record(record: Record) -> np.ndarray:
    """Read the pixels of a record as ``(H, W, 3)`` uint8 RGB, from its cache if it has one.

    Raises UnreadableImage, also for an image that is too small or narrow for a verdict (see :func:`check_shape`).
    """
    return check_shape(record.pixels.read(record.path) if record.pixels else read_image(record.path))


def check_shape(image: np.ndarray) -> np.ndarray:
    """Return an image ``(H, W, 3)`` unless it is too small or too narrow for any verdict. Raises UnreadableImage."""
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise UnreadableImage(f"too small for a verdict: {width} x {height} px, each side needs {MIN_SIDE}")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise UnreadableImage(f"too narrow for a verdict: {width} x {height} px, more than {MAX_RATIO} : 1")
    return image


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file, or an image in a shard, as ``(H, W, 3)`` uint8 RGB.

    Raises UnreadableImage when the file is missing, unreadable, empty, not an image, truncated or corrupt, or has
    more than ``max_pixels`` pixels (checked in the header, before any pixel is decoded).
    """
    return decode_image(read_bytes(path), max_pixels)


def read_size(path: str) -> tuple[int, int] | None:
    """Width and height of an image in px from its header; None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=readable_formats()) as image:
            return image.size
    except Exception:  # Pillow raises many types on damaged bytes; the record is reported when it is scored
        return None


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the bytes of an image file into an RGB array of shape (H, W, 3), uint8.

    A JPEG whose bytes are damaged in the middle decodes with garbled blocks, as in every viewer: only a missing end
    can be detected reliably.

    Raises UnreadableImage with a short reason.
    """
    if not data:
        raise UnreadableImage("empty file")
    image = None
    with contextlib.suppress(cv2.error):  # Pillow finds the reason
        if data[:3] == b"\xff\xd8\xff":
            image = _decode_jpeg(data, max_pixels)
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            image = _decode_png(data, max_pixels)
    return _decode_with_pillow(data, max_pixels) if image is None else image


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Decode a grey or three-channel JPEG; None for files that need Pillow (CMYK, unusual headers)."""
    header = jpeg_header(data)
    if header is None:
        return None
    check_cost(header.width, header.height, count_scans(data, header.scan), max_pixels)
    # Without an end marker some decoders silently fill the rest with grey. The search starts at the scan because a
    # thumbnail in the EXIF block ends with a marker as well.
    if data.find(b"\xff\xd9", header.scan) < 0:
        raise UnreadableImage("truncated")
    if header.channels not in (1, 3):
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        return None
    image = array_to_srgb(image, header.profile, header.channels == 1)
    return image if header.exif is None else _apply_orientation(image, header.exif)


def _apply_orientation(image: np.ndarray, exif_block: bytes) -> np.ndarray:
    try:
        exif = Image.Exif()
        exif.load(exif_block)
        orientation = exif.get(0x0112, 1)
    except Exception:  # Pillow raises many types on a damaged block; the pixels are still good
        return image
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _decode_png(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Decode an opaque 8-bit or a 16-bit PNG; None for files that need Pillow (palette alpha, EXIF, animation)."""
    kinds, plain, profile = png_chunks(data)
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    depth, colour_type = data[24], data[25]
    check_cost(width, height, 1, max_pixels)
    if kinds & {b"tRNS", b"eXIf", b"acTL"} or colour_type not in _PNG_CHANNELS:
        return None
    encoded = np.frombuffer(plain, np.uint8)
    if depth == 16:
        image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        image = None if image is None or image.dtype != np.uint16 else _from_16_bit(image)
    elif colour_type in (4, 6):
        return None
    else:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else array_to_srgb(image, profile, colour_type in (0, 4))


def _from_16_bit(image: np.ndarray) -> np.ndarray:
    """Convert grey, BGR or BGRA of 16 bits per sample to 8-bit RGB, transparent pixels over white."""
    result = np.empty((*image.shape[:2], 3), np.uint8)
    for row, samples in enumerate(image):  # row by row: as floats a large image would take gigabytes
        values = samples.astype(np.float32)
        if image.ndim == 3:
            colours = values[:, 2::-1]
            if image.shape[2] == 4:
                alpha = values[:, 3:] / 65535.0
                colours = colours * alpha + 65535.0 * (1.0 - alpha)
            values = colours
        result[row] = np.rint(values / 257.0).reshape(len(samples), -1)
    return result


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that this installation reads."""
    Image.init()
    register_decoder()
    return tuple(name for name in _PIL_FORMATS if name in Image.OPEN)  # an older Pillow has no AVIF


def _decode_with_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
            check_cost(*image.size, passes_of(image, data), max_pixels)
            image.load()
            return _rgb_from_pillow(image)
    except (UnreadableImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage(f"too large: the limit is {max_pixels:,} pixels") from None
    except UnidentifiedImageError:
        raise UnreadableImage(_why_unidentified(data)) from None
    except Exception as error:  # on damaged bytes Pillow's plugins raise nearly every built-in type
        text = str(error).lower()
        reason = "truncated" if "truncat" in text else f"corrupt image data ({text[:80] or type(error).__name__})"
        raise UnreadableImage(reason) from None


def _why_unidentified(data: bytes) -> str:
    is_heic = HEIC_SIGNATURE.match(data) is not None
    if is_heic and "HEIF" not in readable_formats():
        return "HEIC needs the package pillow-heif; install it, or convert the file to JPEG or PNG"
    if looks_like_image(io.BytesIO(data)):
        return "truncated, corrupt or of an unsupported kind"
    return "a video, not an image" if looks_like_video(data[:400]) else "not an image"


def _upright(image: Image.Image) -> Image.Image:
    """As ``ImageOps.exif_transpose``, which would also write the EXIF block anew, in memory of ten times its size."""
    turn = None
    with contextlib.suppress(Exception):  # a damaged EXIF block; the pixels are still good
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    return image if turn is None else image.transpose(turn)


def _rgb_from_pillow(image: Image.Image) -> np.ndarray:
    upright = _upright(image)
    if upright.mode.startswith("I"):
        values = np.asarray(upright)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage("32-bit samples have no defined range; convert it to 8 or 16 bits")
        return array_to_srgb(_from_16_bit(values), image.info.get("icc_profile"), True)
    if upright.mode == "F":
        raise UnreadableImage("float samples have no defined range; convert it to 8 or 16 bits")
    profile = image.info.get("icc_profile")
    if upright.has_transparency_data:
        rgba = to_srgb(upright.convert("RGBA"), profile)
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    if upright.mode == "CMYK":
        upright = to_srgb(upright, profile)
        profile = None
    # A copy: the buffer that Pillow shares is read-only.
    return array_to_srgb(np.array(upright.convert("RGB")), profile, upright.mode in ("1", "L"))
