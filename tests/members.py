"""Members of ensembles for tests, and how ensemble.py joins them."""

from pathlib import Path

import numpy as np
import torch

import ensemble
from datasets.transforms import Geometry
from models.registry import create_model
from utils.checkpoints.file import save_checkpoint


def write_member(
    folder: Path,
    name: str,
    seed: int = 0,
    geometry: Geometry | None = None,
    calibration: dict | None = None,
    width: int = 4,
) -> Path:
    """Write the checkpoint of a random ``cnn``; it says that it was trained on the sets ``name`` and ``shared``."""
    sets = [(name, "train"), ("shared", "train"), (name, "valid")]
    torch.manual_seed(seed)
    file = folder / name / "best.pt"
    save_checkpoint(
        file,
        {
            "model": "cnn",
            "model_args": {"width": width},
            "state_dict": create_model("cnn", width=width).state_dict(),
            "geometry": (geometry or Geometry("crop", 32)).to_dict(),
            "thresholds": None,
            "calibration": calibration,
            "train_args": {},
            "data": [{"dataset": name, "split": split, "fingerprint": name} for name, split in sets],
        },
    )
    return file


def write_classical_member(folder: Path) -> Path:
    """Write the checkpoint of a logistic regression that tells dark from bright."""
    detector = create_model("logistic_regression", features="color")
    x = detector.features(torch.rand(20, 3, 32, 32) * torch.linspace(0.1, 1, 20).view(-1, 1, 1, 1))
    y = np.arange(20) // 10
    detector.fit((x, y), (x, y), 0)
    file = folder / "classical" / "best.pt"
    save_checkpoint(
        file,
        {
            "model": "logistic_regression",
            "model_args": {"features": "color"},
            "state_dict": detector.state_dict(),
            "geometry": Geometry("crop", 32).to_dict(),
            "thresholds": None,
            "calibration": None,
        },
    )
    return file


def join_members(data: Path, folder: Path, method: str, *files: Path, output: str = "joined") -> Path:
    """Run ensemble.py on checkpoints; returns the path of the result."""
    argv = ["--checkpoint", *map(str, files), "--data", str(data), "--method", method]
    result = ensemble.main([*argv, "--output-dir", str(folder / output), "--device", "cpu"])
    assert result["exit_code"] == 0
    assert result["rows"][0]["n_real"] == result["rows"][0]["n_fake"] == 4
    return Path(result["checkpoint"])
