"""Everything that an interrupted training run needs to go on exactly where it stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from models.detector import Detector
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.runtime import git_commit, versions
from utils.training.distillation import Teacher

# Flags that say where and whether to run, not what to compute; a resumed run may change them.
FREE_ON_RESUME = (
    "resume",
    "overwrite",
    "output_dir",
    "device",
    "workers",
    "threads",
    "list_models",
    "feature_cache",
    "cache",
)
NOT_GIVEN = object()


@dataclass
class TrainingState:
    """The moving parts of a run; ``frozen`` counts stages, ``history`` has one dict per finished epoch.

    ``best_auc`` is the selection score of the best epoch: its AUC, or its accuracy under PGD in adversarial training.
    """

    detector: Detector
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    frozen: int = 0
    epoch: int = 0
    step: int = 0
    best_auc: float = float("-inf")
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    waited: float = 0.0  # seconds for data in the last epoch
    teacher: Teacher | None = None

    def scored_detector(self) -> Detector:
        """The detector that is validated and released: the averaged weights where there are any."""
        return self.ema.module if self.ema else self.detector

    def go_back(self, path: Path) -> None:
        """Take the weights of an earlier epoch, those of best.pt, and forget where the optimiser was heading."""
        weights = load_checkpoint(path)["state_dict"]
        for detector in filter(None, (self.detector, self.ema.module if self.ema else None)):
            detector.load_state_dict(weights)
        self.optimizer.state.clear()

    def save(self, path: Path, description: dict[str, Any]) -> None:
        """Write last.pt: an ordinary checkpoint plus the state of optimiser, scaler, average and random numbers."""
        save_checkpoint(
            path,
            {
                **description,
                "state_dict": self.detector.state_dict(),
                "training": {
                    "ema": self.ema.module.state_dict() if self.ema else None,
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "epoch": self.epoch,
                    "step": self.step,
                    "best_auc": self.best_auc,
                    "best_epoch": self.best_epoch,
                    "history": self.history,
                    "torch_rng": torch.get_rng_state(),
                    "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                },
            },
        )

    def restore(self, path: Path, data: list[dict]) -> None:
        """Continue from last.pt; ``data`` describes the images that the run will see from now on.

        Raises:
            UserError: the file is no last.pt, or it was trained on other images.
        """
        checkpoint = load_checkpoint(path)
        saved = checkpoint.get("training")
        if saved is None:
            raise UserError(f"expected the last.pt of an interrupted run at {path}, found a finished checkpoint")
        if [entry["fingerprint"] for entry in data] != [entry["fingerprint"] for entry in checkpoint["data"]]:
            raise UserError(
                f"expected the images of the interrupted run {path.parent}, found others in "
                f"{', '.join(sorted({entry['dataset'] for entry in data}))}; start a new run in another --output-dir"
            )
        for stale in path.parent.glob(".*.tmp"):  # half-written files of a save that was killed
            stale.unlink(missing_ok=True)
        self.detector.load_state_dict(checkpoint["state_dict"])
        if self.ema:
            self.ema.module.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        for name in ("epoch", "step", "best_auc", "best_epoch", "history"):
            setattr(self, name, saved[name])
        torch.set_rng_state(saved["torch_rng"])
        if saved["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["cuda_rng"])


def describe_run(args: argparse.Namespace, detector: Detector, data: list[dict], epoch: int) -> dict[str, Any]:
    """Everything in a checkpoint but its weights; thresholds and calibration are filled in at the end."""
    return {
        "model": args.model,
        "model_args": dict(args.model_args),
        "geometry": detector.geometry.to_dict(),
        "thresholds": None,
        "calibration": None,
        "metrics": {},
        "train_args": plain_settings(args),
        "data": data,
        "seed": args.seed,
        "epoch": epoch,
        "git_commit": git_commit(),
        "versions": versions(),
    }


def plain_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as plain values that the safe checkpoint loader accepts."""
    return {
        key: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, list) else value
        for key, value in vars(args).items()
    }


def settings_of_run(folder: Path, parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Take the flags of an interrupted run from its last.pt, so that --resume needs no other flag than the folder.

    Raises:
        UserError: there is nothing to resume, or a flag given now contradicts the run.
    """
    if not (folder / "last.pt").is_file():
        raise UserError(f"expected an interrupted run in {folder}, found no last.pt; leave out --resume to start one")
    saved = load_checkpoint(folder / "last.pt")["train_args"]
    saved["model_args"] = [tuple(pair) for pair in saved["model_args"]]
    defaults = vars(parser.parse_args([]))
    # A flag that is given with its default value is told from one that is not given.
    given = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, NOT_GIVEN))))
    for key, value in given.items():
        if value is NOT_GIVEN:
            continue
        if key in FREE_ON_RESUME:
            saved[key] = value
        elif value != saved.get(key):
            flag = "--" + key.replace("_", "-")
            raise UserError(
                f"expected {flag} as in the interrupted run ({saved.get(key)}), got {value}; drop the flag "
                "or start a new run in another --output-dir"
            )
    return argparse.Namespace(**{**defaults, **saved})
