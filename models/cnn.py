"""A small CNN on the local spectrum of a face: log-magnitude block DCT first, then convolutions.

Generators leave traces in the local energy of each spatial frequency, in luma and in chroma. Frank et al.,
"Leveraging Frequency Analysis for Deep Fake Image Recognition", ICML 2020 (arXiv 2003.08685), classify the DCT of whole
images; Gueguen et al., "Faster Neural Networks Straight from JPEG", NeurIPS 2018, feed 8x8 block DCT to a residual
network. Here the windows are 16x16 with half overlap, only magnitudes are kept, and ordinary convolutions follow.

Validation AUC on 140k Real and Fake Faces (256 px JPEG; 997 training, 237 validation images) of logistic regression on
the mean and deviation of the log-magnitudes, and of this network (one seed, 8 epochs, 95 % interval about +-0.055):

    regression, 8x8 / 16x16 windows                          0.751 / 0.809
    regression, 16x16 windows, luma / chroma only            0.757 / 0.699
    160 px training crops on the JPEG grid / at any offset   0.780 / 0.723
    224 px training crops on the 8-pixel / 16-pixel grid     0.822 / 0.833

Therefore, train on large crops at offsets that are multiples of 16, the unit of JPEG with halved chroma.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.detector import Detector
from models.features.bank import YCBCR_FROM_RGB
from models.registry import register_model

BLOCK = 16  # side of the DCT window, pixels
STRIDE = 8  # step between windows: the grid of an 8x8 JPEG block, half overlap for the 16-pixel window


def dct_filters(size: int) -> Tensor:
    """Return the orthonormal two-dimensional DCT-II basis as ``(size * size, size, size)`` filters."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    position = torch.arange(size, dtype=torch.float64)[None]
    basis = torch.cos(math.pi * (2 * position + 1) * frequency / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return torch.einsum("ai,bj->abij", basis, basis).reshape(size * size, size, size).float()


class SpectralStem(nn.Module):
    """Fixed front end: YCbCr, then the log-magnitude of every block-DCT coefficient, one channel each.

    ``(N, 3, H, W)`` in grey levels around zero becomes ``(N, 768, H // 8 - 1, W // 8 - 1)``. The magnitude shows the
    local energy of a frequency (generator and up-sampling traces); the phase, which holds the face, is dropped.
    """

    filters: Tensor
    to_ycbcr: Tensor

    def __init__(self) -> None:
        super().__init__()
        cells = BLOCK // STRIDE
        filters = dct_filters(BLOCK).reshape(-1, cells, STRIDE, cells, STRIDE).permute(0, 2, 4, 1, 3)
        # Not persistent: a checkpoint does not store constants of the architecture.
        self.register_buffer("filters", filters.reshape(-1, STRIDE * STRIDE, cells, cells), persistent=False)
        self.register_buffer("to_ycbcr", torch.tensor(YCBCR_FROM_RGB).view(3, 3, 1, 1), persistent=False)
        self.out_channels = 3 * BLOCK * BLOCK
        # Standardises each frequency, because the few low ones dominate otherwise; the next layer learns the scale.
        self.norm = nn.BatchNorm2d(self.out_channels, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        height, width = height // STRIDE * STRIDE, width // STRIDE * STRIDE
        planes = F.conv2d(images[:, :, :height, :width], self.to_ycbcr)
        planes = planes.reshape(count * 3, 1, height, width)
        # A 16x16 convolution of stride 8 on one channel, written as 2x2 on 64 channels to use matrix units.
        cells = F.pixel_unshuffle(planes, STRIDE).contiguous(memory_format=torch.channels_last)
        coefficients = F.conv2d(cells, self.filters)
        log_magnitude = torch.log(coefficients.abs() + 1)
        return self.norm(log_magnitude.reshape(count, self.out_channels, *log_magnitude.shape[2:]))


def conv_block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, initialised as the identity (the last scale is zero)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_block(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features + self.norm(self.second(self.first(features))))


class CNN(Detector):
    """Spectral stem, small residual trunk, pooling of mean and standard deviation, one linear layer.

    Shapes for a 256 px image: stem ``(N, 768, 31, 31)``, trunk ``(N, width, 31, 31)`` then
    ``(N, 2 * width, 16, 16)``, pooled ``(N, 4 * width)``, logit ``(N,)``. Any H, W >= 32.
    """

    def __init__(self, width: int = 64, dropout: float = 0.3) -> None:
        # Grey levels around zero: half-integers up to 127.5 are exact in bfloat16, fractions of 1 are not.
        super().__init__(input_size=256, mean=(0.5,) * 3, std=(1 / 255,) * 3, cam_layer="trunk")
        self.stem = SpectralStem()
        self.trunk = nn.Sequential(
            conv_block(self.stem.out_channels, width, kernel=1),
            ResidualBlock(width),
            conv_block(width, 2 * width, stride=2),
            ResidualBlock(2 * width),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(self.stem(self.normalize(images))).float()
        # Both the mean and the spread over the face matter; variances in half precision would lose the spread.
        mean = features.mean((2, 3))
        deviation = ((features - mean[:, :, None, None]).square().mean((2, 3)) + 1e-4).sqrt()
        return self.head(self.dropout(torch.cat([mean, deviation], dim=1))).squeeze(1)


@register_model
def cnn(width: int = 64, dropout: float = 0.3) -> CNN:
    """A small CNN on local log spectra, which trains from scratch in minutes on a CPU."""
    return CNN(width=width, dropout=dropout)
