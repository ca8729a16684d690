"""Geometry and augmentation: which pixels reach the model, and that every random draw follows the seed."""

import pickle
import warnings

import cv2
import numpy as np
import pytest
import torch

import train
from datasets import augmentation
from datasets.augmentation import blur, downscale, jpeg, tight, tone
from datasets.transforms import (
    AUGMENTATIONS,
    JPEG_GRID,
    TRAIN_GRID,
    EvalTransform,
    Geometry,
    TrainTransform,
    as_floats,
    resize_to,
    to_tensor,
)
from utils.errors import UserError

SIZES = [(1, 1), (1, 50), (50, 1), (2, 3), (31, 33), (32, 32), (33, 31), (32, 90), (47, 61), (64, 64), (101, 40)]
GEOMETRIES = [Geometry("crop", 32), Geometry("crop", 32, 32), Geometry("crop", 32, 41), Geometry("resize", 32)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def find(crop: np.ndarray, image: np.ndarray) -> tuple[int, int] | None:
    """Top left corner at which the exact pixels of ``crop`` stand in ``image``."""
    height, width = crop.shape[:2]
    for top in range(image.shape[0] - height + 1):
        for left in range(image.shape[1] - width + 1):
            if np.array_equal(image[top : top + height, left : left + width], crop):
                return top, left
    return None


# ------------------------------------------------------------------------------------------------- geometry


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


# --------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("geometry", [Geometry("crop", 32), Geometry("crop", 32, 48), Geometry("resize", 32)], ids=str)
def test_every_preset_keeps_size_and_range_and_follows_the_seed(geometry, augmentation):
    transform = TrainTransform(geometry, augmentation)
    image = noise(61, 47)
    before = image.copy()
    for seed in range(8):
        tensor = transform(image, seed)
        assert tensor.shape == (3, 32, 32)
        assert tensor.dtype == torch.float32
        assert 0 <= tensor.min() <= tensor.max() <= 1
        transform(noise(50, 50), seed + 100)  # what happened in between has no influence
        assert torch.equal(transform(image, seed), tensor)
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    ("augmentation", "least"), [("none", 1), ("light", 8), ("forensic", 16), ("delivery", 16), ("wild", 16)]
)
def test_different_seeds_give_different_images(augmentation, least):
    transform = TrainTransform(Geometry("crop", 32), augmentation)
    image = noise(64, 64)
    different = {transform(image, seed).numpy().tobytes() for seed in range(24)}
    assert len(different) >= least
    assert len(different) == 1 or augmentation != "none"


def test_tones_change_colours_and_nothing_else():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = (90, 140, 200)
    found = [tone(image, np.random.default_rng(seed)) for seed in range(40)]
    assert all((one[:, :4] == one[0, 0]).all() and (one[:, 4:] == one[0, 4]).all() for one in found)
    assert len({one.tobytes() for one in found}) == 40
    grey = [one for one in found if len(set(one[0, 4].tolist())) == 1]
    assert 1 <= len(grey) <= 16


def test_tight_windows_hold_the_middle():
    image = np.zeros((64, 48, 3), np.uint8)
    image[28:36, 20:28] = 255  # the middle, which no window of half of the sides or more may miss
    for seed in range(40):
        window = tight(image, np.random.default_rng(seed))
        assert window.shape == image.shape
        assert (window > 128).mean() >= 0.9 * (image > 128).mean()


def test_no_augmentation_is_what_evaluation_sees():
    for geometry in GEOMETRIES:
        for size in SIZES:
            image = noise(*size)
            assert torch.equal(TrainTransform(geometry, "none")(image, 5), EvalTransform(geometry)(image))


def test_light_crops_keep_exact_pixels_on_the_jpeg_grid():
    transform = TrainTransform(Geometry("crop", 32), "light")
    image = noise(32 + 2 * TRAIN_GRID + 3, 32 + TRAIN_GRID)
    corners = set()
    for seed in range(60):
        crop = (transform(image, seed) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        corner = find(crop, image) or find(crop[:, ::-1], image)
        corners.add(corner)
    assert corners == {(top, left) for top in (0, TRAIN_GRID, 2 * TRAIN_GRID) for left in (0, TRAIN_GRID)}


def test_half_of_the_images_are_mirrored():
    transform = TrainTransform(Geometry("crop", 32), "light")
    image = noise(32, 32)
    mirrored = sum(not torch.equal(transform(image, seed), to_tensor(image)) for seed in range(100))
    assert 30 < mirrored < 70


@pytest.mark.parametrize("mode", ["crop", "resize"])
@pytest.mark.parametrize("train_size", [24, 48])
def test_training_crops_may_have_a_size_of_their_own(mode, train_size):
    transform = TrainTransform(Geometry(mode, 32), "light", train_size)
    for size in SIZES:
        assert transform(noise(*size), 1).shape == (3, train_size, train_size)


@pytest.mark.parametrize("resize_to", [None, 40])
@pytest.mark.parametrize("train_size", [16, 24, 32])
@pytest.mark.parametrize("side", [20, 28, 36, 90])
def test_training_and_evaluation_see_images_at_the_same_scale(side, train_size, resize_to):
    """Also those smaller than the input, whatever the size of the training crops."""
    geometry, image = Geometry("crop", 32, resize_to), noise(side, side + 7)
    scaled = TrainTransform(geometry, "light", train_size).scale(image)
    assert np.array_equal(scaled, geometry.scale(image)) and min(scaled.shape[:2]) >= 32


def test_forensic_degrades_now_and_then():
    """Each step is drawn by itself: 0.8 * 0.8 * 0.8 * 0.6 of the images, mirrored or not, are not degraded at all."""
    transform = TrainTransform(Geometry("crop", 32), "forensic")
    image = noise(32, 32)
    plain = [to_tensor(image).numpy().tobytes(), to_tensor(image[:, ::-1]).numpy().tobytes()]
    results = [transform(image, seed).numpy().tobytes() for seed in range(200)]
    upright, mirrored = (results.count(one) for one in plain)
    assert 20 <= upright <= 42  # 31 expected
    assert 20 <= mirrored <= 42
    assert len(set(results)) > 100


@pytest.mark.parametrize(
    ("step", "least", "most"),
    [
        (downscale, 1, 60),
        (blur, 1, 60),
        (augmentation.noise, 1, 11),
        (jpeg, 1, 30),
        (augmentation.share_online, 1, 60),
        (augmentation.zoom, 1, 60),
    ],
)
def test_each_degradation_keeps_the_size_and_changes_as_much_as_it_says(step, least, most):
    image = cv2.GaussianBlur(noise(96, 80), (0, 0), 1)
    before = image.copy()
    for seed in range(10):
        result = step(image, np.random.default_rng(seed))
        assert result.shape == image.shape and result.dtype == np.uint8
        deviation = np.std(result.astype(float) - image)
        assert least < deviation < most
        assert abs(result.astype(float) - image).mean() < 60  # colours are not exchanged
    assert np.array_equal(image, before)


def test_noise_has_the_deviation_it_draws_and_no_shift():
    flat = np.full((200, 200, 3), 128, np.uint8)
    deviations = [augmentation.noise(flat, np.random.default_rng(seed)).astype(float) - 128 for seed in range(20)]
    assert min(d.std() for d in deviations) > 0.005 * 255 * 0.9 and max(d.std() for d in deviations) < 0.04 * 255 * 1.1
    assert abs(np.mean([d.mean() for d in deviations])) < 0.1


def test_jpeg_keeps_the_order_of_colours():
    red = np.zeros((32, 32, 3), np.uint8)
    red[:, :, 0] = 200
    assert np.abs(jpeg(red, np.random.default_rng(0)).astype(int) - red).max() < 12
    for seed in range(8):  # both codecs
        shared = augmentation.share_online(red, np.random.default_rng(seed)).astype(int)
        assert np.abs(shared - red).max() < 24


def test_zoom_enlarges_a_window_of_the_image():
    ramp = np.tile(np.arange(128, dtype=np.uint8)[None, :, None], (128, 1, 3))
    for seed in range(10):
        zoomed = augmentation.zoom(ramp, np.random.default_rng(seed))[:, :, 0].astype(int)
        share = (zoomed[0, -1] - zoomed[0, 0] + 1) / 128
        assert 0.53 < share <= 1 and (np.diff(zoomed[0]) >= 0).all()


def test_bytes_become_the_same_floats_as_a_batch():
    images = [noise(40, 50, seed) for seed in range(3)]
    plain = torch.stack([TrainTransform(Geometry("crop", 32), "light")(image, 1) for image in images])
    rows = torch.stack([TrainTransform(Geometry("crop", 32), "light", as_bytes=True)(image, 1) for image in images])
    assert rows.dtype == torch.uint8 and torch.equal(as_floats(rows), plain) and torch.equal(as_floats(plain), plain)
    assert as_floats(rows).is_contiguous(memory_format=torch.channels_last)


def test_the_command_line_offers_every_preset():
    (action,) = [action for action in train.get_args_parser()._actions if action.dest == "augmentation"]
    assert tuple(action.choices) == AUGMENTATIONS


def test_unknown_presets_are_refused():
    with pytest.raises(UserError, match="expected --augmentation none, light, forensic, delivery, wild, got 'heavy'"):
        TrainTransform(Geometry("crop", 32), "heavy")


def test_transforms_can_be_sent_to_a_worker():
    image = noise(50, 60)
    for transform in (EvalTransform(Geometry("crop", 32)), TrainTransform(Geometry("crop", 32), "forensic")):
        copy = pickle.loads(pickle.dumps(transform))
        assert torch.equal(copy(image, 3), transform(image, 3))
