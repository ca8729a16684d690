"""Tiny autoencoders of latent diffusion models, which leave the traces of such models on photographs; not detectors.

The architecture is that of TAESD (Stable Diffusion, SDXL), TAEF1 (FLUX.1) and TAEF2 (FLUX.2) by O. Boer Bohan
(github.com/madebyollin/taesd, MIT), rebuilt here from the names and shapes of the published weights: residual blocks of
three convolutions, three halvings by strided convolutions, three doublings by nearest-neighbour up-sampling. In TAEF2
the blocks next to the code have a second branch with group normalisation. Width, number of latent channels and these
branches are read from the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from utils.errors import UserError

STRIDE = 8  # image px per position of the code


class Block(nn.Module):
    """Three convolutions with a skip connection, after an optional branch over normalised, widened channels."""

    def __init__(self, width: int, has_pool: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))
        self.pool = None
        if has_pool:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """Bound the code softly to (-3, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution of 3 x 3 px."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def make_encoder(width: int, channels: int, pooled: Collection[int] = ()) -> nn.Sequential:
    """Images to codes with ``channels``; ``pooled`` are the positions of the blocks with a second branch."""
    layers: list[nn.Module] = [conv(3, width), Block(width, 1 in pooled)]
    for _ in range(3):
        layers.append(conv(width, width, stride=2, bias=False))
        layers += [Block(width, len(layers) + number in pooled) for number in range(3)]
    return nn.Sequential(*layers, conv(width, channels))


def make_decoder(width: int, channels: int, pooled: Collection[int] = ()) -> nn.Sequential:
    """Codes to images; the counterpart of :func:`make_encoder`."""
    layers: list[nn.Module] = [Clamp(), conv(channels, width), nn.ReLU()]
    for blocks in (3, 3, 3):
        layers += [Block(width, len(layers) + number in pooled) for number in range(blocks)]
        layers += [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
    return nn.Sequential(*layers, Block(width, len(layers) in pooled), conv(width, 3))


class TinyAutoencoder(nn.Module):
    """Images ``(N, 3, H, W)`` float in [0, 1] to their reconstructions; STRIDE divides the sides.

    Args:
        encoder: state dict of the encoder, in any precision.
        decoder: state dict of the decoder.

    Raises:
        UserError: they belong to another architecture, or not to each other.
    """

    def __init__(self, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.encoder, self.decoder = _rebuild("encoder", encoder), _rebuild("decoder", decoder)
        given, wanted = len(encoder["14.weight"]), decoder["1.weight"].shape[1]
        if given != wanted:
            raise UserError(
                f"expected an encoder and a decoder that belong together, got {given} and {wanted} latent channels"
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images)).float().clamp(0, 1)


def _rebuild(part: str, weights: Mapping[str, Tensor]) -> nn.Sequential:
    try:
        pooled = {int(key.split(".")[0]) for key in weights if ".pool." in key}
        if part == "encoder":
            layers = make_encoder(len(weights["0.weight"]), len(weights["14.weight"]), pooled)
        else:
            width, channels = weights["1.weight"].shape[:2]
            layers = make_decoder(width, channels, pooled)
        layers.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError):  # names or shapes of something else
        raise UserError(
            f"expected the weights of the {part} of a tiny autoencoder, such as taesd_{part}.pth or taef2_{part}.pth, "
            f"got those of another architecture: {', '.join(list(weights)[:3])}, ..."
        ) from None
    return layers
