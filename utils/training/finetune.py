"""Transfer learning: stages of a network, freezing, and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.detector import Detector
from utils.errors import UserError


def stages(detector: Detector) -> list[tuple[str, list[nn.Parameter]]]:
    """Group the parameters into named stages from input to output; the last one is the head.

    The stages of a timm backbone are those of its ``group_matcher`` (stem, blocks, final layers). For other detectors
    they are the direct children, in the order of their definition.
    """
    head = {id(parameter) for parameter in detector.head_parameters()}
    backbone = getattr(detector, "backbone", None)
    named = [(name, p) for name, p in detector.named_parameters() if id(p) not in head]
    if backbone is not None and hasattr(backbone, "group_matcher"):
        from timm.models import group_parameters

        groups = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=True)
        inside = {"backbone." + name: stage for name, stage in groups.items()}
        keys = {name: f"stage {inside[name]}" if name in inside else "other" for name, _ in named}
        order = sorted(set(inside.values()))
        names = [f"stage {number}" for number in order] + (["other"] if "other" in keys.values() else [])
    else:
        keys = {name: name.split(".")[0] for name, _ in named}
        names = list(dict.fromkeys(keys.values()))
    result = [(stage, [p for name, p in named if keys[name] == stage]) for stage in names]
    return [*[(s, ps) for s, ps in result if ps], ("head", detector.head_parameters())]


def freeze(detector: Detector, value: str) -> None:
    """Freeze none, the backbone, or the first ``value`` stages, and unfreeze the others, except for what never trains.

    Raises:
        UserError: it has another value, or is more stages than the model has before its head.
    """
    parts = stages(detector)
    available = len(parts) - 1
    if value in ("none", "backbone"):
        count = 0 if value == "none" else available
    elif value.isdecimal():
        count = int(value)
    else:
        raise UserError(f"expected --freeze none, backbone or a number of stages, got {value!r}")
    if count > available:
        names = ", ".join(name for name, _ in parts[:-1])
        raise UserError(f"expected --freeze at most {available} for this model ({names}), got {value}")
    for number, (_, parameters) in enumerate(parts):
        for parameter in parameters:
            parameter.requires_grad_(number >= count)
    for parameter in detector.fixed_parameters():
        parameter.requires_grad_(False)


def train_mode(detector: Detector) -> None:
    """Enter training mode, but keep frozen batch norms in evaluation mode.

    Otherwise their running averages would change, and a frozen layer would not remain the same function.
    """
    detector.train()
    is_frozen = False
    for module in reversed(list(detector.modules())):  # a norm without parameters follows the layer after it
        own = list(module.parameters(recurse=False))
        is_frozen = not any(parameter.requires_grad for parameter in own) if own else is_frozen
        if isinstance(module, _BatchNorm) and is_frozen:
            module.eval()


def parameter_groups(detector: Detector, weight_decay: float) -> Iterator[dict]:
    """Yield optimiser groups: matrices with weight decay, vectors (biases, norms) without."""
    parameters = list(detector.parameters())
    yield {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay}
    yield {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}


def warmup_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the factor on the learning rate: a linear rise over ``warmup_steps``, then half a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
