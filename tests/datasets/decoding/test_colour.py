"""Colour profiles: what was taken in Display P3 or Adobe RGB scores as its copy in sRGB does."""

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from datasets.decoding import colour
from datasets.decoding.images import UnreadableImage, decode_image
from tests.datasets.profiles import ADOBE, P3, grey_profile, rgb_profile
from utils.checkpoints.slimming import logits_of
from utils.files import ROOT

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KINDS = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


def photo(mode: str = "RGB", side: int = 64) -> Image.Image:
    coarse = np.random.default_rng(3).integers(60, 196, (5, 5, 3), dtype=np.uint8)  # colours that fit in every space
    return Image.fromarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **KINDS.get(kind, {}), **options)
    return buffer.getvalue()


def in_space(image: Image.Image, profile: bytes) -> Image.Image:
    """The same colours in the space of a profile."""
    converted = ImageCms.profileToProfile(image, io.BytesIO(SRGB), io.BytesIO(profile))
    converted.info.clear()  # of the profile, which would be saved unasked
    return converted


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return np.abs(first.astype(int) - second).max()


@pytest.mark.parametrize("primaries", [P3, ADOBE], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("kind", KINDS)
def test_colours_are_brought_to_srgb(kind, primaries):
    profile = rgb_profile(primaries)
    wide = in_space(photo(), profile)
    assert difference(np.asarray(wide), np.asarray(photo())) > 8
    image = decode_image(encode(wide, kind, icc_profile=profile))
    assert image.flags.writeable and np.abs(image - np.asarray(photo()).astype(int)).mean() < 1


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "I;16"])
def test_every_kind_of_pixels_takes_a_profile(mode):
    """Grey stays grey in a space with the tone curve of sRGB."""
    profile = rgb_profile()
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(photo("L")).astype(np.uint16) * 257)
    else:
        wide = in_space(photo(), profile)
        stored = {"L": photo("L"), "RGBA": wide.convert("RGBA"), "P": wide.quantize(256)}[mode]
    plain, image = decode_image(encode(stored)), decode_image(encode(stored, icc_profile=profile))
    if mode in ("L", "I;16"):
        assert difference(image, plain) <= 1
    else:
        assert difference(image, plain) > 8 and np.abs(image - np.asarray(photo()).astype(int)).mean() < 5


def test_transparency_is_kept():
    profile = rgb_profile()
    wide = in_space(photo(), profile)
    wide.putalpha(Image.linear_gradient("L").resize(wide.size))
    narrow = photo()
    narrow.putalpha(wide.getchannel("A"))
    assert difference(decode_image(encode(wide, icc_profile=profile)), decode_image(encode(narrow))) <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_grey_profiles(kind):
    plain = decode_image(encode(photo("L"), kind))
    image = decode_image(encode(photo("L"), kind, icc_profile=grey_profile(1.0)))
    assert image.mean() > plain.mean() + 20 and (image == image[..., :1]).all()
    # Made for grey pixels, so of no meaning for colours.
    coloured = encode(photo(), kind, icc_profile=grey_profile(1.0))
    assert np.array_equal(decode_image(coloured), decode_image(encode(photo(), kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_of_srgb_changes_no_pixel(kind):
    for profile in (
        SRGB,
        rgb_profile(((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))),
    ):
        assert np.array_equal(
            decode_image(encode(photo(), kind, icc_profile=profile)), decode_image(encode(photo(), kind))
        )


def broken_profiles() -> dict[str, bytes]:
    whole = rgb_profile()
    rng = np.random.default_rng(0)
    noise = bytearray(whole)
    for at in rng.integers(132, len(whole), 60):
        noise[at] = rng.integers(0, 256)
    return {
        "empty": b"\0",
        "cut": whole[:200],
        "no profile": b"<html>not found</html>" * 9,
        "tags outside": whole[:128] + b"\xff" * (len(whole) - 128),
        "of printers": whole[:16] + b"CMYK" + whole[20:],
        "too large": whole + bytes(colour.MAX_PROFILE_BYTES),
        "noise": bytes(noise),
    }


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", broken_profiles())
def test_a_broken_profile_counts_as_srgb(name, kind):
    image = decode_image(encode(photo(), kind, icc_profile=broken_profiles()[name]))
    if name == "noise":  # may still be a profile
        assert image.shape == (64, 64, 3)
    else:
        assert np.array_equal(image, decode_image(encode(photo(), kind)))


def test_profile_that_inflates_to_gigabytes_is_ignored():
    data = encode(photo(), icc_profile=bytes(1000))
    at = data.index(b"iCCP") - 4
    rest = data[at + 12 + int.from_bytes(data[at : at + 4], "big") :]
    body = b"iCCPbomb\0\0" + zlib.compress(bytes(50 << 20), 9)
    bomb = data[:at] + (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + rest
    assert np.array_equal(decode_image(bomb), decode_image(encode(photo())))


def test_parts_of_a_profile_in_a_jpeg_may_be_out_of_order():
    profile = rgb_profile() + bytes(70_000)
    data = encode(photo(), "JPEG", icc_profile=profile)
    first = data.index(b"\xff\xe2")
    second = data.index(b"\xff\xe2", first + 60_000)
    end = second + 2 + int.from_bytes(data[second + 2 : second + 4], "big")
    swapped = data[:first] + data[second:end] + data[first:second] + data[end:]
    assert np.array_equal(decode_image(swapped), decode_image(data))
    assert difference(decode_image(swapped), decode_image(encode(photo(), "JPEG"))) > 8


def test_damaged_profiles_never_raise_anything_else():
    rng = np.random.default_rng(1)
    for _ in range(60):
        profile = bytearray(rgb_profile())
        for at in rng.integers(0, len(profile), 8):
            profile[at] = rng.integers(0, 256)
        try:
            assert decode_image(encode(photo(side=8), icc_profile=bytes(profile))).shape == (8, 8, 3)
        except UnreadableImage as error:
            assert str(error)


def test_scores_do_not_depend_on_the_profile():
    profile = rgb_profile()
    images = [photo(side=256), photo(side=256).transpose(Image.Transpose.TRANSPOSE)]
    wide = [in_space(image, profile) for image in images]
    files = [[encode(image) for image in images], [encode(image, icc_profile=profile) for image in wide]]
    files.append([encode(image) for image in wide])  # as if the profile were ignored
    plain, with_profile, ignored = (
        logits_of(ROOT / "checkpoints/deepfake-v2.pt", [decode_image(data) for data in group]) for group in files
    )
    assert np.abs(with_profile - plain).max() < 0.05 < np.abs(ignored - plain).max()
