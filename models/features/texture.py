"""Feature banks of texture: co-occurrences of noise residuals (srm) and local binary patterns (lbp)."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch

from models.features.bank import Planes, difference, feature_bank, histograms


@dataclass(frozen=True)
class Residual:
    """A high-pass residual, quantised to whole steps in [-truncate, truncate], and its co-occurrence.

    ``kind``: "diff1" to "diff3" are finite differences along the direction of the ``length`` members of the
    co-occurrence, "diag" is the mixed second difference. ``step`` is the distance between the pixels.
    """

    plane: str
    kind: str
    quantum: int
    truncate: int
    length: int
    step: int = 1


# Five of the luma residuals come from forward selection by cross-validated AUC on faces140k (train and valid); luma
# diff1, the next best, and chroma, which helped on an earlier set, were added by hand. For first differences, six
# ternary members did better than four members of five levels: longer context matters more than finer amplitudes.
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
    """Return a 0/1 matrix that sums the co-occurrences equal under negation (and reversal), and a name for each sum.

    A natural image stays natural when negated or reversed (Fridrich & Kodovsky, section II-C), so merging gives
    fewer and better filled bins.
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
    codes = (levels + spec.truncate).to(torch.uint8)  # bytes where they suffice: half the memory traffic
    size = 1
    while size < spec.length:  # append the codes that follow: 1, 2, 4 members, or 1, 3, 6
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
        members = _merge_symmetric(r.truncate, r.length, True)[1]
        names += [f"{label} {d} [{m}]" for d in DIRECTIONS for m in members]
    members = _merge_symmetric(RGB_TRUNCATE, 3, False)[1]
    return names + [f"rgb diff2 {d} [{m}]" for d in DIRECTIONS for m in members]


@feature_bank("srm", _srm_names(), flip_invariant=True)
def srm(planes: Planes) -> np.ndarray:
    """Compute co-occurrences of truncated, quantised noise residuals, as square roots of frequencies.

    Follows the spatial rich model (Fridrich & Kodovsky, "Rich Models for Steganalysis of Digital Images", TIFS
    2012; for forgeries Cozzolino et al., arXiv 1703.04615) with few residuals, but at two scales because
    resizing removes the finest one, and with longer ternary co-occurrences. The co-occurrence across R, G, B at one
    pixel follows Nataraj et al., arXiv 1903.06836, on half-resolution residuals instead of grey levels. With square
    roots, a linear model compares histograms by Hellinger distance.
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


# (dy, dx), clockwise from the right
NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
RADII = {"luma": (1, 2), "half luma": (2, 3), "half cb": (1, 2), "half cr": (1, 2), "luma residual": (2,)}


@lru_cache(maxsize=1)
def _uniform_patterns() -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a 0/1 matrix from the 256 codes to the uniform patterns, mirrored ones merged, and a name for each."""
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
    """Shift levels into 0..255 and truncate; comparing bytes is eight times as fast as comparing wider integers."""
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
    [f"{p} radius {r} pattern {bits}" for p in RADII for r in RADII[p] for bits in _uniform_patterns()[1]],
    flip_invariant=True,
)
def lbp(planes: Planes) -> np.ndarray:
    """Compute histograms of uniform local binary patterns, as square roots of frequencies.

    Ojala, Pietikainen & Maenpaa, "Multiresolution Gray-Scale and Rotation Invariant Texture Classification with
    Local Binary Patterns", TPAMI 2002. Unlike there, the eight neighbours lie on a square, without interpolation, and
    mirrored patterns are merged. The residual is the second difference in both directions.
    """
    half_luma, half_cb, half_cr = planes.half_levels.unbind(1)
    residual = _to_bytes(difference(difference(planes.levels, 1, 2), 2, 2), 128)
    chroma = (_to_bytes(half_cb, 128), _to_bytes(half_cr, 128))
    sources = (_to_bytes(planes.levels, 0), _to_bytes(half_luma, 0), *chroma, residual)
    pairs = zip(sources, RADII.values(), strict=True)
    parts = [_lbp_histogram(plane, radius) for plane, radii in pairs for radius in radii]
    return np.concatenate(parts, axis=1)
