"""The usual baseline of the field: three convolutions, flatten, one dense layer."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from models.detector import Detector
from models.registry import register_model
from utils.errors import UserError


class CNNBaseline(Detector):
    """Convolutions of 32, 64 and 128 channels with 2 x 2 max pooling, flatten, dense 256, one logit.

    This is the plain network that most write-ups on the 140k set compare against (published accuracy at 256 px:
    0.9431). Nearly all its parameters are in the dense layer, which ties it to one input size.
    """

    any_size = False

    def __init__(self, input_size: int, dropout: float) -> None:
        super().__init__(input_size, mean=(0.5,) * 3, std=(0.5,) * 3, cam_layer="features.8")
        layers: list[nn.Module] = []
        for before, after in pairwise((3, 32, 64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Flatten(), nn.Linear(128 * (input_size // 8) ** 2, 256), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(256, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, input_size, input_size)`` RGB images in [0, 1]; returns logits ``(N,)``."""
        if images.shape[-2:] != (self.input_size, self.input_size):
            raise UserError(
                f"expected {self.input_size} px images for this cnn_baseline, got {tuple(images.shape[-2:])}; "
                "build it with --model-args input_size=N"
            )
        return self.head(self.dense(self.features(self.normalize(images)))).squeeze(1)


@register_model
def cnn_baseline(input_size: int = 256, dropout: float = 0.5) -> CNNBaseline:
    """Build the baseline for square inputs of ``input_size`` pixels."""
    return CNNBaseline(input_size, dropout)
