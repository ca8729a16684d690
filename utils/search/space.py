"""The search space of tune.py, derived from the model, so that a new model needs no entry here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.errors import UserError

if TYPE_CHECKING:
    import optuna

    from models.detector import Detector

BANKS = ("spectrum", "dct", "srm", "lbp", "color")
CROP_STEP = 32  # px; backbones halve their input at most five times


@dataclass(frozen=True)
class Dimension:
    """One setting: a list of ``choices``, or a range from ``low`` to ``high`` (integers if both are).

    ``name`` is a flag of train.py without dashes, or an argument of the model if ``is_model_arg``.
    """

    name: str
    default: Any
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    is_model_arg: bool = False

    def suggest(self, trial: optuna.Trial) -> Any:
        """Draw a value."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def describe(self) -> str:
        """Describe the setting, to compare one search space with another."""
        if self.choices:
            return f"{self.name} of {', '.join(map(str, self.choices))}"
        return f"{self.name} in [{self.low:g}, {self.high:g}]{' (log)' if self.log else ''}"


Space = Sequence[Dimension]

# Arguments that any model may have, with its own default.
MODEL_ARGUMENTS: dict[str, dict[str, Any]] = {
    "dropout": {"low": 0.0, "high": 0.6},
    "trees": {"low": 100, "high": 800, "log": True},
    "rounds": {"low": 200, "high": 1600, "log": True},
    "leaves": {"low": 3, "high": 31, "log": True},
    "learning_rate": {"low": 0.01, "high": 0.2, "log": True},
    "c": {"low": 1e-4, "high": 1.0, "log": True},
}
FOREST_DEPTHS, BOOSTING_DEPTHS = (0, 4, 8, 16, 32), (1, 2, 3, 4, 6)  # 0: unlimited


def build_space(
    detector: Detector, arguments: Mapping[str, Any], size: int, is_pretrained: bool, n_stages: int
) -> list[Dimension]:
    """List all settings of a model.

    Args:
        arguments: names and defaults of the model's arguments.
        size: input size in px.
        n_stages: number of stages of the backbone, for freezing.
    """
    own = [
        Dimension(name, arguments[name], is_model_arg=True, **settings)
        for name, settings in MODEL_ARGUMENTS.items()
        if name in arguments
    ]
    if detector.is_classical:
        depths = FOREST_DEPTHS if "trees" in arguments else BOOSTING_DEPTHS
        own += [Dimension("depth", arguments["depth"], depths, is_model_arg=True)] if "depth" in arguments else []
        return own + [Dimension(bank, True, (True, False), is_model_arg=True) for bank in BANKS]
    space = [
        Dimension("lr", 1e-3, low=1e-4, high=1e-2, log=True),
        Dimension("weight-decay", 0.05, low=1e-3, high=0.3, log=True),
        Dimension("augmentation", "light", ("none", "light", "forensic")),
    ]
    sides = (*(side for side in range(CROP_STEP, size, CROP_STEP) if 2 * side >= size), size)
    if detector.any_size and len(sides) > 1:
        space.append(Dimension("train-size", size, sides))
    if is_pretrained:
        frozen = tuple(str(n) for n in sorted({n_stages // 3, 2 * n_stages // 3} - {0, n_stages}))
        space.append(Dimension("freeze", "none", ("none", *frozen, "backbone")))
    return space + own


def narrow_space(space: Space, wanted: Sequence[str], fixed: Sequence[str]) -> list[Dimension]:
    """Keep the ``wanted`` settings (all if none is named) without those that are ``fixed`` on the command line.

    Raises:
        UserError: the model lacks a setting, or none is left.
    """
    names = [dimension.name for dimension in space]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UserError(f"expected --search of {', '.join(names)} for this model, got {', '.join(unknown)}")
    kept = [d for d in space if (not wanted or d.name in wanted) and d.name not in fixed]
    if not kept:
        raise UserError(
            f"expected a setting to search that the flags do not fix ({', '.join(names)}), found none to search"
        )
    return kept


def draw(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Draw a value of every setting."""
    return {dimension.name: dimension.suggest(trial) for dimension in space}


def default_values(space: Space) -> dict[str, Any]:
    """Return the defaults of train.py and the model, which are the first trial."""
    return {dimension.name: dimension.default for dimension in space}


def to_flags(values: Mapping[str, Any], space: Space, model_args: Mapping[str, Any]) -> list[str]:
    """Turn values and the fixed ``model_args`` into flags of train.py."""
    flags: list[str] = []
    arguments = dict(model_args)
    own = {dimension.name for dimension in space if dimension.is_model_arg}
    banks = {bank: values[bank] for bank in BANKS if bank in values}
    if banks:  # a draw without any bank means all of them
        chosen = [bank for bank in BANKS if banks.get(bank, True)] or list(BANKS)
        arguments["features"] = ",".join(chosen)
    for name, value in values.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        if name not in own:
            flags += [f"--{name}", text]
        elif name not in BANKS:
            arguments[name] = text
    return flags + (["--model-args", *(f"{key}={value}" for key, value in arguments.items())] if arguments else [])
