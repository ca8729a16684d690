"""A detector whose robust accuracy is known."""

import torch
from torch import nn

from models.detector import Detector


class Linear(Detector):
    """A detector whose robust accuracy is known: the logit is w . (x - 0.5) + bias."""

    def __init__(self, scale: float = 1.0, bias: float = 0.0) -> None:
        super().__init__(input_size=16, mean=(0.5,) * 3, std=(1.0,) * 3)
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(scale * torch.randn(3, 8, 8, generator=generator))
        self.bias = bias

    def forward(self, images):
        return (self.normalize(images) * self.weight).sum((1, 2, 3)) + self.bias
