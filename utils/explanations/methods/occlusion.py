"""Occlusion: blur one window after the other and measure the change of the logit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils.explanations.maps import Question
from utils.explanations.registry import register_explanation


@register_explanation("occlusion", "Occlusion", table_options={"grid": 5})
@torch.inference_mode()
def occlusion(question: Question, grid: int = 7) -> Tensor:
    """How far the target falls when a window is blurred, ``(N, H, W)``; ``grid * grid`` forward passes.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014 (arXiv 1311.2901).
    """
    images, fill = question.images, question.blurred
    whole = question.score(images)
    total = torch.zeros(len(images), *images.shape[-2:], device=images.device)
    cover = torch.zeros(images.shape[-2:], device=images.device)
    for top, bottom in spans(images.shape[-2], grid):
        for left, right in spans(images.shape[-1], grid):
            changed = images.clone()
            changed[..., top:bottom, left:right] = fill[..., top:bottom, left:right]
            total[:, top:bottom, left:right] += (whole - question.score(changed))[:, None, None]
            cover[top:bottom, left:right] += 1
    return (total / cover).relu()


def spans(length: int, grid: int) -> list[tuple[int, int]]:
    """Cut a side into ``grid`` windows (first, last + 1), each overlapping the next by half."""
    edges = np.linspace(0, length, grid + 2).round().astype(int).tolist()
    return [(first, max(last, first + 1)) for first, last in zip(edges[:-2], edges[2:], strict=True)]
