"""A photograph in every format that is read."""

import io

import cv2
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 36


def make_photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def translucent_photo() -> Image.Image:
    photo = make_photo().convert("RGBA")
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    return photo


def palette_with_transparency() -> bytes:
    return encode(make_photo().quantize(16), "PNG", transparency=0)


FORMATS = {
    "jpeg": lambda: encode(make_photo(), "JPEG"),
    "jpeg_444": lambda: encode(make_photo(), "JPEG", subsampling=0, quality=95),
    "jpeg_odd_size": lambda: encode(make_photo(37, 23), "JPEG"),
    "jpeg_progressive": lambda: encode(make_photo(), "JPEG", progressive=True),
    "jpeg_restart_markers": lambda: encode(make_photo(), "JPEG", restart_marker_blocks=1),
    "jpeg_grey": lambda: encode(make_photo().convert("L"), "JPEG"),
    "jpeg_cmyk": lambda: encode(make_photo().convert("CMYK"), "JPEG"),
    "png": lambda: encode(make_photo(), "PNG"),
    "png_grey": lambda: encode(make_photo().convert("L"), "PNG"),
    "png_1_bit": lambda: encode(make_photo().convert("1"), "PNG"),
    "png_palette": lambda: encode(make_photo().quantize(64), "PNG"),
    "png_palette_4_bit": lambda: encode(make_photo().quantize(16), "PNG", bits=4),
    "png_palette_transparent": palette_with_transparency,
    "png_alpha": lambda: encode(translucent_photo(), "PNG"),
    "png_grey_alpha": lambda: encode(translucent_photo().convert("LA"), "PNG"),
    "png_colour_key": lambda: encode(make_photo(), "PNG", transparency=make_photo().getpixel((3, 3))),
    "gif": lambda: encode(make_photo().quantize(32), "GIF"),
    "bmp": lambda: encode(make_photo(), "BMP"),
    "tiff": lambda: encode(make_photo(), "TIFF"),
    "tiff_lzw": lambda: encode(make_photo(), "TIFF", compression="tiff_lzw"),
    "tiff_cmyk": lambda: encode(make_photo().convert("CMYK"), "TIFF"),
    "webp": lambda: encode(make_photo(), "WEBP"),
    "webp_lossless_alpha": lambda: encode(translucent_photo(), "WEBP", lossless=True),
    "jpeg_2000": lambda: encode(make_photo(), "JPEG2000"),
    "ppm": lambda: encode(make_photo(), "PPM"),
}
