"""The optimiser's parameter groups and its learning rate as a function of the step."""

from __future__ import annotations

import math

import torch

from models import Detector


def make_optimizer(detector: Detector, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101) with decay on matrices and kernels only."""
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr)


def warmup_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """Factor on the learning rate: a linear rise over ``warmup_steps``, then half a cosine down to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
