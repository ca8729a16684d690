"""The cache of handcrafted features: what is computed again, and what is not."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from datasets import pack
from datasets.listing.splits import open_training_data
from datasets.transforms import Geometry
from models.registry import create_model
from tests.conftest import write_image
from utils.training.classical import fit_classical
from utils.training.recipe import make_recipe

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Fit a small model on a folder through the cache, without the figure that takes longer than all else."""
    monkeypatch.setattr("utils.training.classical.write_importance", lambda detector, folder: None)

    def fit_(folder: Path | str, geometry: Geometry | None = None, features: str = "color"):
        detector = create_model("logistic_regression", features=features)
        detector.geometry = geometry or Geometry("crop", 32)
        recipe = make_recipe(vars(train.get_args_parser().parse_args(["--batch-size", "8"])), "")
        fit_classical(recipe, detector, open_training_data([str(folder)]), tmp_path / "run", tmp_path / "cache")
        return detector

    return fit_


def test_features_are_computed_once(image_folder, fit, computed):
    first = fit(image_folder)
    assert sum(computed) == 24  # training and validation images
    computed.clear()
    second = fit(image_folder)
    assert not computed
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(images), second(images))


@pytest.mark.parametrize(
    "change", ["pixels", "pixels, same size", "one file less", "label", "geometry", "mode", "banks"]
)
def test_changed_images_or_features_are_computed_again(change, image_folder, fit, computed):
    fit(image_folder)
    computed.clear()
    settings: dict = {}
    file = image_folder / "train" / "real" / "000.png"
    if change == "pixels":
        write_image(file, 999, fake=True, height=50)
    elif change == "pixels, same size":
        file.write_bytes(file.read_bytes())  # a file's time is all that would tell
    elif change == "one file less":
        file.unlink()
    elif change == "label":
        file.rename(image_folder / "train" / "fake" / "100.png")
    elif change == "geometry":
        settings = {"geometry": Geometry("crop", 40)}
    elif change == "mode":
        settings = {"geometry": Geometry("resize", 32)}
    else:
        settings = {"features": "color,lbp"}
    fit(image_folder, **settings)
    changes_all = bool(settings)
    assert sum(computed) == (24 if changes_all else 15 if change == "one file less" else 16)


@pytest.mark.parametrize("change", ["nothing", "overwritten", "same size"])
def test_features_of_shards_are_computed_again_once_a_shard_changes(change, image_folder, fit, computed, tmp_path):
    def packed(name: str) -> Path:
        pack.main([str(image_folder), "--output-dir", str(tmp_path / name)])
        return tmp_path / name

    first = packed("first")
    fit(f"wds:{first}")
    computed.clear()
    shard = first / "train-00000.tar"
    if change == "overwritten":
        write_image(image_folder / "train/real/000.png", 999, fake=True, height=50)
        for file in packed("second").iterdir():
            (first / file.name).write_bytes(file.read_bytes())
    elif change == "same size":
        os.utime(shard, ns=(1, 1))
    fit(f"wds:{first}")
    assert sum(computed) == {"nothing": 0, "overwritten": 24, "same size": 16}[change]


def test_banks_in_another_order_are_other_features(image_folder, fit, computed):
    fit(image_folder, features="color,lbp")
    computed.clear()
    fit(image_folder, features="lbp,color")
    assert sum(computed) == 24


@pytest.mark.parametrize("damage", ["empty", "truncated", "noise", "other arrays", "flipped"])
def test_a_damaged_cache_is_made_again(damage, image_folder, fit, computed, tmp_path):
    fit(image_folder)
    computed.clear()
    for file in (tmp_path / "cache").iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        kinds = {
            "empty": b"",
            "truncated": bytes(content[: len(content) // 2]),
            "noise": b"nonsense" * 9,
            "flipped": bytes(content),
        }
        if damage == "other arrays":
            np.savez(file, z=np.zeros(3))
        else:
            file.write_bytes(kinds[damage])
    fit(image_folder)
    assert sum(computed) == 24
    computed.clear()
    fit(image_folder)
    assert not computed


def test_unreadable_images_are_told_and_not_cached(image_folder, tmp_path, computed):
    broken = image_folder / "train" / "fake" / "000.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:40])
    argv = f"--model logistic_regression --model-args features=color --data {image_folder} --image-size 32 --device cpu"
    argv = [*argv.split(), "--output-dir", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert train.main(argv)["exit_code"] == 1
    broken.write_bytes(good)
    computed.clear()
    assert train.main([*argv, "--overwrite"])["exit_code"] == 0
    assert sum(computed) == 16 + 8 + 8  # training images again, and the two that are scored at the end
