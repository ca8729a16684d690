"""Perturbations: what each does to size and pixels, the ranges of the tiers, and that an image decides its own fate."""

import cv2
import numpy as np
import pytest

from datasets import perturbations
from datasets.perturbations import (
    NO_CHANGE,
    SEVERITIES,
    STEPS,
    TIERS,
    apply_tier,
    content_seed,
    is_trained_on,
    ladder_place,
    parse_severity,
    pick_tiers,
    severity_name,
)
from datasets.transforms import AUGMENTATIONS, Geometry
from utils.errors import UserError

ALL = pick_tiers(TIERS, ["all"])
SHAPES = [(64, 64), (37, 90), (1, 1), (1, 50), (200, 3)]


def picture(height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth colours with some texture, as a photograph has."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(30, 226, (5, 5, 3), dtype=np.uint8), (width, height)).astype(int)
    return (image + rng.integers(-12, 13, image.shape)).clip(0, 255).astype(np.uint8)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("tier", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tier_gives_an_image_that_a_geometry_can_take(tier, shape):
    image = picture(*shape)
    before = image.copy()
    degraded = apply_tier(image, tier)
    assert degraded.dtype == np.uint8 and degraded.ndim == 3 and degraded.shape[2] == 3 and degraded.size
    assert np.array_equal(image, before)
    for geometry in (Geometry("crop", 48), Geometry("resize", 48), Geometry("crop", 32, 40)):
        assert geometry(degraded).shape == (geometry.size, geometry.size, 3)


@pytest.mark.parametrize("tier", ALL)
def test_an_image_always_meets_the_same_degradation(tier):
    first = apply_tier(picture(seed=1), tier)
    apply_tier(picture(seed=2), tier)  # what was scored in between does not matter
    strided = np.asfortranarray(picture(seed=1))
    assert np.array_equal(apply_tier(strided, tier), first)
    assert np.array_equal(apply_tier(picture(seed=1), tier, content_seed(picture(seed=1))), first)


@pytest.mark.parametrize("tier", ["web", "hard", "noise-0.05", "crop-0.5"])
def test_images_differ_in_their_draws(tier):
    draws = set()
    original = TIERS.get(tier) or STEPS[tier.split("-")[0]]

    def spy(image, *rest):
        draws.add(rest[-1].random())
        return original(image, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TIERS if tier in TIERS else STEPS, tier if tier in TIERS else tier.split("-")[0], spy)
        for seed in range(8):
            apply_tier(picture(seed=seed), tier)
        one_pixel = picture(seed=0)
        one_pixel[0, 0, 0] ^= 1
        apply_tier(one_pixel, tier)
    assert len(draws) == 9
    assert content_seed(np.zeros((2, 8, 3), np.uint8)) != content_seed(np.zeros((8, 2, 3), np.uint8))


def test_clean_is_the_image_itself():
    image = picture()
    assert apply_tier(image, "clean") is image
    assert np.array_equal(TIERS["clean"](image, generator()), image)


def test_web_stays_in_its_ranges(monkeypatch):
    calls = record_calls(monkeypatch, "resize", "jpeg", "webp")
    for seed in range(60):
        degraded = apply_tier(picture(40, 60, seed), "web")
        assert 20 <= degraded.shape[0] <= 40 and 30 <= degraded.shape[1] <= 60
    assert all(0.5 <= scale <= 1 for scale in calls["resize"]) and np.ptp(calls["resize"]) > 0.4
    qualities = calls["jpeg"] + calls["webp"]
    assert min(qualities) >= 60 and max(qualities) <= 90 and max(qualities) - min(qualities) > 20
    assert len(calls["resize"]) == len(qualities) == 60 and 15 < len(calls["jpeg"]) < 45


def test_hard_stays_in_its_ranges_and_is_harder_than_web(monkeypatch):
    calls = record_calls(monkeypatch, "resize", "jpeg", "blur", "noise", "screenshot")
    for seed in range(40):
        degraded = apply_tier(picture(80, 80, seed), "hard")
        assert 0.25 * 80 - 1 <= degraded.shape[0] <= 0.625 * 80 + 1
    first, shown = calls["resize"][::2], calls["resize"][1::2]
    assert all(0.25 <= scale <= 0.5 for scale in first) and all(1 <= scale <= 1.25 for scale in shown)
    assert shown == calls["screenshot"]
    assert all(30 <= quality <= 60 for quality in calls["jpeg"][::2])  # compressed twice
    assert all(60 <= quality <= 85 for quality in calls["jpeg"][1::2])
    assert all(0.3 <= sigma <= 1 for sigma in calls["blur"]) and all(0.005 <= std <= 0.02 for std in calls["noise"])
    assert {name: len(values) for name, values in calls.items()} == {
        "resize": 80,
        "jpeg": 80,
        "blur": 40,
        "noise": 40,
        "screenshot": 40,
    }

    def loss(tier: str) -> float:
        pairs = ((picture(64, 64, seed), apply_tier(picture(64, 64, seed), tier)) for seed in range(10))
        return sum(distance(image, cv2.resize(degraded, (64, 64))) for image, degraded in pairs)

    assert loss("hard") > loss("web") > 0


def record_calls(monkeypatch, *names: str) -> dict[str, list]:
    """The strengths that the steps of a tier are called with."""
    calls: dict[str, list] = {name: [] for name in names}

    def spy(name: str):
        original = getattr(perturbations, name)

        def wrapper(image, strength, *rest):
            calls[name].append(strength)
            return original(image, strength, *rest)

        return wrapper

    for name in names:
        monkeypatch.setattr(perturbations, name, spy(name))
    return calls


@pytest.mark.parametrize("kind", ["jpeg", "blur", "noise"])
def test_a_ladder_rises(kind):
    image = picture(96, 96)
    losses = [distance(image, apply_tier(image, severity_name(kind, level))) for level in SEVERITIES[kind]]
    assert losses == sorted(losses) and losses[0] > 0


@pytest.mark.parametrize("kind", list(SEVERITIES))
def test_the_place_of_clean_is_where_a_step_does_least(kind):
    image = picture()
    unchanged = STEPS[kind](image, NO_CHANGE[kind], generator())
    assert unchanged.shape == image.shape
    assert distance(image, unchanged) <= (6 if kind == "jpeg" else 0)
    place = ladder_place(kind, NO_CHANGE[kind])
    levels = [ladder_place(kind, level) for level in SEVERITIES[kind]]
    assert levels == sorted(levels) and place not in levels
    assert kind == "resize" or place < levels[0]


def test_sizes_after_resize_and_crop():
    image = picture(40, 60)
    assert [apply_tier(image, f"resize-{scale:g}").shape[:2] for scale in SEVERITIES["resize"]] == [
        (10, 15),
        (20, 30),
        (30, 45),
        (60, 90),
        (80, 120),
    ]
    assert [apply_tier(image, f"crop-{part:g}").shape[:2] for part in SEVERITIES["crop"]] == [
        (38, 57),
        (36, 54),
        (30, 45),
        (20, 30),
    ]


def test_a_crop_is_a_part_of_the_image_at_places_all_over_it():
    rows, columns = np.indices((40, 40))
    image = np.stack([rows, columns, rows], axis=2).astype(np.uint8)
    corners = set()
    for seed in range(60):
        part = perturbations.crop(image, 0.75, np.random.default_rng(seed))
        top, left = part[0, 0, 0], part[0, 0, 1]
        assert np.array_equal(part, image[top : top + 30, left : left + 30])
        corners.add((int(top), int(left)))
    assert {0, 10} <= {top for top, _ in corners} and {0, 10} <= {left for _, left in corners} and len(corners) > 30


def test_noise_has_the_asked_strength_in_every_channel():
    image = np.full((200, 200, 3), 128, np.uint8)
    for std in SEVERITIES["noise"]:
        error = perturbations.noise(image, std, generator()).astype(float) - 128
        assert np.std(error, axis=(0, 1)) == pytest.approx(255 * std, rel=0.05)
        assert abs(error.mean()) < 255 * std / 50
    assert np.corrcoef(error[..., 0].ravel(), error[..., 1].ravel())[0, 1] == pytest.approx(0, abs=0.02)
    assert perturbations.noise(np.full((9, 9, 3), 255, np.uint8), 0.1, generator()).min() > 100  # no wrap-around


def test_levels_of_noise_are_one_noise():
    image = np.full((50, 50, 3), 128, np.uint8)
    weak, strong = (apply_tier(image, f"noise-{std}").astype(float) - 128 for std in (0.05, 0.1))
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.99


def test_blur_has_the_asked_width():
    image = np.zeros((81, 81, 3), np.uint8)
    image[:, 40:] = 200  # the slope of a blurred edge is the Gaussian
    for sigma in SEVERITIES["blur"]:
        slope = np.diff(perturbations.blur(image, sigma)[40, :, 0].astype(float))
        places = np.arange(80) + 0.5
        mean = np.sum(slope * places) / slope.sum()
        assert np.sqrt(np.sum(slope * (places - mean) ** 2) / slope.sum()) == pytest.approx(sigma, rel=0.15)


def test_codecs_keep_channel_order_and_size():
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :, 0] = 220  # red
    for codec in (perturbations.jpeg, perturbations.webp):
        decoded = codec(image, 80)
        assert decoded.shape == image.shape and decoded[..., 0].mean() > 190 and decoded[..., 2].mean() < 30
    assert perturbations.screenshot(image, 0.5, 80).shape == (16, 24, 3)


def test_images_beyond_the_limits_of_a_format_are_cut(monkeypatch):
    monkeypatch.setattr(perturbations, "MAX_SIDE", {".jpg": 50, ".webp": 30})
    image = picture(20, 60)
    assert perturbations.jpeg(image, 90).shape == (20, 50, 3)
    assert perturbations.webp(image, 90).shape == (20, 30, 3)
    assert distance(perturbations.webp(image, 95), image[:, 15:45]) < 10


# ------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(("height", "width"), [(300, 200), (256, 256), (40, 64), (10, 4000)])
def test_common_gives_every_set_one_size(height, width):
    degraded = apply_tier(picture(height, width), "common")
    assert min(degraded.shape[:2]) == 256 and max(degraded.shape[:2]) <= 8 * 256


def test_names_and_their_parts():
    assert len(set(ALL)) == len(ALL) == len(TIERS) + sum(map(len, SEVERITIES.values()))
    assert {"jpeg-75", "resize-0.25", "resize-2", "blur-0.5", "noise-0.01", "crop-0.95"} <= set(ALL)
    assert parse_severity("noise-0.01") == ("noise", 0.01)
    assert [parse_severity(name) for name in ("web", "clean", "jpeg", "jpeg-x", "sepia-3")] == [None] * 5
    assert pick_tiers(["web", "web"], ["crop", "crop"]) == ["web", *(f"crop-{v:g}" for v in SEVERITIES["crop"])]


@pytest.mark.parametrize(
    ("tiers", "severities", "says"),
    [
        (["clen"], [], "got 'clen'; did you mean clean?"),
        (["jpeg-75"], [], "expected --tiers of clean, web, hard, common, got 'jpeg-75'"),
        (["web"], ["jpg"], "got 'jpg'; did you mean jpeg?"),
        (["web"], ["ALL"], "expected --severity of jpeg, resize, blur, noise, crop, all, got 'ALL'"),
    ],
)
def test_unknown_names(tiers, severities, says):
    with pytest.raises(UserError) as error:
        pick_tiers(tiers, severities)
    assert says in str(error.value)


def test_overlap_with_training_augmentation():
    trained = {tier for tier in ALL if is_trained_on(tier, "forensic")}
    assert trained == {tier for tier in ALL if tier != "clean" and not tier.startswith("crop")}
    for name in ("delivery", "graded", "wild"):
        assert {tier for tier in ALL if is_trained_on(tier, name)} == {tier for tier in ALL if tier != "clean"}
    assert not any(is_trained_on(tier, name) for tier in ALL for name in ("none", "light", None))
    assert set(perturbations.OVERLAPS) <= set(AUGMENTATIONS)
