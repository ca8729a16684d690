"""Classical detectors on the embedding of a frozen network."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from datasets.transforms import Geometry
from models.registry import create_model
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_curves")


def embed(source, folder: Path, output: Path, *flags: str) -> str:
    argv = ["--model", "logistic_regression", "--model-args", f"features=embedding:{source}", "--data", str(folder)]
    argv += ["--image-size", "32", "--device", "cpu", "--output-dir", str(output)]
    return train.main([*argv, "--cache", str(output.parent / "cache"), *flags])["checkpoint"]


def test_an_embedding_of_a_checkpoint_needs_that_checkpoint_no_more(image_folder, tiny_checkpoint, tmp_path):
    network, _ = load_detector(tiny_checkpoint)
    checkpoint = embed(tiny_checkpoint, image_folder, tmp_path / "run")
    tiny_checkpoint.unlink()
    detector, description = load_detector(checkpoint)
    assert not detector.has_input_gradient
    assert str(tmp_path) not in str(description["model_args"])
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = detector.features(images)
    heads = network.head(torch.from_numpy(features)).squeeze(1)  # its head reads what the learner reads
    with torch.no_grad():
        assert torch.allclose(heads, network(images), atol=1e-5)
    assert torch.equal(detector(images), load_detector(checkpoint)[0](images))
    rows = list(csv.DictReader((tmp_path / "run" / "importance.csv").open()))
    assert len(rows) == features.shape[1]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1)


def test_an_embedding_of_a_timm_network_keeps_its_weights(image_folder, tmp_path):
    checkpoint = embed("test_resnet", image_folder, tmp_path / "run")
    detector, description = load_detector(checkpoint)
    assert description["model_args"]["embedding"] == {"model": "test_resnet", "model_args": {}}
    images = torch.rand(4, 3, 32, 32)
    torch.manual_seed(123)
    assert torch.equal(detector(images), load_detector(checkpoint)[0](images))
    torch.manual_seed(0)  # the seed of the run
    fresh = create_model("logistic_regression", **description["model_args"])
    assert np.array_equal(detector.features(images), fresh.features(images))


def test_features_of_other_weights_are_not_taken_from_the_cache(image_folder, tmp_path, monkeypatch):
    import models.classical

    monkeypatch.setattr("utils.training.classical.write_importance", lambda detector, folder: None)

    calls = []
    original = models.classical.Embedder.forward

    def counted(self, images):
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(models.classical.Embedder, "forward", counted)
    embed("test_resnet", image_folder, tmp_path / "one")
    first = sum(calls)
    calls.clear()
    embed("test_resnet", image_folder, tmp_path / "again")
    assert sum(calls) == first - 24
    calls.clear()
    embed("test_resnet", image_folder, tmp_path / "other", "--seed", "1")
    assert sum(calls) == first


def test_an_embedding_of_fixed_size_keeps_that_size(image_folder, tmp_path):
    """The images are smaller than the network's input: they are enlarged, because it takes nothing else."""
    network = create_model("cnn_baseline", input_size=64)
    description = {
        "model": "cnn_baseline",
        "model_args": {"input_size": 64},
        "geometry": Geometry("crop", 64).to_dict(),
    }
    file = tmp_path / "best.pt"
    save_checkpoint(file, {**description, "state_dict": network.state_dict(), "thresholds": None, "calibration": None})
    argv = ["--model", "logistic_regression", "--model-args", f"features=embedding:{file}", "--data", str(image_folder)]
    argv += ["--output-dir", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    assert load_checkpoint(train.main(argv)["checkpoint"])["geometry"]["size"] == 64


@pytest.mark.parametrize(
    ("source", "message"),
    [("", "expected"), ("resnet_18", "did you mean .*resnet18"), ("{classical}", "single network.*, got xgboost")],
)
def test_what_has_no_embedding_is_refused(source, message, image_folder, tmp_path):
    classical = create_model("xgboost", features="color")
    description = {"model": classical.name, "model_args": classical.model_args, "state_dict": classical.state_dict()}
    description |= {"geometry": classical.geometry.to_dict(), **classical.operating_point.to_checkpoint()}
    save_checkpoint(tmp_path / "best.pt", description)
    with pytest.raises(UserError, match=message):
        embed(source.format(classical=tmp_path / "best.pt"), image_folder, tmp_path / "run")
    with pytest.raises(UserError, match="features=embedding:CHECKPOINT or features=embedding:TIMM-NAME"):
        create_model("xgboost", features="embedding")
