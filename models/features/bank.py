"""The interface of a handcrafted feature bank, and the pixel planes that the banks share.

A bank is a function from :class:`Planes` to an array ``(N, D)``, registered with its name and the names of its D
columns. D does not depend on the image size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

# JFIF (ITU-R BT.601, full range), the colour space in which JPEG quantises.
YCBCR_FROM_RGB = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
# Luma is a multiple of 0.001 and its 2 x 2 mean of 0.00025, so exact halves are common. Their rounding would depend
# on the last bit of a float, and so on the position of the pixel; this offset moves the limit between two values.
TIE_BREAK = 3.75e-4


class Planes:
    """Colour planes of a batch, each computed on first use.

    Takes images ``(N, 3, H, W)`` RGB float in [0, 1] and rounds them back to 8 bits: co-occurrences and LBP compare
    neighbouring grey levels, and float noise would make every comparison unequal.
    """

    def __init__(self, images: Tensor) -> None:
        self.rgb = (images * 255).round_()  # (N, 3, H, W) float, whole numbers 0..255

    @cached_property
    def luma(self) -> Tensor:
        """Luma in [0, 255], float ``(N, H, W)``."""
        return _weigh(self.rgb, YCBCR_FROM_RGB[0])

    @cached_property
    def half_rgb(self) -> Tensor:
        """RGB averaged over aligned 2 x 2 cells, float ``(N, 3, H//2, W//2)``."""
        height, width = (side // 2 * 2 for side in self.rgb.shape[2:])
        rows = self.rgb[:, :, 0:height:2] + self.rgb[:, :, 1:height:2]  # ten times as fast as avg_pool2d
        return (rows[..., 0:width:2] + rows[..., 1:width:2]) / 4

    @cached_property
    def half_ycbcr(self) -> Tensor:
        """Luma in [0, 255], Cb and Cr in [-127.5, 127.5] of ``half_rgb``: chroma as 4:2:0 JPEG stores it."""
        return torch.stack([_weigh(self.half_rgb, weights) for weights in YCBCR_FROM_RGB], 1)

    @cached_property
    def levels(self) -> Tensor:
        """Luma rounded to whole grey levels, int16 ``(N, H, W)``."""
        return to_levels(self.luma)

    @cached_property
    def half_levels(self) -> Tensor:
        """``half_ycbcr`` rounded to whole grey levels, int16 ``(N, 3, H//2, W//2)``."""
        return to_levels(self.half_ycbcr)

    @cached_property
    def smooth_levels(self) -> Tensor:
        """Rounded mean of every 2 x 2 cell of ``levels``, overlapping ones included, int16 ``(N, H-1, W-1)``."""
        pairs = self.levels[:, 1:] + self.levels[:, :-1]
        return (pairs[:, :, 1:] + pairs[:, :, :-1] + 2) >> 2


def _weigh(rgb: Tensor, weights: tuple[float, float, float]) -> Tensor:
    r, g, b = rgb.unbind(1)
    return (r * weights[0]).add_(g, alpha=weights[1]).add_(b, alpha=weights[2])


def to_levels(planes: Tensor) -> Tensor:
    """Round float planes to int16 grey levels, with one rule for exact halves."""
    return (planes + TIE_BREAK).round_().to(torch.int16)


Compute = Callable[[Planes], np.ndarray]


@dataclass(frozen=True)
class FeatureBank:
    """A named group of features.

    With ``flip_invariant``, mirroring an image of even width leaves the features unchanged up to float rounding, so
    training on mirrored copies adds nothing.
    """

    name: str
    compute: Compute
    names: tuple[str, ...]
    flip_invariant: bool


FEATURE_BANKS: dict[str, FeatureBank] = {}


def feature_bank(name: str, names: Sequence[str], flip_invariant: bool) -> Callable[[Compute], Compute]:
    """Register a function as the feature bank ``name`` with the column names ``names``.

    Raises:
        ValueError: the name is taken, or two columns share a name.
    """
    if name in FEATURE_BANKS:
        raise ValueError(f"feature bank {name!r} is registered twice")
    if len(set(names)) != len(names):
        raise ValueError(f"feature bank {name!r} has two columns of the same name")

    def register(compute: Compute) -> Compute:
        FEATURE_BANKS[name] = FeatureBank(name, compute, tuple(names), flip_invariant)
        return compute

    return register


def histograms(codes: Tensor, bins: int) -> np.ndarray:
    """Count integer codes ``(N, ...)`` in [0, bins) per image: frequencies ``(N, bins)`` that sum to 1."""
    counts = [torch.bincount(code.reshape(-1), minlength=bins) for code in codes]
    return torch.stack(counts).numpy() / codes[0].numel()


def difference(planes: Tensor, dim: int, order: int = 1, step: int = 1) -> Tensor:
    """Take the finite difference of this order along one dimension, between pixels ``step`` apart."""
    for _ in range(order):
        length = planes.shape[dim] - step
        planes = planes.narrow(dim, step, length) - planes.narrow(dim, 0, length)
    return planes
