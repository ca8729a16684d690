"""HEIC: pictures of phones are read as other formats are, and hostile files are refused before they are decoded."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets.decoding import heif, images
from datasets.decoding.images import UnreadableImage, decode_image
from tests.datasets.decoding.test_colour import in_space, photo
from tests.datasets.heif_files import build_heif, coded_parts, encode_heic, grid, ispe
from tests.datasets.profiles import rgb_profile

SIDE = 64


@pytest.fixture
def decoder():
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")


def near(image: np.ndarray, expected: Image.Image) -> bool:
    return image.shape == (*expected.size[::-1], 3) and np.abs(image - np.asarray(expected).astype(int)).mean() < 3


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setattr(images, "readable_formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(UnreadableImage, match=r"^HEIC needs the package pillow-heif; install it, or convert .*$"):
        decode_image(b"\x00\x00\x00\x18ftypheic" + bytes(40))


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
@pytest.mark.parametrize("options", [{}, {"tile_size": 64}], ids=["whole", "tiles"])
def test_pictures_are_read_by_their_content(decoder, tmp_path, brand, options):
    data = encode_heic(photo(side=160), quality=95, **options)
    path = tmp_path / "IMG_0001.jpg"
    path.write_bytes(data[:8] + brand + data[12:])
    image = images.read_image(path)
    assert near(image, photo(side=160)) and image.flags.writeable
    assert images.read_size(str(path)) == (160, 160)


def test_ten_bits(decoder):
    from pillow_heif import from_bytes

    samples = np.asarray(photo()).astype(np.uint16) * 257
    buffer = io.BytesIO()
    from_bytes("RGB;16", (SIDE, SIDE), samples.tobytes()).save(buffer, quality=95)
    assert near(decode_image(buffer.getvalue()), photo())


def test_transparent_pixels_are_white(decoder):
    assert (decode_image(encode_heic(Image.new("RGBA", (SIDE, SIDE), (10, 20, 30, 0)))) > 250).all()


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_orientation_is_applied_exactly_once(decoder, orientation):
    tall = photo().resize((48, 96))
    tall.getexif()[0x0112] = orientation
    tall.info["exif"] = tall.getexif().tobytes()  # becomes a property of the picture as well, as phones write it
    data = encode_heic(tall, quality=95)
    assert near(decode_image(data), ImageOps.exif_transpose(tall))


def test_display_p3(decoder):
    wide = in_space(photo(), rgb_profile())
    ignored = decode_image(encode_heic(wide, quality=95))
    wide.info["icc_profile"] = rgb_profile()
    image = decode_image(encode_heic(wide, quality=95))
    error, error_ignored = (np.abs(one - np.asarray(photo()).astype(int)).mean() for one in (image, ignored))
    assert error < 3 < error_ignored


def test_a_motion_photo_is_its_picture(decoder):
    data = encode_heic(photo())
    assert np.array_equal(decode_image(data + b"MotionPhoto_Data\0\0\0\x18ftypmp42" + bytes(99)), decode_image(data))


def test_the_limit_counts_pixels(decoder):
    data = encode_heic(photo())
    assert decode_image(data, max_pixels=SIDE * SIDE).shape == (SIDE, SIDE, 3)
    with pytest.raises(UnreadableImage, match="too large: 64 x 64"):
        decode_image(data, max_pixels=SIDE * SIDE - 1)


def test_alpha_and_tiles_fit_at_the_largest_size(decoder):
    for image, options in ((photo(side=256), {"tile_size": 64}), (photo(side=256).convert("RGBA"), {})):
        assert decode_image(encode_heic(image, **options), max_pixels=256**2).shape == (256, 256, 3)


def tiles_of_tiles(depth: int) -> bytes:
    header, coded = coded_parts(encode_heic(photo()))
    items = {1: (b"hvc1", [1, 2], coded)}
    items |= {item: (b"grid", [2], grid(2, 2, SIDE, SIDE)) for item in range(2, depth + 2)}
    parts = {item: [item - 1] * 4 for item in range(2, depth + 2)}
    return build_heif(items, parts, [header, ispe(SIDE, SIDE)], depth + 1)


def one_tile_many_times() -> bytes:
    header, coded = coded_parts(encode_heic(photo(side=512)))
    items = {1: (b"hvc1", [1, 2], coded), 2: (b"grid", [3], grid(15, 15, SIDE, SIDE))}
    return build_heif(items, {2: [1] * 225}, [header, ispe(512, 512), ispe(SIDE, SIDE)], 2)


BOMBS = {"a large tile 225 times": one_tile_many_times, "4^7 tiles": lambda: tiles_of_tiles(7)}
BOMBS["tiles of tiles of tiles ..."] = lambda: tiles_of_tiles(40)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_decoding(decoder, name, monkeypatch):
    data = BOMBS[name]()
    assert decode_image(tiles_of_tiles(1)).shape == (SIDE, SIDE, 3)  # such files are valid

    def must_not_decode(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(Image.Image, "load", must_not_decode)
    monkeypatch.setattr("pillow_heif.HeifImageFile.load", must_not_decode, raising=False)
    with pytest.raises(UnreadableImage, match="too costly"):
        decode_image(data, max_pixels=1_000_000)


def test_an_item_that_holds_itself_is_refused():
    data = build_heif({1: (b"grid", [1], grid(1, 1, 8, 8))}, {1: [1]}, [ispe(8, 8)], 1)
    with pytest.raises(UnreadableImage, match="too costly"):
        heif.heif_passes(data, 8, 8)


def test_two_lists_of_items_are_refused():
    data = build_heif({1: (b"grid", [1], grid(1, 1, 8, 8))}, {}, [ispe(8, 8)], 1)
    assert heif.heif_passes(data, 8, 8) == heif.PASSES_PER_PIXEL
    with pytest.raises(UnreadableImage, match="corrupt"):
        heif.heif_passes(data + data[data.index(b"meta") - 4 :], 8, 8)


@pytest.mark.parametrize("size", [0, 3, 7, 9, 1 << 20, (1 << 32) - 1])
def test_boxes_of_a_wrong_size(decoder, size):
    data = encode_heic(photo())
    kinds = (b"ftyp", b"meta", b"hdlr", b"pitm", b"iinf", b"iprp", b"ipco", b"ispe", b"ipma", b"iloc", b"hvcC")
    for at in (data.index(kind) - 4 for kind in kinds):
        broken = data[:at] + struct.pack(">I", size) + data[at + 4 :]
        try:
            assert decode_image(broken).shape == (SIDE, SIDE, 3)
        except UnreadableImage as error:
            assert len(str(error)) < 130


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_truncated_files_are_refused(decoder, share):
    data = encode_heic(photo(), quality=95)
    with pytest.raises(UnreadableImage):
        decode_image(data[: int(len(data) * share)])


def test_random_bytes_never_raise_anything_else(decoder):
    rng = np.random.default_rng(2)
    data = encode_heic(photo(side=128), tile_size=64)
    for _ in range(150):
        broken = bytearray(data)
        for at in rng.integers(8, len(broken), 4):
            broken[at] = rng.integers(0, 256)
        try:
            assert decode_image(bytes(broken), max_pixels=1_000_000).shape[2] == 3
        except UnreadableImage as error:
            assert str(error)
