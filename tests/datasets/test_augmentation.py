"""Augmentation: every random draw follows the seed, and each step changes what it says."""

import cv2
import numpy as np
import pytest
import torch

import train
from datasets import augmentation
from datasets.augmentation import blur, downscale, grade, jpeg, tight, tone, vignette
from datasets.transforms import AUGMENTATIONS, TRAIN_GRID, EvalTransform, Geometry, TrainTransform, to_tensor
from tests.datasets.pixels import GEOMETRIES, SIZES, find, noise
from utils.errors import UserError


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
    ("augmentation", "least"),
    [("none", 1), ("light", 8), ("forensic", 16), ("delivery", 16), ("graded", 16), ("wild", 16)],
)
def test_different_seeds_give_different_images(augmentation, least):
    transform = TrainTransform(Geometry("crop", 32), augmentation)
    image = noise(64, 64)
    different = {transform(image, seed).numpy().tobytes() for seed in range(24)}
    assert len(different) >= least
    assert len(different) == 1 or augmentation != "none"


@pytest.mark.parametrize("step", [tone, grade])
def test_tones_change_colours_and_nothing_else(step):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = (90, 140, 200)
    found = [step(image, np.random.default_rng(seed)) for seed in range(40)]
    assert all((one[:, :4] == one[0, 0]).all() and (one[:, 4:] == one[0, 4]).all() for one in found)
    assert len({one.tobytes() for one in found}) == 40
    grey = [one for one in found if len(set(one[0, 4].tolist())) == 1]
    assert 1 <= len(grey) <= 16


def test_grading_moves_the_light_further_than_tones_and_keeps_its_order():
    ramp = np.tile(np.arange(40, 216, dtype=np.uint8)[None, :, None], (4, 1, 3))
    means = {}
    for step in (tone, grade):
        found = [step(ramp, np.random.default_rng(seed)).mean(2)[0] for seed in range(60)]
        assert all((np.diff(one) >= -1).all() for one in found)  # rounding of the three colours
        means[step] = np.std([one.mean() for one in found])
    assert means[grade] > 1.5 * means[tone]


def test_a_vignette_darkens_away_from_a_point():
    image = np.full((60, 40, 3), 200, np.uint8)
    for seed in range(20):
        found = vignette(image, np.random.default_rng(seed))[..., 0].astype(int)
        top, left = np.unravel_index(found.argmax(), found.shape)
        assert found.max() >= 198 and found.min() < 180 and 0.15 < top / 60 < 0.85 and 0.15 < left / 40 < 0.85
        assert (np.diff(found[top, left:]) <= 0).all() and (np.diff(found[:top, left]) >= 0).all()


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


def test_the_command_line_offers_every_preset():
    (action,) = [action for action in train.get_args_parser()._actions if action.dest == "augmentation"]
    assert tuple(action.choices) == AUGMENTATIONS


def test_unknown_presets_are_refused():
    with pytest.raises(
        UserError, match="expected --augmentation none, light, forensic, delivery, graded, wild, got 'heavy'"
    ):
        TrainTransform(Geometry("crop", 32), "heavy")
