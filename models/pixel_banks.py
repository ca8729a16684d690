"""Feature banks in the pixel domain: residual co-occurrences (srm), local binary patterns (lbp) and colour."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch

from models.feature_bank import YCBCR_FROM_RGB, Planes, difference, feature_bank, histograms


@dataclass(frozen=True)
class Residual:
    """One high-pass residual, quantised to whole steps in [-truncate, truncate], and its co-occurrence.

    ``kind``: "diff1" to "diff3" take the finite difference along the direction in which the ``length`` members
    of the co-occurrence lie, "diag" the mixed second difference. ``step`` is the distance between the pixels.
    """

    plane: str
    kind: str
    quantum: int
    truncate: int
    length: int
    step: int = 1


# Chosen forward on 5-fold AUC out of some 130 candidates. Six ternary members beat four of five levels at
# the same cost: longer context counts for more than finer amplitudes.
RESIDUALS = (
    Residual("luma", "diff1", 1, 1, 6),
    Residual("luma", "diag", 1, 1, 6),
    Residual("luma", "diff3", 3, 2, 4),
    Residual("smooth", "diff1", 1, 1, 6, step=2),
    Residual("smooth", "diff1", 2, 1, 6, step=2),
    Residual("smooth", "diff2", 2, 1, 6, step=2),
    Residual("cb", "diff1", 1, 1, 6),
    Residual("cr", "diff1", 1, 1, 6),
)
DIRECTIONS = {"horizontal": 2, "vertical": 1}
RGB_TRUNCATE = 2


@lru_cache(maxsize=8)
def _merge_symmetric(truncate: int, length: int, reverse: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """0/1 matrix that adds up the co-occurrences equal under negation (and reversal), and a name for each sum.

    A natural image read backwards or negated is as natural (Fridrich & Kodovsky, section II-C), so merging
    them leaves fewer, better filled bins.
    """
    classes: dict[tuple[int, ...], int] = {}
    index = []
    for members in product(range(-truncate, truncate + 1), repeat=length):
        same = [members, tuple(-m for m in members)]
        same += [m[::-1] for m in same] if reverse else []
        index.append(classes.setdefault(min(same), len(classes)))
    return np.eye(len(classes))[index], tuple(" ".join(map(str, members)) for members in classes)


def _quantise(residual: torch.Tensor, quantum: int, truncate: int) -> torch.Tensor:
    """Round to multiples of ``quantum`` (halves to even, so that signs are treated alike) and truncate."""
    if quantum == 1:
        return residual.clamp(-truncate, truncate)
    return residual.float().mul_(1 / quantum).round_().clamp_(-truncate, truncate).to(torch.int16)


def _cooccurrence(levels: torch.Tensor, spec: Residual, dim: int) -> np.ndarray:
    """Square root of the merged frequencies of ``length`` neighbouring levels (N, H, W) along one dimension."""
    base = 2 * spec.truncate + 1
    codes, size = (levels + spec.truncate).to(torch.uint8), 1  # bytes while they last: half the memory traffic
    while size < spec.length:  # append a code to the same code further on: 1, 2, 4 members, or 1, 3, 6
        grow = 3 if spec.length % (3 * size) == 0 else 2
        stride, span = size * spec.step, codes.shape[dim] - (grow - 1) * size * spec.step
        if base ** (grow * size) > 256:
            codes = codes.to(torch.int16)
        joined = codes.narrow(dim, 0, span)
        for i in range(1, grow):
            joined = (joined * base**size).add_(codes.narrow(dim, i * stride, span))
        codes, size = joined, size * grow
    merge, _ = _merge_symmetric(spec.truncate, spec.length, True)
    return np.sqrt(histograms(codes, base**spec.length) @ merge)


def _srm_names() -> list[str]:
    names = []
    for r in RESIDUALS:
        label = f"{r.plane} {r.kind}/{r.quantum}"
        names += [f"{label} {d} [{m}]" for d in DIRECTIONS for m in _merge_symmetric(r.truncate, r.length, True)[1]]
    return names + [f"rgb diff2 {d} [{m}]" for d in DIRECTIONS for m in _merge_symmetric(RGB_TRUNCATE, 3, False)[1]]


@feature_bank("srm", _srm_names(), flip_invariant=True)
def srm(planes: Planes) -> np.ndarray:
    """Co-occurrences of truncated, quantised noise residuals, as square roots of frequencies.

    Follows the spatial rich model (Fridrich & Kodovsky, "Rich Models for Steganalysis of Digital Images", TIFS
    2012; for forgeries Cozzolino et al., arXiv 1703.04615) with few residuals but at two scales, since resizing
    wipes out the finest one, and with longer ternary co-occurrences. The co-occurrence across R, G, B at one
    pixel follows Nataraj et al., arXiv 1903.06836, on half-resolution residuals instead of grey levels. The
    square root makes a linear model compare histograms by Hellinger distance.
    """
    sources = {"luma": planes.levels, "smooth": planes.smooth_levels}
    sources |= {"cb": planes.half_levels[:, 1], "cr": planes.half_levels[:, 2]}
    parts = []
    for spec in RESIDUALS:
        plane = sources[spec.plane]
        if spec.kind == "diag":
            diagonal = difference(difference(plane, 1, step=spec.step), 2, step=spec.step)
            residuals = [diagonal] * len(DIRECTIONS)
        else:
            residuals = [difference(plane, dim, int(spec.kind[-1]), spec.step) for dim in DIRECTIONS.values()]
        for residual, dim in zip(residuals, DIRECTIONS.values(), strict=True):
            parts.append(_cooccurrence(_quantise(residual, spec.quantum, spec.truncate), spec, dim))
    half_rgb = planes.half_rgb.round().to(torch.int16)
    merge, _ = _merge_symmetric(RGB_TRUNCATE, 3, False)
    base = 2 * RGB_TRUNCATE + 1
    for dim in DIRECTIONS.values():
        r, g, b = (_quantise(difference(half_rgb, dim + 1, 2), 2, RGB_TRUNCATE) + RGB_TRUNCATE).unbind(1)
        parts.append(np.sqrt(histograms((r * base + g) * base + b, base**3) @ merge))
    return np.concatenate(parts, axis=1)


NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))  # clockwise from the right
LBP_PLANES = {"luma": (1, 2), "half luma": (2, 3), "half cb": (1, 2), "half cr": (1, 2), "luma residual": (2,)}


@lru_cache(maxsize=1)
def _uniform_patterns() -> tuple[np.ndarray, tuple[str, ...]]:
    """0/1 matrix from the 256 codes to the uniform patterns, mirrored ones merged, and a name for each."""
    classes: dict[str, int] = {}
    index = []
    for code in range(256):
        bits = [code >> i & 1 for i in range(8)]
        mirrored = [bits[(4 - i) % 8] for i in range(8)]
        uniform = sum(bits[i] != bits[i - 1] for i in range(8)) <= 2
        name = "".join(map(str, min(bits, mirrored))) if uniform else "other"
        index.append(classes.setdefault(name, len(classes)))
    return np.eye(len(classes))[index], tuple(classes)


def _to_bytes(levels: torch.Tensor, offset: int) -> torch.Tensor:
    """Shift levels into 0..255 and truncate: bytes are compared eight times as fast as wider integers."""
    return (levels + offset).clamp_(0, 255).to(torch.uint8)


def _lbp_histogram(plane: torch.Tensor, radius: int) -> np.ndarray:
    height, width = plane.shape[-2:]
    centre = plane[:, radius : height - radius, radius : width - radius]
    codes = torch.zeros(centre.shape, dtype=torch.uint8)
    for bit, (dy, dx) in enumerate(NEIGHBOURS):
        top, left = radius * (1 + dy), radius * (1 + dx)
        neighbour = plane[:, top : top + centre.shape[1], left : left + centre.shape[2]]
        codes |= (neighbour >= centre).view(torch.uint8) * 2**bit
    return np.sqrt(histograms(codes, 256) @ _uniform_patterns()[0])


@feature_bank(
    "lbp",
    [f"{p} radius {r} pattern {name}" for p, radii in LBP_PLANES.items() for r in radii for name in _uniform_patterns()[1]],
    flip_invariant=True,
)
def lbp(planes: Planes) -> np.ndarray:
    """Histograms of uniform local binary patterns, as square roots of frequencies.

    Ojala, Pietikainen & Maenpaa, "Multiresolution Gray-Scale and Rotation Invariant Texture Classification with
    Local Binary Patterns", TPAMI 2002. Deviates by taking the eight neighbours on a square, without interpolation,
    and by merging mirrored patterns. The residual is the second difference in both directions.
    """
    half_luma, half_cb, half_cr = planes.half_levels.unbind(1)
    residual = _to_bytes(difference(difference(planes.levels, 1, 2), 2, 2), 128)
    chroma = (_to_bytes(half_cb, 128), _to_bytes(half_cr, 128))
    sources = (_to_bytes(planes.levels, 0), _to_bytes(half_luma, 0), *chroma, residual)
    pairs = zip(sources, LBP_PLANES.values(), strict=True)
    return np.concatenate([_lbp_histogram(plane, radius) for plane, radii in pairs for radius in radii], axis=1)


MOMENTS = ("mean", "std", "skewness", "kurtosis")
BRIGHT, DARK = (242, 250, 255), (0, 5, 13)  # grey levels, of 255
CHROMA_BINS = 12
COLOR_RESIDUALS = ("pixels", "horizontal diff", "vertical diff", "diagonal diff2")


def _color_names() -> list[str]:
    names = [f"{m} of {c}" for c in ("luma", "cb", "cr", "saturation", "value") for m in MOMENTS]
    names += ["mean cosine of hue", "mean sine of hue", "concentration of hue"]
    names += [f"{c} at or above {t}" for c in "RGB" for t in BRIGHT] + [f"{c} at or below {t}" for c in "RGB" for t in DARK]
    for space, channels in (("rgb", "RGB"), ("ycbcr", ("Y", "Cb", "Cr"))):
        a, b, c = channels
        pairs = [f"correlation of {p} and {q}" for p, q in ((a, b), (a, c), (b, c))]
        names += [f"{r} ({space}): {what}" for r in COLOR_RESIDUALS for what in pairs + [f"log std of {k}" for k in channels]]
    return names + [f"share of cb bin {i}, cr bin {j}" for i in range(CHROMA_BINS) for j in range(CHROMA_BINS)]


def _moments(values: torch.Tensor) -> torch.Tensor:
    """Mean, std, skewness and kurtosis of channels (N, C, P), as (N, 4 * C), grouped by channel."""
    mean = values.mean(2, keepdim=True)
    centred = values - mean
    square = centred * centred
    std = (square.mean(2) + 1e-4).sqrt()  # the offset keeps the ratios of a flat channel at 0
    parts = [mean[..., 0], std, (square * centred).mean(2) / std**3, (square * square).mean(2) / std**4]
    return torch.stack(parts, 2).flatten(1)


def _second_moments(residual: torch.Tensor) -> torch.Tensor:
    """Covariances (N, 3, 3) of three channels whose means are zero, as those of residuals nearly are."""
    values = residual.flatten(2)
    return values @ values.transpose(1, 2) / values.shape[2]


def _correlations(covariance: torch.Tensor) -> torch.Tensor:
    """The three correlations and three log standard deviations of covariances (N, 3, 3)."""
    variance = covariance.diagonal(0, 1, 2)
    scaled = covariance / (torch.sqrt(variance[:, :, None] * variance[:, None]) + 1e-3)
    return torch.cat([scaled[:, 0, 1:], scaled[:, 1, 2:], (variance.clamp_min(0) + 0.01).log() / 2], 1)


@feature_bank("color", _color_names(), flip_invariant=True)
def color(planes: Planes) -> np.ndarray:
    """Moments, hue, clipped pixels, correlations between channels and their residuals, and a chroma histogram.

    Clipping and channel correlation after McCloskey & Albright, arXiv 1812.08247; chroma and its residuals after
    Li et al., "Identification of deep network generated images using disparities in color components", Signal
    Processing 2020 (arXiv 1808.07276), as correlations instead of co-occurrences, which the srm bank holds.
    """
    rgb = planes.rgb
    small = planes.half_rgb.flatten(2) / 255
    r, g, b = small.unbind(1)
    value, lowest = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    saturation = (value - lowest) / (value + 0.01)
    moments = _moments(torch.cat([planes.half_ycbcr.flatten(2) / 255, saturation[:, None], value[:, None]], 1))
    along, across = r - (g + b) / 2, (g - b) * (3**0.5 / 2)
    length = (along.square() + across.square()).sqrt_() + 1e-3  # grey pixels have no hue and count as little
    hue = torch.stack([(along / length).mean(1), (across / length).mean(1)], 1)
    hue = torch.cat([hue, hue.norm(dim=1, keepdim=True)], 1)

    counts = torch.from_numpy(np.stack([histograms(channel, 256) for channel in rgb.to(torch.uint8).unbind(1)], 1))
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
