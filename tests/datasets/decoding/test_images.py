"""Decoding: every format agrees with Pillow."""

import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from datasets.decoding.images import IMAGE_SUFFIXES, UnreadableImage, decode_image, read_image
from tests.datasets.encoded import FORMATS, HEIGHT, WIDTH, encode, make_photo, with_orientation


def reference(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_agrees_with_pillow(name, tmp_path):
    data = FORMATS[name]()
    # The name is wrong on purpose: the content decides.
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    image = read_image(path)
    expected = reference(data)
    assert image.dtype == np.uint8 and image.flags.writeable and image.flags.c_contiguous
    assert image.shape == expected.shape
    # JPEG decoders may round differently; everything lossless is exact.
    tolerance = 2 if name.startswith("jpeg") else 0
    assert np.abs(image.astype(int) - expected).max() <= tolerance


def test_avif_is_read_where_pillow_can():
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encode(make_photo(), "AVIF")
    assert np.array_equal(decode_image(data), reference(data))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_exactly_once(file_format, orientation):
    data = encode(make_photo(), file_format, exif=with_orientation(orientation))
    expected = reference(data)
    image = decode_image(data)
    assert image.shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
    assert np.abs(image.astype(int) - expected).max() <= (2 if file_format == "JPEG" else 0)


def test_damaged_exif_does_not_cost_the_image():
    data = encode(make_photo(), "JPEG", exif=with_orientation(6))
    damaged = data.replace(b"MM\x00*", b"XX\xff\xff").replace(b"II*\x00", b"XX\xff\xff")
    assert damaged != data
    assert decode_image(damaged).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png_is_scaled_not_clipped(channels):
    samples = np.random.default_rng(1).integers(0, 65536, (9, 11, channels), dtype=np.uint16)
    image = decode_image(cv2.imencode(".png", samples)[1].tobytes())
    colours = samples[..., 2::-1].astype(float) if channels > 1 else np.repeat(samples, 3, axis=2).astype(float)
    if channels == 4:
        alpha = samples[..., 3:] / 65535
        colours = colours * alpha + 65535 * (1 - alpha)
    assert np.abs(image - colours / 257).max() <= 0.51


def test_16_bit_tiff_is_scaled_not_clipped():
    samples = np.array([[0, 257 * 7, 257 * 200, 65535]], dtype=np.uint16)
    image = decode_image(encode(Image.fromarray(samples), "TIFF"))
    assert image[0, :, 0].tolist() == [0, 7, 200, 255]


def test_transparent_pixels_are_white():
    assert (decode_image(encode(Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG")) == 255).all()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_animation_gives_the_first_frame(file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    image = decode_image(data)
    assert image.shape == (8, 8, 3) and (image == [255, 0, 0]).all()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_one_pixel_is_an_image(file_format):
    assert decode_image(encode(Image.new("RGB", (1, 1), "white"), file_format)).shape == (1, 1, 3)


def test_several_pictures_in_a_file_give_the_first():
    """A phone's MPO holds a second view or a gain map, its motion photo a video after the JPEG."""
    first, second = make_photo(), make_photo().rotate(180)
    multi_picture = encode(first, "MPO", save_all=True, append_images=[second])
    motion = encode(first, "JPEG") + b"\0\0\0\x18ftypmp42" + bytes(5000) + b"\xff\xd8\xff\xd9moov"
    for data in (multi_picture, motion):
        assert np.array_equal(decode_image(data), decode_image(encode(first, "JPEG")))
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(encode(first, "JPEG")[:-9] + motion[-5100:].replace(b"\xff\xd9", b"\0\0"))


def test_suffixes_are_lower_case_with_dot():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"} <= set(IMAGE_SUFFIXES)
    assert all(os.path.splitext(f"x{suffix}")[1] == suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)
