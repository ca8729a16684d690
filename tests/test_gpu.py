"""What only a GPU can show: it trains, scores, attacks and explains as the CPU does. Skipped without one."""

from pathlib import Path

import numpy as np
import pytest
import torch

import attack
import evaluate
import explain
import train
from datasets.device_images import DeviceLoader, make_training_loader
from datasets.listing.spec import open_records
from datasets.loading import EpochSampler, ImageDataset, make_loader
from datasets.transforms import Geometry, TrainTransform
from utils.checkpoints.file import load_checkpoint, load_detector
from utils.engines.pytorch import torch_engine
from utils.engines.registry import ENGINES
from utils.scoring.table import read_scores

DEVICE = "cuda"
DEMO = "demo@n=120,size=64"
CNN = "--model cnn_baseline --model-args input_size=32 --image-size 32"
VIT = "--model foundation --image-size 64 --model-args backbone=vit_tiny_patch16_224 blocks=2-3"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(flags: str, folder: str = "run") -> Path:
    common = f"--data {DEMO} --epochs 1 --batch-size 16 --device {DEVICE} --workers 2 --output-dir {folder}"
    return Path(train.main([*flags.split(), *common.split()])["checkpoint"])


def logits(checkpoint: Path, device: str) -> np.ndarray:
    flags = f"--checkpoint {checkpoint} --data {DEMO} --device {device} --output-dir {device}_scores"
    evaluate.main(flags.split())
    (file,) = Path(f"{device}_scores/scores").glob("*.csv.gz")
    return read_scores(file).logit


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("flags", [CNN, f"{VIT} tune=norms", f"{VIT} tune=norms_1 --token-views 2"])
def test_what_the_gpu_trained_scores_alike_on_both(flags, precision):
    checkpoint = trained(f"{flags} --precision {precision}")
    on_gpu, on_cpu = logits(checkpoint, DEVICE), logits(checkpoint, "cpu")
    assert np.abs(on_gpu - on_cpu).max() < 0.02 and np.ptp(on_gpu) > 0  # cuDNN may round to TF32


@pytest.mark.parametrize("augmentation", ["light", "delivery"])
def test_training_from_device_memory_or_from_workers_leaves_finite_weights(augmentation):
    checkpoint = load_checkpoint(trained(f"{CNN} --augmentation {augmentation}"))
    assert checkpoint["metrics"]["best_epoch"] == 1 and all(
        v.isfinite().all() for v in checkpoint["state_dict"].values()
    )


def test_images_in_device_memory_are_those_of_the_host():
    records = open_records(DEMO, "train").records
    images = ImageDataset(records, TrainTransform(Geometry("crop", 32), "light", as_bytes=True))
    loader, where = make_training_loader(images, 8, EpochSampler(len(records), 0), 0, True, torch.device(DEVICE))
    assert isinstance(loader, DeviceLoader) and "in the memory of" in where
    host = make_loader(images, 8, EpochSampler(len(records), 0), drop_last=True)
    for own, other in zip(loader, host, strict=True):
        assert own.images.is_cuda and torch.equal(own.images.cpu(), other.images)


@pytest.mark.parametrize("adversarial", ["fgsm", "pgd", "trades"])
def test_adversarial_training_runs_in_half_precision(adversarial):
    assert trained(f"{CNN} --adversarial {adversarial} --precision bf16").exists()


def test_a_teacher_on_the_gpu_teaches():
    teacher = trained(f"{VIT} tune=none --token-views 1", "teacher")
    assert trained(f"{CNN} --teacher {teacher}").exists()


def test_an_interrupted_run_continues():
    def stop(_history: list[dict]) -> None:
        raise KeyboardInterrupt

    flags = f"{CNN} --data {DEMO} --epochs 2 --batch-size 16 --device {DEVICE} --output-dir run"
    with pytest.raises(KeyboardInterrupt):
        train.main(flags.split(), on_epoch=stop)
    resumed = train.main(f"--resume --output-dir run --device {DEVICE}".split())
    assert [row["epoch"] for row in resumed["history"]] == [1, 2]


def test_attacks_find_as_much_as_on_the_cpu():
    checkpoint = trained(CNN)
    found = []
    for device in (DEVICE, "cpu"):
        flags = f"--checkpoint {checkpoint} --data {DEMO} --limit 40 --attacks fgsm --eps 4/255 --device {device}"
        found.append(attack.main([*flags.split(), "--output-dir", f"{device}_attacks"])["rows"][0]["robust_acc"])
    assert abs(found[0] - found[1]) <= 0.05


def test_maps_are_drawn():
    pytest.importorskip("pytorch_grad_cam")
    checkpoint = trained(f"{VIT} tune=norms")
    picture = open_records(DEMO, "test").records[0].path
    flags = f"--checkpoint {checkpoint} {picture} --methods gradcam attention occlusion --device {DEVICE}"
    assert len(explain.main([*flags.split(), "--output-dir", "maps"])["rows"]) == 3


CPU_ONLY = ("dynamic-int8",)


@pytest.mark.parametrize(
    "name", [name for name, kind in ENGINES.items() if kind.source == "pt" and name not in ("eager", *CPU_ONLY)]
)
def test_engines_agree_with_eager(name, tiny_checkpoint):
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    eager, other = (
        torch_engine(load_detector(tiny_checkpoint, torch.device(DEVICE))[0], 1, **ENGINES[engine].options)(images)
        for engine in ("eager", name)
    )
    bound = {"sparse": 1.0, "channels-last": 0.01}.get(name, 0.1)
    assert np.abs(other - eager).max() <= bound
