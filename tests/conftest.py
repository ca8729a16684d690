"""Fixtures that several test files share: tiny image folders and a tiny checkpoint."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads only get in each other's way here
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

SIDE = 40  # px
MakeFolder = Callable[[str, dict[str, int]], Path]


def write_image(path: Path, seed: int, fake: bool, height: int = SIDE, width: int = SIDE) -> None:
    """Write a PNG file of smooth colour noise; a fake has a faint checkerboard on it, so that it can be learnt."""
    coarse = np.random.default_rng(seed).integers(40, 216, (4, 5, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    if fake:
        image += 16 * ((np.indices((height, width)).sum(0) % 2)[:, :, None] * 2 - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Return a function that fills a folder: ``make_folder("faces", {"train/real": 4, "train/fake": 4})``."""

    def make(name: str, counts: dict[str, int]) -> Path:
        for number, (part, count) in enumerate(counts.items()):
            for index in range(count):
                fake = "fake" in part.split("/")
                write_image(tmp_path / name / part / f"{index:03}.png", 1000 * number + index, fake)
        return tmp_path / name

    return make


@pytest.fixture
def image_folder(make_folder: MakeFolder) -> Path:
    """A set ``faces`` of 40 px PNG files: {train,valid,test}/{real,fake}, 8 training images a class and 4 others."""
    counts = {"train": 8, "valid": 4, "test": 4}
    return make_folder("faces", {f"{split}/{name}": n for split, n in counts.items() for name in ("real", "fake")})


@pytest.fixture(scope="session")
def _tiny_checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from datasets.transforms import Geometry
    from models.registry import create_model
    from utils.checkpoints.file import save_checkpoint

    torch.manual_seed(0)
    model_args = {"width": 4}
    path = tmp_path_factory.mktemp("tiny") / "best.pt"
    description = {
        "model": "cnn",
        "model_args": model_args,
        "state_dict": create_model("cnn", **model_args).state_dict(),
        "geometry": Geometry("crop", 32).to_dict(),
        "thresholds": {"balanced": 0.5, "fpr1": 0.9, "fpr01": 0.95, "unsure_low": 0.4, "unsure_high": 0.6},
        "calibration": {"method": "temperature", "temperature": 2.0},
        "metrics": {},
        "train_args": {},
        "data": [],
        "seed": 0,
        "epoch": 1,
        "git_commit": None,
        "versions": {},
    }
    save_checkpoint(path, description)
    return path


@pytest.fixture
def tiny_checkpoint(_tiny_checkpoint_file: Path, tmp_path: Path) -> Path:
    """A run folder's best.pt: a randomly initialised ``cnn`` of width 4 for 32 px crops, calibrated."""
    folder = tmp_path / "tiny-run"
    folder.mkdir()
    return Path(shutil.copy(_tiny_checkpoint_file, folder / "best.pt"))
