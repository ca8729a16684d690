"""Broken and hostile files: each is refused with a reason, before it costs much time or memory."""

import os
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.decoding.images import UnreadableImage, decode_image, read_image
from datasets.listing import storage
from tests.datasets.encoded import FORMATS, HEIGHT, WIDTH, encode, make_photo, with_orientation


def patched_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def patched_png_size(data: bytes, width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


TRUNCATABLE = ["jpeg", "jpeg_progressive", "jpeg_cmyk", "png", "png_alpha", "gif", "bmp", "tiff", "tiff_lzw", "webp"]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("name", TRUNCATABLE)
def test_truncated_files_are_refused(name, share):
    data = FORMATS[name]()
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data[: int(len(data) * share)])
    assert len(str(caught.value)) < 130 and "\n" not in str(caught.value)


def test_truncated_jpeg_with_a_whole_thumbnail_is_refused(monkeypatch):
    data = encode(make_photo(), "JPEG")
    thumbnail = b"Exif\0\0" + encode(make_photo(8, 8), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + segment + data[2:]
    assert decode_image(whole).shape == (HEIGHT, WIDTH, 3)
    # OpenCV 4 fills the missing part with grey and reports nothing.
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(whole[:-20])


def test_jpeg_with_zeros_for_its_second_half_is_refused():
    data = encode(make_photo(256, 256), "JPEG")
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data[: len(data) // 2] + bytes(len(data) // 2))


def test_bytes_after_the_end_do_no_harm():
    for name in ("jpeg", "png"):
        data = FORMATS[name]()
        assert np.array_equal(decode_image(data + b"trailing" * 9), decode_image(data))


def test_flipped_bit_in_png_is_refused():
    data = bytearray(encode(make_photo(), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(UnreadableImage, match="corrupt"):
        decode_image(bytes(data))


NO_IMAGES = [
    (b"", "empty file"),
    (b"<html>404 not found</html>", "not an image"),
    (
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><rect width='9' height='9'/></svg>",
        "not an image",
    ),
    (b"MZ\x90\0" + bytes(90), "not an image"),
    (b"\x7fELF\x02\x01\x01" + bytes(90), "not an image"),
    (b"\xff\xd8\xff\xe0", "truncated"),
    (b"GIF89a", "truncated, corrupt or of an unsupported kind"),
]


@pytest.mark.parametrize(("data", "reason"), NO_IMAGES)
def test_reasons_are_told(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(data)


def test_postscript_is_never_interpreted():
    data = encode(make_photo(), "EPS")
    with pytest.raises(UnreadableImage, match="not an image"):
        decode_image(data)


BOMBS = {
    "JPEG": lambda: patched_jpeg_size(encode(make_photo(), "JPEG"), 20_000, 20_000),
    "PNG": lambda: patched_png_size(encode(make_photo(), "PNG"), 20_000, 20_000),
    "GIF": lambda: (lambda d: d[:6] + struct.pack("<HH", 20_000, 20_000) + d[10:])(FORMATS["gif"]()),
    "BMP": lambda: (lambda d: d[:18] + struct.pack("<ii", 20_000, 20_000) + d[26:])(FORMATS["bmp"]()),
}


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bomb_is_refused_before_decoding(name, monkeypatch):
    data = BOMBS[name]()

    def must_not_decode(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(cv2, "imdecode", must_not_decode)
    monkeypatch.setattr(Image.Image, "load", must_not_decode)
    with pytest.raises(UnreadableImage, match="too large"):
        decode_image(data)


@pytest.mark.parametrize("name", ["jpeg", "png", "png_alpha", "webp", "tiff"])
def test_limit_counts_pixels(name):
    data = FORMATS[name]()
    assert decode_image(data, max_pixels=WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(UnreadableImage, match=f"too large: {WIDTH} x {HEIGHT}"):
        decode_image(data, max_pixels=WIDTH * HEIGHT - 1)


def test_float_samples_are_refused():
    with pytest.raises(UnreadableImage, match="no defined range"):
        decode_image(encode(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(UnreadableImage, match="file not found"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(UnreadableImage, match="folder"):
        read_image(tmp_path)
    with pytest.raises(UnreadableImage, match="cannot be read"):
        read_image("null\0byte.jpg")
    (tmp_path / "zero.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImage, match="empty file"):
        read_image(tmp_path / "zero.jpg")


def test_permission_denied(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    # A chmod would not stop a test that runs as root.
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UnreadableImage, match="permission denied"):
        read_image(tmp_path / "x.jpg")


def test_only_the_first_of_ten_thousand_frames_is_decoded():
    frames = [Image.new("L", (64, 64), shade) for shade in (200, 90)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=1)
    at = data.index(b"\x21\xf9", data.index(b"\x2c"))  # the second frame
    start = time.process_time()
    image = decode_image(data[:at] + data[at:-1] * 10_000 + b";")
    assert (image == 200).all() and time.process_time() - start < 5


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_sixty_megabytes_of_exif_are_skipped(file_format, monkeypatch):
    if file_format == "JPEG":  # a segment holds 64 KiB
        data, segment = encode(make_photo(), "JPEG"), b"\xff\xe1\xff\xff" + b"Exif\0\0MM\0*".ljust(65_533, b"\1")
        loaded = data[:2] + segment * 915 + data[2:]
    else:
        exif = with_orientation(6)
        exif[0x9286] = bytes(60_000_000)  # the user comment
        data, loaded = encode(make_photo(), file_format), encode(make_photo(), file_format, exif=exif)
        assert exif[0x0112] == 6
    assert len(loaded) > 58_000_000
    monkeypatch.setattr(Image.Exif, "tobytes", None)  # the block is not written anew
    start = time.process_time()
    image = decode_image(loaded)
    assert time.process_time() - start < 5
    expected = decode_image(data)
    assert np.array_equal(image, expected if file_format == "JPEG" else np.rot90(expected, -1))


def test_a_file_that_grows_is_read_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(encode(make_photo(), "PNG"))
    real = os.fstat

    def grow(number):
        found = real(number)
        with path.open("ab") as file:
            file.write(bytes(1 << 20))
        return found

    size = path.stat().st_size
    monkeypatch.setattr(os, "fstat", grow)
    assert len(storage.read_bytes(path)) == size and path.stat().st_size > size
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)


def test_a_huge_file_is_never_read(tmp_path):
    path = tmp_path / "disk.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(UnreadableImage, match=r"too large: 1,048,576 MiB, the limit is 512"):
        read_image(path)


@pytest.mark.filterwarnings("ignore")
def test_random_bytes_after_any_signature_never_raise_anything_else():
    rng = np.random.default_rng(2)
    for data in (build() for build in FORMATS.values()):
        broken = bytearray(data)
        for at in rng.integers(4, len(broken), 40):
            broken[at] = rng.integers(0, 256)
        try:
            assert decode_image(bytes(broken)).shape[2] == 3
        except UnreadableImage as error:
            assert str(error)
