"""Transfer learning: which parts train, and how fast each of them does."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.detector import Detector
from utils.errors import UserError


def stages(detector: Detector) -> list[tuple[str, list[nn.Parameter]]]:
    """Group the parameters into stages from input to output; the last one is the head.

    For timm backbones the stages are timm's own (``group_matcher``: stem, blocks, final layers); for other
    detectors they are the direct children in the order of their definition.
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


def frozen_stages(value: str, detector: Detector) -> int:
    """Turn --freeze (none, backbone or a number) into a number of stages.

    Raises:
        UserError: it is none of these, or more than the model has before its head.
    """
    available = len(stages(detector)) - 1
    if value in ("none", "backbone"):
        return 0 if value == "none" else available
    if not value.isdecimal():
        raise UserError(f"expected --freeze none, backbone or a number of stages, got {value!r}")
    if int(value) > available:
        names = ", ".join(name for name, _ in stages(detector)[:-1])
        raise UserError(f"expected --freeze at most {available} for this model ({names}), got {value}")
    return int(value)


def set_frozen(detector: Detector, count: int) -> None:
    """Freeze the first ``count`` stages and thaw the others."""
    for number, (_, parameters) in enumerate(stages(detector)):
        for parameter in parameters:
            parameter.requires_grad_(number >= count)


def train_mode(detector: Detector) -> None:
    """Enter training mode, but keep frozen batch norms in evaluation mode.

    A frozen layer must stay the function that it was: running averages that went on moving would change it.
    """
    detector.train()
    is_frozen = False
    for module in reversed(list(detector.modules())):  # a norm without parameters goes with the layer that follows it
        own = list(module.parameters(recurse=False))
        is_frozen = not any(parameter.requires_grad for parameter in own) if own else is_frozen
        if isinstance(module, _BatchNorm) and is_frozen:
            module.eval()


def parameter_groups(
    detector: Detector, weight_decay: float, layer_decay: float = 1.0, head_lr: float = 1.0
) -> Iterator[dict]:
    """Yield optimiser groups with their ``lr_scale``: ``layer_decay`` to the power of the distance from the head.

    Vectors (biases, norms) get no weight decay. Layer-wise decay as in Clark et al., ELECTRA, ICLR 2020
    (arXiv 2003.10555); ``head_lr`` multiplies the rate of the head alone.
    """
    parts = stages(detector)
    for number, (name, parameters) in enumerate(parts):
        scale = head_lr if name == "head" else layer_decay ** (len(parts) - 1 - number)
        for decay, chosen in (
            (weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                yield {"params": chosen, "weight_decay": decay, "lr_scale": scale, "stage": name}


def mix_images(
    images: torch.Tensor, labels: torch.Tensor, mixup: float, cutmix: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each image with another one of the batch (mixup) or paste a rectangle of it (cutmix); labels follow.

    Zhang et al., mixup, ICLR 2018 (arXiv 1710.09412); Yun et al., CutMix, ICCV 2019 (arXiv 1905.04899). Each is the
    alpha of a beta distribution and 0 turns it off; if both are on, a coin decides per batch. Both blur or cut the
    traces that a detector of fakes lives on, which is why they are off by default.
    """
    if not mixup and not cutmix:
        return images, labels
    use_cutmix = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    alpha = cutmix if use_cutmix else mixup
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other = torch.randperm(len(images), device=images.device)
    if not use_cutmix:
        return images * share + images[other] * (1 - share), labels * share + labels[other] * (1 - share)
    height, width = images.shape[-2:]
    box_h, box_w = int(height * (1 - share) ** 0.5), int(width * (1 - share) ** 0.5)
    top, left = int(torch.randint(height - box_h + 1, ())), int(torch.randint(width - box_w + 1, ()))
    mixed = images.clone()
    mixed[..., top : top + box_h, left : left + box_w] = images[other][..., top : top + box_h, left : left + box_w]
    share = 1 - box_h * box_w / (height * width)
    return mixed, labels * share + labels[other] * (1 - share)


def warmup_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """Factor on the learning rate: a linear rise over ``warmup_steps``, then half a cosine down to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
