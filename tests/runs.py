"""Training runs of seconds, how they are killed, and how two of them are compared."""

import shlex
from pathlib import Path
from typing import Any

TINY = shlex.split(  # a training run of seconds on the images of make_faces
    "--model cnn_baseline --model-args input_size=32 --image-size 32 --batch-size 8 --epochs 3 --threads 1"
)
TIMES = ("train_seconds", "images_per_second", "data_share")


class Killed(BaseException):
    """Ends a run as abruptly as possible inside this process."""


def assert_same(found: Any, wanted: Any, where: str = "") -> None:
    """Compare nested plain values and tensors to the last bit; times are left out."""
    import torch

    assert type(found) is type(wanted), where
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), where
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted.keys() - set(TIMES):
            assert_same(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, f"{where}/{place}")
    else:
        assert found == wanted, where


def assert_same_run(found: Path, wanted: Path) -> None:
    """Two run folders hold the same weights, averaged weights, optimiser, random state, history and thresholds."""
    from utils.checkpoints.file import load_checkpoint

    assert not list(found.glob(".*")), "half-written files are left"
    for name, keys in (
        ("last.pt", ("state_dict", "training", "epoch")),
        ("best.pt", ("state_dict", "epoch", "thresholds", "calibration")),
    ):
        one, other = load_checkpoint(found / name), load_checkpoint(wanted / name)
        for key in keys:
            assert_same(one[key], other[key], f"{name}/{key}")
    assert len((found / "log.csv").read_text().splitlines()) == len((wanted / "log.csv").read_text().splitlines())
