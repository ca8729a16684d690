"""Training images in the memory of the device: the same batches as from the host, and when that cannot be."""

from functools import partial

import cv2
import numpy as np
import pytest
import torch

import train
from datasets.device_images import DeviceLoader, make_training_loader
from datasets.listing.spec import Record
from datasets.loading import EpochSampler, ImageDataset, make_loader
from datasets.transforms import Geometry, TrainTransform

pytestmark = pytest.mark.usefixtures("no_curves")

CPU = torch.device("cpu")


@pytest.fixture
def records(tmp_path):
    """Eleven noisy images of 80 x 64 px, one of them broken."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(11):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), generator.integers(0, 256, (80, 64, 3), dtype=np.uint8))
        found.append(Record(str(path), number % 2, ""))
    (tmp_path / "4.png").write_bytes(b"no image")
    return found


def dataset(records, augmentation="light", size=32, geometry=None):
    transform = TrainTransform(geometry or Geometry("crop", size), augmentation, size, as_bytes=True)
    return ImageDataset(records, transform)


@pytest.mark.parametrize("augmentation", ["none", "light"])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_are_those_of_the_host_pixel_for_pixel(records, augmentation, drop_last):
    images = dataset(records, augmentation)
    samplers = [EpochSampler(len(records), 3), EpochSampler(len(records), 3)]
    device = DeviceLoader(images, 4, samplers[0], drop_last, CPU)
    host = make_loader(images, 4, samplers[1], drop_last=drop_last)
    assert len(device) == len(host)
    for epoch in range(2):
        for sampler in samplers:
            sampler.epoch = epoch
        pairs = list(zip(device, host, strict=True))
        for ours, theirs in pairs:
            assert torch.equal(ours.images, theirs.images) and ours.images.dtype == torch.uint8
            assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.indices, theirs.indices)
            assert ours.unreadable == theirs.unreadable
    assert drop_last or any(batch.unreadable for batch, _ in pairs)


def test_a_batch_of_unreadable_images_is_empty(records):
    loader = DeviceLoader(dataset(records, "light"), 4, EpochSampler(len(records), 3), False, CPU)
    batch = loader._batch([(4, 0)])
    assert len(batch.images) == len(batch.labels) == 0 and [item.index for item in batch.unreadable] == [4]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"augmentation": "forensic"}, "only crops and flips"),
        ({"geometry": Geometry("crop", 32, 48)}, "must be rescaled"),
        ({"size": 96}, "must be rescaled"),
    ],
)
def test_what_the_device_cannot_do_stays_on_the_host_and_says_so(records, change, says):
    images = dataset(records, **change)
    loader, where = make_training_loader(images, 4, EpochSampler(len(records), 0), 0, True, CPU, "device")
    assert not isinstance(loader, DeviceLoader) and where.startswith("images stay on the host") and says in where


def test_images_of_several_sizes_stay_on_the_host(records, tmp_path):
    cv2.imwrite(str(tmp_path / "7.png"), np.zeros((90, 90, 3), np.uint8))
    _, where = make_training_loader(dataset(records), 4, EpochSampler(len(records), 0), 0, True, CPU, "device")
    assert "differ in size" in where


def test_too_many_images_stay_on_the_host(records, monkeypatch):
    monkeypatch.setattr("datasets.device_images.free_bytes", lambda _: 10_000)
    _, where = make_training_loader(dataset(records), 4, EpochSampler(len(records), 0), 0, True, CPU, "device")
    assert "exceed" in where


def test_without_a_gpu_auto_means_host(records):
    loader, where = make_training_loader(dataset(records), 4, EpochSampler(len(records), 0), 0, True, CPU)
    assert not isinstance(loader, DeviceLoader) and not where


def test_training_from_the_device_gives_the_same_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = []
    for place in ("host", "device"):
        monkeypatch.setattr("utils.training.setup.make_training_loader", partial(make_training_loader, place=place))
        train.main(
            [
                "--data",
                "demo@n=60,size=64",
                "--epochs",
                "1",
                "--batch-size",
                "8",
                "--model",
                "cnn_baseline",
                "--model-args",
                "input_size=32",
                "--image-size",
                "32",
                "--threads",
                "1",
                "--output-dir",
                place,
            ]
        )
        weights.append(torch.load(f"{place}/best.pt", weights_only=True)["state_dict"])
    assert "images are in the memory of cpu" in capsys.readouterr().err
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
