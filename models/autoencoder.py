"""A small autoencoder, used to put the traces of neural decoders on photographs; not a detector.

Two layers halve the sides and two transposed convolutions double them. Their 3 px kernels at stride 2 overlap unevenly,
which produces a pattern of period 2 and 4 px: A. Odena, V. Dumoulin, C. Olah, "Deconvolution and Checkerboard
Artifacts", Distill 2016. Training on reconstructions weakens the pattern but does not remove it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4  # image px per position of the code
WIDTHS = (16, 32)


class Autoencoder(nn.Module):
    """Images ``(N, 3, H, W)`` float in [0, 1] to reconstructions of the same shape, not clipped.

    Sides are at least 32 px. Those that STRIDE does not divide are padded by reflection and cropped again.
    """

    def __init__(self) -> None:
        super().__init__()
        inner, code = WIDTHS
        self.encoder = nn.Sequential(
            nn.Conv2d(3, inner, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(inner, code, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(code, inner, 3, stride=2, padding=1, output_padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(inner, 3, 3, stride=2, padding=1, output_padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padding = (0, -width % STRIDE, 0, -height % STRIDE)
        padded = F.pad(images, padding, mode="reflect") if any(padding) else images
        return self.decoder(self.encoder(padded - 0.5))[..., :height, :width] + 0.5
