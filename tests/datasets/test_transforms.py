"""Geometry: which pixels of an image reach the model."""

import pickle
import warnings

import numpy as np
import pytest
import torch

from datasets.transforms import JPEG_GRID, EvalTransform, Geometry, TrainTransform, as_floats, resize_to, to_tensor
from tests.datasets.pixels import GEOMETRIES, SIZES, find, noise
from utils.errors import UserError


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_image_becomes_a_square_of_the_right_size(geometry, size):
    image = noise(*size)
    before = image.copy()
    square = geometry(image)
    assert square.shape == (32, 32, 3)
    assert square.dtype == np.uint8
    assert np.array_equal(geometry(image), square)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) >= 32], ids=str)
def test_a_native_crop_keeps_the_exact_pixels_of_the_centre(size):
    image = noise(*size)
    top, left = find(Geometry("crop", 32)(image), image)
    for corner, side in ((top, size[0]), (left, size[1])):
        assert corner % JPEG_GRID == 0
        assert 0 <= (side - 32) / 2 - corner < JPEG_GRID  # the corner of the grid next to the centre


def test_images_that_are_large_enough_are_not_resampled():
    image = noise(40, 70)
    assert Geometry("crop", 32).scale(image) is image
    assert Geometry("crop", 32, 40).scale(image) is image


@pytest.mark.parametrize(("size", "scaled"), [((16, 20), (32, 40)), ((20, 16), (40, 32)), ((1, 2), (32, 64))])
def test_small_images_are_enlarged_just_enough(size, scaled):
    assert Geometry("crop", 32).scale(noise(*size)).shape[:2] == scaled


@pytest.mark.parametrize(("size", "scaled"), [((100, 80), (50, 40)), ((60, 40), (60, 40)), ((20, 30), (40, 60))])
def test_resize_to_sets_the_shorter_side(size, scaled):
    assert Geometry("crop", 32, 40).scale(noise(*size)).shape[:2] == scaled


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_thin_strip_does_not_fill_the_memory(size):
    scaled = Geometry("crop", 64).scale(noise(*size))
    assert scaled.size <= 8 * 64 * 64 * 3
    assert Geometry("crop", 64)(noise(*size)).shape == (64, 64, 3)


def test_resize_shows_the_whole_image():
    image = np.zeros((100, 60, 3), np.uint8)
    image[:50, :30] = 255  # the upper left quarter
    square = Geometry("resize", 32)(image)
    assert square[:15, :15].min() == 255
    assert square[17:].max() == square[:, 17:].max() == 0


def test_shrinking_averages_and_does_not_alias():
    checkerboard = np.indices((64, 64)).sum(0)[:, :, None].repeat(3, 2) % 2 * 255
    assert np.ptp(resize_to(checkerboard.astype(np.uint8), 16, 16)) <= 1


def test_a_side_that_shrinks_does_not_alias_where_the_other_grows():
    stripes = np.tile(np.array([0, 255], np.uint8), 100)[None, :, None].repeat(20, 0).repeat(3, 2)
    assert np.ptp(resize_to(stripes, 50, 50)) <= 1
    assert np.ptp(resize_to(stripes.transpose(1, 0, 2), 50, 50)) <= 1


def test_flat_images_stay_flat():
    for geometry in GEOMETRIES:
        for size in SIZES:
            assert set(np.unique(geometry(np.full((*size, 3), 200, np.uint8)))) == {200}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("warp", 32), "--geometry crop, resize, face, got 'warp'"),
        (("crop", 15), "--image-size in 16..4096 pixels, got 15"),
        (("crop", 5000), "got 5000"),
        (("crop", 64, 32), "--resize-to in 64..8192 pixels .*got 32"),
    ],
)
def test_impossible_geometries_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Geometry(*arguments)


def test_geometry_survives_the_checkpoint():
    for geometry in GEOMETRIES:
        assert Geometry(**geometry.to_dict()) == geometry
        assert all(isinstance(value, str | int | None) for value in geometry.to_dict().values())


def test_tensors_are_rgb_planes_in_0_1():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 1] = (255, 51, 0)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 3)
    assert tensor.dtype == torch.float32
    assert tensor[:, 0, 1].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_arrays_that_may_not_be_written_to_are_no_problem():
    """A memory-mapped or cached image is read-only; torch warns about tensors on such memory."""
    image = noise(32, 32)
    image.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EvalTransform(Geometry("crop", 32))(image)
        TrainTransform(Geometry("crop", 32), "none")(image)


def test_evaluation_ignores_the_seed():
    transform = EvalTransform(Geometry("crop", 32))
    image = noise(40, 50)
    assert torch.equal(transform(image, 1), transform(image))
    assert torch.equal(transform(image), to_tensor(transform.geometry(image)))


def test_bytes_become_the_same_floats_as_a_batch():
    images = [noise(40, 50, seed) for seed in range(3)]
    plain = torch.stack([TrainTransform(Geometry("crop", 32), "light")(image, 1) for image in images])
    rows = torch.stack([TrainTransform(Geometry("crop", 32), "light", as_bytes=True)(image, 1) for image in images])
    assert rows.dtype == torch.uint8 and torch.equal(as_floats(rows), plain) and torch.equal(as_floats(plain), plain)
    assert as_floats(rows).is_contiguous(memory_format=torch.channels_last)


def test_transforms_can_be_sent_to_a_worker():
    image = noise(50, 60)
    for transform in (EvalTransform(Geometry("crop", 32)), TrainTransform(Geometry("crop", 32), "forensic")):
        copy = pickle.loads(pickle.dumps(transform))
        assert torch.equal(copy(image, 3), transform(image, 3))
