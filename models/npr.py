"""A detector of up-sampling traces, which sees only the relations of pixels within each 2 x 2 cell."""

from __future__ import annotations

import timm
from torch import Tensor, nn
from torch.nn import functional as F

from models.detector import Detector
from models.registry import register_model


class NPR(Detector):
    """Neighbouring-pixel residual, then the first two stages of a ResNet-50.

    The input is ``x - up(down(x))`` with nearest-neighbour resampling by two: the difference to the top-left pixel of
    each 2 x 2 cell. It shows the local dependencies that the up-sampling layers of generators create, and no face.

    Tan et al., "Rethinking the Up-Sampling Operations in CNN-based Generative Network for Generalizable Deepfake
    Detection", CVPR 2024 (arXiv 2312.10461). As in the paper, the trunk is a ResNet-50 cut after its second stage;
    unlike there, the stem is a single 3 x 3 convolution with a configurable stride.
    """

    def __init__(self, stem_stride: int, dropout: float) -> None:
        super().__init__(input_size=224, mean=(0.0,) * 3, std=(1.0,) * 3, cam_layer="layer2")
        resnet = timm.create_model("resnet50", pretrained=False, num_classes=0)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=stem_stride, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2 = resnet.get_submodule("layer1"), resnet.get_submodule("layer2")
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, H, W)`` RGB images in [0, 1]; returns logits ``(N,)``."""
        features = self.pool(self.stem(neighbour_residual(images) * 2 / 3))
        features = self.layer2(self.layer1(features))
        return self.head(features.mean((2, 3))).squeeze(1)


def neighbour_residual(images: Tensor) -> Tensor:
    """Subtract from each pixel the top-left one of its 2 x 2 cell; ``(N, 3, H, W)`` with H and W cut to even."""
    images = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2]
    corners = images[..., ::2, ::2]
    return images - F.interpolate(corners, scale_factor=2, mode="nearest")


@register_model
def npr(stem_stride: int = 2, dropout: float = 0.0) -> NPR:
    """Build the neighbouring-pixel detector; ``stem_stride=1`` keeps full resolution in the first stage."""
    return NPR(stem_stride, dropout)
