"""The contract of a handcrafted feature bank, and the pixel planes that the banks share.

A bank is a function from :class:`Planes` to an array (N, D), registered under its own name together with the
D human-readable names of its columns. D never depends on the size of the image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

# JFIF (ITU-R BT.601, full range), the colour space in which JPEG quantises.
YCBCR_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
# Luma is a multiple of 0.001 and its 2 x 2 mean of 0.00025, so exact halves are common. Rounding them would
# depend on the last bit of a float, and so on the pixel's position; this puts the limit between two values.
TIE_BREAK = 3.75e-4


class Planes:
    """Colour planes of a batch, computed when first asked for.

    Takes images (N, 3, H, W) RGB float in [0, 1], which are rounded back to 8 bits: co-occurrences and LBP
    compare neighbouring grey levels, and resampling to float would make every comparison unequal.
    """

    def __init__(self, images: torch.Tensor) -> None:
        self.rgb = (images * 255).round_()  # (N, 3, H, W) float, whole numbers 0..255

    @cached_property
    def luma(self) -> torch.Tensor:
        """Luma in [0, 255], float (N, H, W)."""
        return _weigh(self.rgb, YCBCR_FROM_RGB[0])

    @cached_property
    def half_rgb(self) -> torch.Tensor:
        """RGB averaged over aligned 2 x 2 cells, float (N, 3, H//2, W//2)."""
        height, width = (side // 2 * 2 for side in self.rgb.shape[2:])
        rows = self.rgb[:, :, 0:height:2] + self.rgb[:, :, 1:height:2]  # ten times as fast as avg_pool2d
        return (rows[..., 0:width:2] + rows[..., 1:width:2]) / 4

    @cached_property
    def half_ycbcr(self) -> torch.Tensor:
        """Luma in [0, 255], Cb and Cr in [-127.5, 127.5] of ``half_rgb``: chroma as 4:2:0 JPEG stores it."""
        return torch.stack([_weigh(self.half_rgb, weights) for weights in YCBCR_FROM_RGB], 1)

    @cached_property
    def levels(self) -> torch.Tensor:
        """Luma rounded to whole grey levels, int16 (N, H, W)."""
        return to_levels(self.luma)

    @cached_property
    def half_levels(self) -> torch.Tensor:
        """``half_ycbcr`` rounded to whole grey levels, int16 (N, 3, H//2, W//2)."""
        return to_levels(self.half_ycbcr)

    @cached_property
    def smooth_levels(self) -> torch.Tensor:
        """Rounded mean of every (also overlapping) 2 x 2 cell of ``levels``, int16 (N, H-1, W-1)."""
        pairs = self.levels[:, 1:] + self.levels[:, :-1]
        return (pairs[:, :, 1:] + pairs[:, :, :-1] + 2) >> 2


def _weigh(rgb: torch.Tensor, weights: tuple[float, float, float]) -> torch.Tensor:
    r, g, b = rgb.unbind(1)
    return (r * weights[0]).add_(g, alpha=weights[1]).add_(b, alpha=weights[2])


def to_levels(planes: torch.Tensor) -> torch.Tensor:
    """Round float planes to int16 grey levels, deciding exact halves by the same rule everywhere."""
    return (planes + TIE_BREAK).round_().to(torch.int16)


@dataclass(frozen=True)
class FeatureBank:
    """One named group of features.

    ``flip_invariant`` promises that mirroring an image of even width left to right leaves the features as
    they are, up to float rounding, so that training on mirrored copies would add nothing.
    """

    name: str
    compute: Callable[[Planes], np.ndarray]
    names: tuple[str, ...]
    flip_invariant: bool


FEATURE_BANKS: dict[str, FeatureBank] = {}


def feature_bank(
    name: str, names: Sequence[str], flip_invariant: bool
) -> Callable[[Callable[[Planes], np.ndarray]], Callable[[Planes], np.ndarray]]:
    """Register a function as the feature bank ``name`` whose columns are called ``names``.

    Raises ValueError if the name is taken or two columns share a name: that is a programming mistake.
    """
    if name in FEATURE_BANKS:
        raise ValueError(f"feature bank {name!r} is registered twice")
    if len(set(names)) != len(names):
        raise ValueError(f"feature bank {name!r} has two columns of the same name")

    def register(compute: Callable[[Planes], np.ndarray]) -> Callable[[Planes], np.ndarray]:
        FEATURE_BANKS[name] = FeatureBank(name, compute, tuple(names), flip_invariant)
        return compute

    return register


def histograms(codes: torch.Tensor, bins: int) -> np.ndarray:
    """Count integer codes (N, ...) in [0, bins) per image: frequencies (N, bins) that sum to 1."""
    counts = [torch.bincount(code.reshape(-1), minlength=bins) for code in codes]
    return torch.stack(counts).numpy() / codes[0].numel()


def difference(planes: torch.Tensor, dim: int, order: int = 1, step: int = 1) -> torch.Tensor:
    """Finite difference of the given order along one dimension, between pixels ``step`` apart."""
    for _ in range(order):
        length = planes.shape[dim] - step
        planes = planes.narrow(dim, step, length) - planes.narrow(dim, 0, length)
    return planes
