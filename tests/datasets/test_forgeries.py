"""Forgeries made while training: what every one of them promises, the forger's labels, and balanced epochs."""

import pickle
import random
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

import train
from datasets.forgeries.forger import FORGERIES, KINDS, Forger, make_forger
from datasets.forgeries.masks import find_face
from datasets.forgeries.steps import UPSAMPLERS
from datasets.framing import Box, square_around
from datasets.images import read_image
from datasets.loading import ImageDataset
from datasets.spec import open_records
from datasets.transforms import Geometry, TrainTransform
from utils.checkpoints.file import load_checkpoint
from utils.errors import UserError

SEEDS = range(8)


def photograph(height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    """A blurred pattern with grain, read-only, as images from a mapped cache are."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (6, 6, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 6, (height, width, 3))
    image = image.clip(0, 255).astype(np.uint8)
    image.flags.writeable = False
    return image


def forge(name: str, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return FORGERIES[name](image, np.random.default_rng(seed))


# ------------------------------------------------------------------------------------------ every forgery


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("size", [(96, 96), (33, 57), (32, 32), (300, 200)])
def test_a_forgery_is_an_image_that_differs_under_its_mask_only(name, size):
    image = photograph(*size)
    for seed in SEEDS:
        forged, mask = forge(name, image, seed)
        assert forged.shape == image.shape
        assert forged.dtype == np.uint8
        assert mask.shape == size
        assert mask.dtype == np.float32
        assert 0 <= mask.min() <= mask.max() <= 1
        assert np.array_equal(forged[mask == 0], image[mask == 0])
        difference = np.abs(forged.astype(int) - image).mean(axis=2)
        assert difference[mask > 0.2].mean() > 1
        assert (mask > 0.2).mean() > 0.003


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_depends_on_its_generator_and_touches_no_other(name):
    image = photograph()
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    cv2.setRNGSeed(1)
    results = [forge(name, image, 3)]
    cv2.setRNGSeed(2)
    results.append(forge(name, image, 3))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    assert len({forge(name, image, seed)[0].tobytes() for seed in SEEDS}) == len(SEEDS)
    assert np.array_equal(image, photograph())


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_grey_and_constant_images_survive(name, level):
    constant = np.full((64, 48, 3), level, np.uint8)
    grey = np.repeat(photograph()[..., :1], 3, axis=2)
    for seed in SEEDS:
        assert forge(name, constant, seed)[0].shape == constant.shape
        assert not np.array_equal(forge(name, grey, seed)[0], grey)


def test_the_face_is_found_where_its_colour_ends():
    """A skin-coloured disc of each width on a background; the estimate follows it within its jitter."""
    for half in (0.15, 0.2, 0.3):
        image = np.full((128, 128, 3), (60, 90, 160), np.uint8)
        cv2.ellipse(image, ((64, 70), (256 * half, 300 * half), 0), (205, 160, 135), -1)
        frames = [find_face(image, np.random.default_rng(seed)) for seed in SEEDS]
        assert all(abs(frame.half_width / half - 1) < 0.3 for frame in frames)
        assert all(abs(frame.x - 0.5) < 0.05 for frame in frames)


# ------------------------------------------------------------------------------------------- up-sampling


def peaks(image: np.ndarray) -> float:
    """Grey levels of the wave at half the sampling frequency: along rows, along columns or both."""
    spectrum = np.abs(np.fft.fft2(image.astype(float).mean(axis=2))) / image[..., 0].size
    half = [side // 2 for side in spectrum.shape]
    return max(spectrum[half[0], 0], spectrum[0, half[1]], spectrum[half[0], half[1]])


@pytest.mark.parametrize("step", UPSAMPLERS)
def test_every_upsampling_layer_leaves_a_checkerboard(step):
    image = photograph(128, 128)
    low = cv2.resize(image.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)
    plain = peaks(cv2.resize(low, (128, 128), interpolation=cv2.INTER_LINEAR))
    found = [peaks(step(low, np.random.default_rng(seed), 0.03)) for seed in range(16)]
    assert np.median(found) > 5 * max(plain, peaks(image))


def test_upsampled_images_have_peaks_at_half_the_sampling_frequency():
    image = photograph(128, 128)
    found = [peaks(forge("upsample", image, seed)[0]) for seed in range(30)]
    assert np.median(found) > 5 * peaks(image)
    assert np.mean(np.array(found) > peaks(image)) > 0.8


# ------------------------------------------------------------------------------------------------ forger


def test_the_forger_leaves_fakes_and_unknown_images_alone():
    forger, image = Forger(tuple(FORGERIES), 1.0), photograph()
    for label in (1, None):
        assert all(forger(image, label, seed) == (image, label) for seed in SEEDS)


def test_the_forger_forges_its_share_and_compresses_as_many_of_the_others():
    forger, image = pickle.loads(pickle.dumps(Forger(("splice", "blend"), 0.5))), photograph(32, 32)
    results = [forger(image, 0, seed) for seed in range(600)]
    labels = np.array([label for _, label in results])
    untouched = np.array([forged is image for forged, _ in results])
    assert set(labels) == {0, 1}
    assert abs(labels.mean() - 0.5) < 0.08
    assert not untouched[labels == 1].any()
    assert abs(untouched[labels == 0].mean() - 2 / 3) < 0.08
    assert all(np.array_equal(forger(image, 0, seed)[0], results[seed][0]) for seed in SEEDS)


def test_the_forger_takes_every_kind_equally_often(monkeypatch):
    kinds: Counter = Counter()
    for name in ("blend", "smooth"):
        monkeypatch.setitem(FORGERIES, name, lambda image, rng, name=name: (kinds.update([name]), (image, None))[1])
    for seed in range(300):
        assert Forger(("blend", "smooth"), 1.0)(photograph(32, 32), 0, seed)[1] == 1
    assert min(kinds.values()) > 120


def test_a_share_of_nothing_changes_nothing():
    image = photograph()
    assert all(Forger(("blend",), 0.0)(image, 0, seed) == (image, 0) for seed in range(50))


def test_forged_images_carry_the_blocks_of_jpeg():
    """Steps between blocks of 8 px are larger than those within them, for what was forged and what was not."""
    image = cv2.GaussianBlur(photograph(128, 128), (0, 0), 1.0)
    for label in (0, 1):
        steps = np.zeros(8)
        for seed in range(60):
            forged, found = Forger(("blend", "splice", "smooth"), 0.5)(image, 0, seed)
            if found == label and forged is not image:
                steps += np.abs(np.diff(forged.astype(float).mean(axis=2))).mean(axis=0)[:120].reshape(-1, 8).mean(0)
        assert steps[7] > 1.05 * steps[:7].mean()


def test_the_dataset_forges_before_it_augments_and_leaves_other_draws_as_they_were(image_folder):
    records = open_records(str(image_folder), "train").records
    transform = TrainTransform(Geometry("crop", 32), "forensic")
    plain = ImageDataset(records, transform)
    forged = ImageDataset(records, transform, forger=Forger(("blend",), 0.5))
    seen = set()
    for key in [(index, 100 + index) for index in range(len(records))]:
        (expected, label, _), (image, new_label, _) = plain[key], forged[key]
        own, own_label = Forger(("blend",), 0.5)(read_image(records[key[0]].path), records[key[0]].label, key[1])
        assert new_label == own_label
        assert torch.equal(image, transform(own, key[1]))
        same = new_label == label and torch.equal(image, expected)
        seen.add((label, new_label, same))
        assert same or label == 0
    assert {(0.0, 1.0, False), (1.0, 1.0, True)} <= seen


def test_an_unknown_forgery_is_one_line():
    with pytest.raises(UserError, match=r"--forgeries of blend, .*'bland'; did you mean blend"):
        make_forger("splice,bland", 0.5)
    with pytest.raises(UserError, match="expected --forgeries"):
        train.main(["--forgeries", "blend,", "--output-dir", "nowhere"])


# ----------------------------------------------------------------------------------------------- train.py


def test_the_help_names_every_forgery():
    words = " ".join(train.get_args_parser().format_help().split())
    assert f"real images: {', '.join(KINDS)} --" in words


def test_train_with_forgeries_and_balance(image_folder, tmp_path):
    flags = ["--data", str(image_folder), "--model-args", "width=4", "--image-size", "32", "--batch-size", "8"]
    flags += ["--workers", "0", "--threads", "1", "--calibration", "none"]

    def losses(name: str, *more: str) -> list[float]:
        result = train.main([*flags, "--output-dir", str(tmp_path / name), "--epochs", "1", *more])
        assert result["exit_code"] == 0
        return [row["train_loss"] for row in result["history"]]

    chosen = ("--forgeries", "blend,upsample", "--forgery-share", "0.75", "--balance")
    assert losses("forged", *chosen) != losses("plain")
    settings = load_checkpoint(tmp_path / "forged" / "best.pt")["train_args"]
    assert (settings["forgeries"], settings["forgery_share"], settings["balance"]) == ("blend,upsample", 0.75, True)
    with pytest.raises(UserError, match=r"expected --forgeries as in the interrupted run \(blend,upsample\)"):
        train.main(["--resume", "--output-dir", str(tmp_path / "forged"), "--forgeries", "blend"])


@pytest.mark.parametrize("flags", [("--forgeries", "blend"), ("--balance",)])
def test_classical_models_take_neither(flags, image_folder, tmp_path):
    with pytest.raises(UserError, match="expected a neural model"):
        train.main(
            [
                "--model",
                "logistic_regression",
                "--data",
                str(image_folder),
                "--image-size",
                "32",
                *flags,
                "--output-dir",
                str(tmp_path / "run"),
            ]
        )


def test_of_a_picture_whose_face_is_known_only_its_surroundings_are_forged(monkeypatch):
    monkeypatch.setitem(FORGERIES, "blend", lambda image, rng: (np.zeros_like(image), np.ones(image.shape[:2])))
    monkeypatch.setattr("datasets.forgeries.forger.jpeg", lambda image, quality: image)
    image = photograph(160, 240) | 1
    forger, box = Forger(("blend",), 1.0), Box(0.1, 0.5, 0.15, 0.25)
    forged, label = forger(image, 0, 3, box)
    top, left, side = square_around(image.shape, box, 2.0)
    assert label == 1 and side == 80 and not forged[top : top + side, left : left + side].any()
    assert forged.all(2).sum() == 160 * 240 - 80 * 80 and image.all()
    for other in (None, Box(0.5, 0.5, 0.01, 0.01)):  # without a face, or with one too small, the picture is forged
        assert not forger(image, 0, 3, other)[0].any()
