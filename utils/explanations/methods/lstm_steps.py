"""Relevance of each step of a CNN-LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.explanations.layers import frozen
from utils.explanations.maps import Question
from utils.explanations.registry import register_explanation


@register_explanation("steps", "LSTM steps", needs=("gradient", "sequence"))
def steps(question: Question) -> Tensor:
    """Map ``(N, h, w)`` that adds the relevance of each place's row and column."""
    rows, columns = step_relevance(question)
    return rows[:, :, None] / columns.shape[1] + columns[:, None, :] / rows.shape[1]


def step_relevance(question: Question) -> tuple[Tensor, Tensor]:
    """Contribution of each step to the target: rows ``(N, T * h)`` and columns ``(N, T * w)``, not below 0.

    Gradient times input where the sequence enters the LSTM, as HiResCAM does on maps. The images may be clips
    ``(N, T, 3, H, W)``.
    """
    sequences: list[Tensor] = []

    def cut(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        sequences.append(inputs[0].detach().requires_grad_())
        return (sequences[-1],)

    handle = question.detector.get_submodule("reader.project").register_forward_pre_hook(cut)
    try:
        with frozen(question.detector), torch.enable_grad():
            gradients = torch.autograd.grad(question.score(question.images).sum(), sequences)
    finally:
        handle.remove()
    rows, columns = ((x.detach() * g).sum(2).relu() for x, g in zip(sequences, gradients, strict=True))
    return rows, columns
