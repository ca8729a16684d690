"""Handcrafted features for the classical detectors.

=========  ===============================================================================================
spectrum   radial and angular log power spectrum (Durall et al., arXiv 2003.01826)
dct        statistics of the 8 x 8 block DCT on the JPEG grid (Frank et al., arXiv 2003.08685)
srm        co-occurrences of residuals (Fridrich & Kodovsky, TIFS 2012; Nataraj et al., arXiv 1903.06836)
lbp        local binary patterns of luma, chroma and residual at several radii (Ojala et al., TPAMI 2002)
color      colour statistics (McCloskey & Albright, arXiv 1812.08247; Li et al., Signal Processing 2020)
=========  ===============================================================================================

    >>> extract_features(torch.rand(4, 3, 256, 256), ["dct", "color"]).shape[0]
    4
"""

import difflib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.features import color, frequency, texture  # noqa: F401  (importing them registers the banks)
from models.features.bank import FEATURE_BANKS, FeatureBank, Planes
from utils.errors import UserError

MIN_SIDE = 32  # px; smaller images are reflected up to it, so that every statistic has samples
CHUNK_PIXELS = 4 * 256 * 256  # processed at a time: the int16 planes still fit a level-2 cache


def feature_names(banks: Sequence[str]) -> list[str]:
    """Name every column that ``extract_features`` returns for these banks, in order. Raises UserError as it does."""
    return [f"{bank.name}: {name}" for bank in _find_banks(banks) for name in bank.names]


@torch.no_grad()
def extract_features(images: Tensor, banks: Sequence[str]) -> np.ndarray:
    """Compute the features of a batch ``(N, 3, H, W)``, RGB float in [0, 1], of any size.

    Returns float32 ``(N, D)``, always finite, with ``D = len(feature_names(banks))``. The features depend only on the
    pixels rounded to 8 bits, not on the batch, the device or a seed.

    Raises:
        UserError: a bank is unknown, or none is given.
        ValueError: the tensor has another shape or type.
    """
    chosen = _find_banks(banks)
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape[2:]:
        raise ValueError(f"expected float images (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    images = _pad_by_reflection(images.detach().to("cpu", torch.float32).clamp(0, 1))
    features = np.empty((len(images), sum(len(bank.names) for bank in chosen)), dtype=np.float32)
    chunk = max(1, CHUNK_PIXELS // (images.shape[2] * images.shape[3]))
    for start in range(0, len(images), chunk):
        planes = Planes(images[start : start + chunk])
        features[start : start + chunk] = np.concatenate([bank.compute(planes) for bank in chosen], axis=1)
    return features


def _find_banks(names: Sequence[str]) -> list[FeatureBank]:
    known = f"choose from {', '.join(FEATURE_BANKS)}"
    if not names:
        raise UserError(f"expected at least one feature bank, got none; {known}")
    for name in names:
        if name not in FEATURE_BANKS:
            close = difflib.get_close_matches(name, FEATURE_BANKS)
            hint = f"did you mean {' or '.join(close)}?" if close else known
            raise UserError(f"expected a feature bank, got {name!r}; {hint}")
    return [FEATURE_BANKS[name] for name in names]


def _pad_by_reflection(images: Tensor) -> Tensor:
    """Mirror sides shorter than MIN_SIDE, repeatedly if necessary (torch's own padding mirrors only once)."""
    for dim in (2, 3):
        length = images.shape[dim]
        if length < MIN_SIDE:
            period = max(1, 2 * (length - 1))
            position = torch.arange(MIN_SIDE) % period
            source = torch.minimum(position, period - position).clamp_max(length - 1)
            images = images.index_select(dim, source)
    return images
