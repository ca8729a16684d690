"""Feature bank of colour statistics."""

import numpy as np
import torch

from models.features.bank import YCBCR_FROM_RGB, Planes, difference, feature_bank, histograms

MOMENTS = ("mean", "std", "skewness", "kurtosis")
BRIGHT, DARK = (242, 250, 255), (0, 5, 13)  # grey levels, of 255
CHROMA_BINS = 12
RESIDUALS = ("pixels", "horizontal diff", "vertical diff", "diagonal diff2")


def _color_names() -> list[str]:
    names = [f"{m} of {c}" for c in ("luma", "cb", "cr", "saturation", "value") for m in MOMENTS]
    names += ["mean cosine of hue", "mean sine of hue", "concentration of hue"]
    names += [f"{c} at or above {t}" for c in "RGB" for t in BRIGHT]
    names += [f"{c} at or below {t}" for c in "RGB" for t in DARK]
    for space, channels in (("rgb", ("R", "G", "B")), ("ycbcr", ("Y", "Cb", "Cr"))):
        a, b, c = channels
        what = [f"correlation of {p} and {q}" for p, q in ((a, b), (a, c), (b, c))]
        what += [f"log std of {channel}" for channel in channels]
        names += [f"{residual} ({space}): {w}" for residual in RESIDUALS for w in what]
    bins = range(CHROMA_BINS)
    return names + [f"share of cb bin {i}, cr bin {j}" for i in bins for j in bins]


def _moments(values: torch.Tensor) -> torch.Tensor:
    """Mean, std, skewness and kurtosis of channels (N, C, P), as (N, 4 * C), grouped by channel."""
    mean = values.mean(2, keepdim=True)
    centred = values - mean
    square = centred * centred
    std = (square.mean(2) + 1e-4).sqrt()  # the offset sets the ratios of a flat channel to 0
    parts = [mean[..., 0], std, (square * centred).mean(2) / std**3, (square * square).mean(2) / std**4]
    return torch.stack(parts, 2).flatten(1)


def _second_moments(residual: torch.Tensor) -> torch.Tensor:
    """Covariances (N, 3, 3) of three channels, whose means are taken as zero: those of residuals nearly are."""
    values = residual.flatten(2)
    return values @ values.transpose(1, 2) / values.shape[2]


def _correlations(covariance: torch.Tensor) -> torch.Tensor:
    """Return the three correlations and three log standard deviations of covariances (N, 3, 3)."""
    variance = covariance.diagonal(0, 1, 2)
    scaled = covariance / (torch.sqrt(variance[:, :, None] * variance[:, None]) + 1e-3)
    return torch.cat([scaled[:, 0, 1:], scaled[:, 1, 2:], (variance.clamp_min(0) + 0.01).log() / 2], 1)


@feature_bank("color", _color_names(), flip_invariant=True)
def color(planes: Planes) -> np.ndarray:
    """Compute moments, hue, clipped pixels, correlations of channels and of residuals, and a chroma histogram.

    Clipping and channel correlation after McCloskey & Albright, arXiv 1812.08247; chroma and its residuals after
    Li et al., "Identification of deep network generated images using disparities in color components", Signal
    Processing 2020 (arXiv 1808.07276), as correlations; the srm bank has the co-occurrences.
    """
    rgb = planes.rgb
    small = planes.half_rgb.flatten(2) / 255
    r, g, b = small.unbind(1)
    value, lowest = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    saturation = (value - lowest) / (value + 0.01)
    ycbcr = planes.half_ycbcr.flatten(2) / 255
    moments = _moments(torch.cat([ycbcr, saturation[:, None], value[:, None]], 1))
    along, across = r - (g + b) / 2, (g - b) * (3**0.5 / 2)
    length = (along.square() + across.square()).sqrt_() + 1e-3  # grey pixels have no hue: they hardly count
    hue = torch.stack([(along / length).mean(1), (across / length).mean(1)], 1)
    hue = torch.cat([hue, hue.norm(dim=1, keepdim=True)], 1)

    channel_counts = [torch.from_numpy(histograms(channel, 256)) for channel in rgb.to(torch.uint8).unbind(1)]
    counts = torch.stack(channel_counts, 1)
    bright = torch.stack([counts[..., t:].sum(2) for t in BRIGHT], 2).flatten(1)
    dark = torch.stack([counts[..., : t + 1].sum(2) for t in DARK], 2).flatten(1)

    pixels = planes.half_rgb - planes.half_rgb.mean((2, 3), keepdim=True)
    vertical = difference(rgb, 2)
    residuals = (pixels, difference(rgb, 3), vertical, difference(vertical, 3))
    covariances = [_second_moments(residual) for residual in residuals]
    to_ycbcr = torch.tensor(YCBCR_FROM_RGB)
    correlations = [_correlations(c) for c in covariances]
    correlations += [_correlations(to_ycbcr @ c @ to_ycbcr.T) for c in covariances]

    chroma = (planes.half_ycbcr[:, 1:] / 192 + 0.5).mul(CHROMA_BINS).to(torch.int16).clamp(0, CHROMA_BINS - 1)
    chroma_histogram = np.sqrt(histograms(chroma[:, 0] * CHROMA_BINS + chroma[:, 1], CHROMA_BINS**2))
    statistics = torch.cat([moments, hue, bright, dark, *correlations], 1).numpy()
    return np.concatenate([statistics, chroma_histogram], axis=1)
