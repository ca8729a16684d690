"""The state of a training run, saved after each epoch so that an interrupted run resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from models.detector import Detector
from utils.checkpoints.base import assign_bases
from utils.checkpoints.file import describe_checkpoint, load_checkpoint, save_checkpoint
from utils.distributed import gather, team, team_size
from utils.errors import UserError
from utils.files import is_first
from utils.training.distillation import Teacher
from utils.training.recipe import Recipe, recipe_values
from utils.training.token_cache import TokenCache

MAX_GRADIENT = 1.0  # norm to which gradients are clipped


class WeightAverage(ModelEmaV3):
    """The moving average of the trained weights; frozen weights are shared with the detector."""

    def __init__(self, detector: Detector, decay: float) -> None:
        super().__init__(detector, decay=decay, use_warmup=True)
        fixed = {id(parameter) for parameter in detector.fixed_parameters()}
        for own, parameter in zip(self.module.parameters(), detector.parameters(), strict=True):
            if id(parameter) in fixed:
                own.data = parameter.data

    def apply_update_(self, model: torch.nn.Module, decay: float) -> None:
        """Move the average towards the weights of the model, without touching the tensors that they share."""
        pairs = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        changing = [(own, new) for own, new in pairs if own.data_ptr() != new.data_ptr()]
        floats = [pair for pair in changing if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floats], [new for _, new in floats], weight=1 - decay)
        for own, new in changing:
            if not own.is_floating_point():
                own.copy_(new)


@dataclass
class TrainingState:
    """The moving parts of a run; ``history`` has one dict per finished epoch.

    ``best_score`` is the selection score of the best epoch: its AUC, or in adversarial training its accuracy under PGD.
    ``valid_tokens`` are the cached tokens of the validation listings in training on tokens; then the teacher's answers
    are cached with those of training, and ``teacher`` is None.
    """

    detector: Detector
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    dtype: torch.dtype = torch.float32
    teacher: Teacher | None = None
    valid_tokens: list[TokenCache] | None = None
    epoch: int = 0
    step: int = 0
    best_score: float = float("-inf")
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """The device of the detector."""
        return next(self.detector.parameters()).device

    def averaged(self) -> Detector:
        """Return the detector to validate and release: the moving average of the weights if there is one."""
        return self.ema.module if self.ema else self.detector

    def take_step(self, lr: float) -> None:
        """Clip the gradients, update the weights at this learning rate, and update their moving average."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.detector.parameters(), MAX_GRADIENT)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.detector, step=self.step)
        self.step += 1

    def go_back(self, path: Path) -> None:
        """Load the weights of best.pt and reset the optimiser."""
        weights = load_checkpoint(path)["state_dict"]
        for detector in filter(None, (self.detector, self.ema.module if self.ema else None)):
            detector.load_state_dict(weights)
        self.optimizer.state.clear()

    def save(self, path: Path, description: dict[str, Any]) -> None:
        """Write last.pt: a checkpoint with the state of optimiser, scaler, average and random numbers."""
        training = {
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": gather(self._random_state()),  # one per process
            **{name: getattr(self, name) for name in COUNTERS},
        }
        save_checkpoint(path, {**description, "state_dict": self.detector.state_dict(), "training": training})

    def restore(self, checkpoint: dict[str, Any], data: list[dict], folder: Path) -> None:
        """Continue from last.pt of the run in ``folder``; ``data`` describes the images of the resumed run.

        Raises:
            UserError: the run was trained on other images.
        """
        own = [entry for entry in checkpoint["data"] if not entry.get("earlier")]
        if [entry["fingerprint"] for entry in data] != [entry["fingerprint"] for entry in own]:
            raise UserError(
                f"expected the images of the interrupted run {folder}, found others in "
                f"{', '.join(sorted({entry['dataset'] for entry in data}))}; start a new run in another --output-dir"
            )
        remove_half_written(folder)
        saved = checkpoint["training"]
        self.detector.load_state_dict(checkpoint["state_dict"])
        assign_bases(self.detector, checkpoint.get("base", []))
        self.detector.earlier_data = [entry for entry in checkpoint["data"] if entry.get("earlier")]
        if self.ema:
            self.ema.module.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        for name in COUNTERS:
            setattr(self, name, saved[name])
        random_state = saved["rng"][team.rank]
        torch.set_rng_state(random_state["cpu"])
        if "cuda" in random_state and self.device.type == "cuda":
            torch.cuda.set_rng_state(random_state["cuda"], self.device)

    def _random_state(self) -> dict[str, torch.Tensor]:
        cuda = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"cpu": torch.get_rng_state(), **cuda}


COUNTERS = ("epoch", "step", "best_score", "best_epoch", "history")


def describe_run(recipe: Recipe, detector: Detector, data: list[dict], epoch: int) -> dict[str, Any]:
    """Return everything in a checkpoint except its weights."""
    return describe_checkpoint(detector, asdict(recipe), [*data, *detector.earlier_data], recipe.seed, epoch)


def remove_run(folder: Path) -> None:
    """Remove the files of an old run that --overwrite replaces, so that they cannot pass for those of a failed run."""
    for name in ("best.pt", "last.pt", "log.csv"):
        if is_first():
            (folder / name).unlink(missing_ok=True)


def remove_half_written(folder: Path) -> None:
    """Remove what a killed run was writing; of several processes, only the first may, since it writes there again."""
    if is_first():
        for stale in folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)


def load_run(folder: Path) -> dict[str, Any]:
    """Read last.pt of an interrupted run.

    Raises:
        UserError: there is none, it is damaged, train.py of another version wrote it, or another number of processes
            trained the run: its batches and its schedule depend on them.
    """
    path = folder / "last.pt"
    if not path.is_file():
        # A finished run without its last.pt, or one that was killed in its first epoch.
        advice = "pass --overwrite instead of" if (folder / "best.pt").is_file() else "drop"
        raise UserError(f"expected an interrupted run in {folder}, found no last.pt; {advice} --resume to start one")
    refusal = UserError(
        f"expected to resume from {path}, found a damaged file or one of another version; start again with --overwrite"
    )
    try:
        checkpoint = load_checkpoint(path)
    except UserError:
        raise refusal from None
    names = {item.name for item in fields(Recipe)}
    if "rng" not in checkpoint.get("training", {}) or checkpoint.get("train_args", {}).keys() != names:
        raise refusal
    processes = len(checkpoint["training"]["rng"])
    if processes != team_size():
        raise UserError(
            f"expected the {processes} processes of the interrupted run, got {team_size()}; resume with "
            + (f"torchrun --nproc-per-node {processes} train.py" if processes > 1 else "python train.py")
        )
    return checkpoint


def recipe_of_run(checkpoint: Mapping[str, Any], given: Mapping[str, Any]) -> Recipe:
    """Return the recipe in the last.pt of an interrupted run.

    Raises:
        UserError: a flag in ``given`` contradicts the run.
    """
    saved = checkpoint["train_args"]
    for key, value in recipe_values(given).items():
        if value != saved.get(key):
            raise UserError(
                f"expected --{key.replace('_', '-')} as in the interrupted run ({saved.get(key)}), got {value}; drop "
                "the flag or start a new run in another --output-dir"
            )
    return Recipe(**saved)
