"""Files that are cheap to send and dear to decode are refused before a pixel is decoded."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.decoding import formats, images
from datasets.decoding.formats import MAX_PASSES, count_scans, png_chunks
from datasets.decoding.images import UnreadableImage, decode_image

SIDE = 64


def encode(mode: str, kind: str, side: int = SIDE, **options) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def repeat_last_scan(data: bytes, times: int, between: bytes = b"") -> bytes:
    last = data.rindex(b"\xff\xda")
    return data[:-2] + (between + data[last:-2]) * times + b"\xff\xd9"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    monkeypatch.setattr(Image.Image, "load", decode)


COMMENT_WITH_END = b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("between", [b"", COMMENT_WITH_END], ids=["plain", "hidden behind a comment"])
def test_a_thousand_scans_are_refused(mode, between, monkeypatch):
    data = repeat_last_scan(encode(mode, "JPEG", progressive=True), 1000, between)
    forbid_decoding(monkeypatch)
    with pytest.raises(UnreadableImage, match=r"too costly: 1.* passes over 64 x 64 pixels"):
        decode_image(data, max_pixels=SIDE**2)


def test_scans_of_a_small_image_may_be_many():
    data = repeat_last_scan(encode("RGB", "JPEG", progressive=True), 100)
    assert decode_image(data).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_ordinary_progressive_files_fit_at_the_largest_size(mode):
    data = encode(mode, "JPEG", progressive=True, quality=95)
    assert decode_image(data, max_pixels=SIDE**2).shape == (SIDE, SIDE, 3)


def test_only_scans_of_the_first_image_count():
    data = encode("RGB", "JPEG", progressive=True)
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
    scans = count_scans(data, 2)
    assert 6 <= scans <= MAX_PASSES
    assert count_scans(data[:2] + thumbnail + data[2:], 2) == scans
    assert count_scans(data + data, 2) == scans


def test_endless_segments_are_refused(monkeypatch):
    monkeypatch.setattr(formats, "MAX_SEGMENTS", 50)
    data = encode("RGB", "JPEG")
    forbid_decoding(monkeypatch)
    for place in (2, data.index(b"\xff\xda")):
        with pytest.raises(UnreadableImage, match=r"truncated|too many segments"):
            decode_image(data[:place] + b"\xff\xfe\x00\x02" * 200 + data[place:])


@pytest.mark.skipif("JPEG2000" not in images.readable_formats(), reason="this Pillow has no JPEG 2000")
def test_jpeg_2000_costs_more_and_layers_count():
    data = encode("RGB", "JPEG2000")
    style = data.index(b"\xff\x52")
    many = data[: style + 6] + struct.pack(">H", 60_000) + data[style + 8 :]
    spoofed = data[:style] + b"\xff\x52" + data[style + 2 :]
    assert decode_image(spoofed, max_pixels=SIDE**2).shape == (SIDE, SIDE, 3)
    with pytest.raises(UnreadableImage, match="too costly: 60008 passes"):
        decode_image(many, max_pixels=SIDE**2)


def test_progressive_streams_in_a_tiff_count():
    data = encode("RGB", "TIFF", compression="jpeg")
    assert decode_image(data, max_pixels=SIDE**2).shape == (SIDE, SIDE, 3)
    with pytest.raises(UnreadableImage, match="too costly"):
        decode_image(data + b"\xff\xc2" + b"\xff\xda" * 1000, max_pixels=SIDE**2)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_compressed_texts_of_a_png_are_never_inflated(kind, mode, monkeypatch):
    data = encode("L", "PNG") if mode == "I;16" else encode(mode, "PNG")
    if mode == "I;16":
        samples = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
        data = cv2.imencode(".png", samples)[1].tobytes()
    bomb = png_chunk(kind, b"key\0\0" + zlib.compress(bytes(1 << 20)))
    loaded = data[:33] + bomb * 20 + data[33:]
    decoded = []
    real = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda array, flags: (decoded.append(array.tobytes()), real(array, flags))[1])
    assert np.array_equal(decode_image(loaded), decode_image(data))
    assert decoded == [data, data]
    assert png_chunks(loaded)[1] == data
