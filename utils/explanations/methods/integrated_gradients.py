"""Integrated gradients from the blurred image to the image."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.explanations.layers import frozen
from utils.explanations.maps import Question, blurred
from utils.explanations.registry import register_explanation

SMOOTH = 128 / 48  # px at 128 px, sigma: single pixels are noise, their neighbourhoods are not


@register_explanation(
    "integrated_gradients", "Integrated gradients", needs=("gradient",), table_options={"gradient_steps": 4}
)
def integrated_gradients(question: Question, gradient_steps: int = 16) -> Tensor:
    """Smoothed attributions that support the target, ``(N, H, W)``."""
    return blurred(attributions(question, gradient_steps)[:, None], SMOOTH)[:, 0].relu()


def attributions(question: Question, gradient_steps: int) -> Tensor:
    """Signed attribution of each pixel ``(N, H, W)``; the sum is the target minus the target of the blurred image.

    Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017 (arXiv 1703.01365), midpoint rule.
    Deviation: the path starts at the blurred image, not at black.
    """
    start, change = question.blurred, question.images - question.blurred
    total = torch.zeros_like(change)
    with frozen(question.detector), torch.enable_grad():
        for step in range(gradient_steps):
            point = (start + (step + 0.5) / gradient_steps * change).requires_grad_()
            total += torch.autograd.grad(question.score(point).sum(), point)[0]
    return (change * total / gradient_steps).sum(1)
