"""Maps of where a detector sees evidence: one call for every method and every family of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.detector import Detector
from utils.errors import UserError
from utils.explanations.cam import FORMULAS, Capture, capture, enlarge, scorecam, steps
from utils.explanations.names import FEATURES, METHODS
from utils.explanations.perturbation import integrated_gradients_map, occlusion, superpixels
from utils.runtime import autocast


@dataclass(frozen=True)
class Budget:
    """How many forward passes the dear methods may spend on an image."""

    score_channels: int = 64
    gradient_steps: int = 16
    occlusion_grid: int = 7
    samples: int = 200
    segments: int = 36


FIGURE_BUDGET = Budget()
TABLE_BUDGET = Budget(score_channels=8, gradient_steps=4, occlusion_grid=5, samples=40, segments=20)


def usable_methods(detector: Detector, layer: str | None = None) -> list[str]:
    """Name the methods that this detector can be explained with."""
    has_layer = bool(layer or detector.cam_layer)
    reads_steps = getattr(detector, "reader", None) is not None
    names = [
        name
        for name, needs in METHODS.items()
        if (detector.has_input_gradient or not needs.gradient)
        and (has_layer or not needs.layer)
        and (reads_steps or not needs.steps)
    ]
    return [*names, *([FEATURES] if hasattr(detector, "estimator") else [])]


def check_usable(detector: Detector, methods: Sequence[str], layer: str | None = None) -> None:
    """Refuse methods that this detector has no means for.

    Raises:
        UserError: one line that names the methods that work.
    """
    usable = usable_methods(detector, layer)
    refused = [method for method in methods if method not in usable]
    if not refused:
        return
    needs = METHODS.get(refused[0])
    if needs is None:
        reason = "it reads no named features"
    elif needs.gradient and not detector.has_input_gradient:
        reason = "it has no gradient"
    else:
        reason = "it reads no sequence" if needs.steps else "it has no feature map; name one with --layer"
    raise UserError(
        f"expected methods that work for {type(detector).__name__}, got {', '.join(refused)}: {reason}; "
        f"use --methods {' '.join(usable)}"
    )


def explain(
    detector: Detector,
    images: Tensor,
    methods: Sequence[str],
    sign: Tensor,
    *,
    layer: str | None = None,
    budget: Budget = FIGURE_BUDGET,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Explain a batch with several methods; the model runs once for all that read the same layer.

    Args:
        images: ``(N, 3, H, W)`` RGB in [0, 1], on the detector's device; the detector is in evaluation mode.
        sign: ``(N,)``, 1 to explain "fake", -1 to explain "real".

    Returns:
        For each method ``(N, H, W)`` float32 on the CPU, not below 0, in the method's own unit: how much a place
        speaks for the target. A map that is zero everywhere means that nothing speaks for it.

    Raises:
        UserError: a method does not work for this detector, or there is no such layer.
    """
    check_usable(detector, methods, layer)
    found: Capture | None = None
    maps = {}
    with autocast(images.device, dtype):
        for method in methods:
            if METHODS[method].layer and found is None:
                found = capture(detector, images, sign, layer)
            heat = _run(detector, images, method, sign, found, budget)
            maps[method] = enlarge(heat.float(), images.shape[-2:]).cpu()
    return maps


def _run(
    detector: Detector, images: Tensor, method: str, sign: Tensor, found: Capture | None, budget: Budget
) -> Tensor:
    if found is not None and method in FORMULAS:
        with torch.autocast(images.device.type, enabled=False):
            return FORMULAS[method](found)
    if found is not None and method == "scorecam":
        return scorecam(detector, images, sign, found, budget.score_channels)
    if method == "steps":
        return steps(detector, images, sign)
    if method == "integrated_gradients":
        return integrated_gradients_map(detector, images, sign, budget.gradient_steps)
    if method == "occlusion":
        return occlusion(detector, images, sign, budget.occlusion_grid)
    return superpixels(detector, images, sign, budget.samples, budget.segments)


def explain_clips(
    detector: Detector, clips: Tensor, method: str, sign: Tensor, layer: str | None = None
) -> tuple[Tensor, Tensor]:
    """Explain clips ``(N, T, 3, H, W)`` of a CNN-LSTM: maps per step ``(N, T, H, W)`` and pooled ``(N, H, W)``."""
    if method not in FORMULAS:
        raise UserError(f"expected {', '.join(FORMULAS)} for clips, got {method!r}")
    heat = FORMULAS[method](capture(detector, clips, sign, layer))
    per_step = enlarge(heat, clips.shape[-2:]).unflatten(0, clips.shape[:2])
    return per_step, per_step.mean(1)


def targets_of(says_fake: Tensor, target: str) -> Tensor:
    """The sign ``(N,)`` that explains "fake" (1), "real" (-1) or, for ``predicted``, each image's own verdict."""
    if target == "predicted":
        return torch.where(says_fake, 1.0, -1.0)
    return torch.full((len(says_fake),), 1.0 if target == "fake" else -1.0, device=says_fake.device)
