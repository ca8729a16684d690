"""Feature banks in the frequency domain: the Fourier power spectrum and the 8 x 8 block DCT of JPEG."""

from functools import lru_cache

import numpy as np
import torch

from models.features.bank import Planes, feature_bank, histograms

CHANNELS = ("luma", "cb", "cr")
RINGS, SECTORS = 8, 6
RADIAL_BINS = {"luma": 64, "cb": 32, "cr": 32}
MAX_RADIUS = 0.5 * np.sqrt(2)  # the corner of the spectrum, cycles per pixel
GRID = (0.0, 0.125, 0.25, 0.375, 0.5)  # where up-sampling by 2, 4, 8 and the JPEG grid produce peaks
PEAKS = [(fy, fx) for fy in GRID for fx in GRID if fy + fx > 0]
POWER_FLOOR = 0.01  # below the power of rounding to 8 bits (1/12); keeps the logarithm of a flat image finite
DIGIT_LIMIT = 1100  # the coefficients of an 8-bit block reach 1024 at most
ZONES = ("low", "mid", "high")


def _spectrum_names() -> list[str]:
    radial = ((c, (i + 0.5) / n * MAX_RADIUS) for c, n in RADIAL_BINS.items() for i in range(n))
    names = [f"{c} log power at {radius:.3f} cycles/px" for c, radius in radial]
    names += [f"luma ring {r} sector {s}: excess log power" for s in range(SECTORS) for r in range(RINGS)]
    statistics = ("spread", "skewness", "share of peaks")
    names += [f"luma ring {r}: {what} of log power" for what in statistics for r in range(RINGS)]
    return names + [f"luma log-power peak at fy={fy:g} fx={fx:g}" for fy, fx in PEAKS]


def _log_power(planes: torch.Tensor) -> np.ndarray:
    """Log10 power per pixel, (N, H, W//2 + 1); the Hann window keeps border effects out of the axes."""
    height, width = planes.shape[-2:]
    window = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
    spectrum = torch.fft.rfft2((planes - planes.mean((1, 2), keepdim=True)) * window)
    power = (spectrum.real.square() + spectrum.imag.square()) / window.square().sum()
    return power.add_(POWER_FLOOR).log10_().numpy()


@lru_cache(maxsize=64)
def _radial_bins(height: int, width: int, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bin of each frequency, 1/count of each bin, and a matrix that fills the empty bins of small images."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    index = np.minimum((radius / MAX_RADIUS * bins).astype(np.int64), bins - 1).ravel()
    count = np.bincount(index, minlength=bins)
    full = np.flatnonzero(count)
    fill = np.zeros((bins, bins))
    for column, row in zip(full, np.eye(len(full)), strict=True):
        fill[column] = np.interp(np.arange(bins), full, row)
    return index, 1 / np.maximum(count, 1), fill


@lru_cache(maxsize=16)
def _sectors(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sector of each frequency (angles folded into one quadrant, for mirroring), and 1/count."""
    angle = np.arctan2(np.abs(np.fft.fftfreq(height))[:, None], np.fft.rfftfreq(width)[None]).ravel()
    sector = np.minimum((angle / (np.pi / 2) * SECTORS).astype(np.int64), SECTORS - 1)
    index = sector * RINGS + _radial_bins(height, width, RINGS)[0]
    return index, 1 / np.maximum(np.bincount(index, minlength=SECTORS * RINGS), 1)


def _mean_by(index: np.ndarray, inverse_count: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average values (N, F) over the frequencies that share an index: (N, number of indices)."""
    return np.stack([np.bincount(index, row, len(inverse_count)) for row in values]) * inverse_count


@feature_bank("spectrum", _spectrum_names(), flip_invariant=True)
def spectrum(planes: Planes) -> np.ndarray:
    """Compute the radially averaged log power of luma and chroma, its directions and its peaks.

    Durall et al., "Watch your Up-Convolution", CVPR 2020, arXiv 2003.01826, average luma only. This bank adds
    half-resolution chroma, the excess of each direction over its ring, and the peaks that up-sampling produces.
    """
    log_power = _log_power(planes.luma)
    n, height, width = planes.luma.shape
    log_power = log_power.reshape(n, -1)
    index, inverse_count, fill = _radial_bins(height, width, RADIAL_BINS["luma"])
    radial = _mean_by(index, inverse_count, log_power)
    excess = log_power - radial[:, index].astype(np.float32)
    ring, ring_inverse_count, _ = _radial_bins(height, width, RINGS)
    square = excess * excess
    variance = _mean_by(ring, ring_inverse_count, square)
    skewness = _mean_by(ring, ring_inverse_count, square * excess) / (variance**1.5 + 1e-3)
    fraction_high = _mean_by(ring, ring_inverse_count, excess > 1.0)  # ten times the power of the ring
    sector, sector_inverse_count = _sectors(height, width)
    columns = [min(round(fx * width), width // 2) for _, fx in PEAKS]
    rows = np.array([round(fy * height) for fy, _ in PEAKS])
    table = excess.reshape(n, height, -1)
    peaks = (table[:, rows % height, columns] + table[:, -rows % height, columns]) / 2  # both diagonals
    chroma = []
    for channel in (1, 2):
        plane = planes.half_ycbcr[:, channel]
        c_index, c_inverse_count, c_fill = _radial_bins(*plane.shape[-2:], RADIAL_BINS["cb"])
        chroma.append(_mean_by(c_index, c_inverse_count, _log_power(plane).reshape(n, -1)) @ c_fill)
    parts = [radial @ fill, *chroma, _mean_by(sector, sector_inverse_count, excess)]
    return np.concatenate([*parts, np.sqrt(variance), skewness, fraction_high, peaks], axis=1)


def _dct_names() -> list[str]:
    what = ("log mean", "log std", "log kurtosis", "near zero")
    names = [f"{c} {w} of coefficient ({k // 8}, {k % 8})" for c in CHANNELS for w in what for k in range(64)]
    return names + [f"{c} digit {d} first, {z} frequencies" for c in CHANNELS for z in ZONES for d in range(10)]


def _dct_matrix() -> torch.Tensor:
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
    matrix = torch.cos(torch.pi * (2 * n + 1) * k / 16) / 2
    matrix[0] /= 2**0.5
    return matrix


def _block_dct(plane: torch.Tensor) -> torch.Tensor:
    """Orthonormal DCT-II of the 8 x 8 blocks of planes (N, H, W), top-left aligned: (N, 64, blocks)."""
    n, rows, columns = plane.shape[0], plane.shape[1] // 8, plane.shape[2] // 8
    blocks = plane[:, : rows * 8, : columns * 8].reshape(n, rows, 8, columns, 8)
    matrix = _dct_matrix()
    return torch.einsum("ij,nhjwk,lk->nilhw", matrix, blocks, matrix).reshape(n, 64, rows * columns)


@lru_cache(maxsize=1)
def _first_digits() -> np.ndarray:
    """Return a 0/1 matrix from the integer part of a magnitude to its first digit; magnitudes below 1 have digit 0."""
    digits = np.array([int(str(value)[0]) for value in range(DIGIT_LIMIT)])
    return np.eye(10)[digits]


@feature_bank("dct", _dct_names(), flip_invariant=False)
def dct(planes: Planes) -> np.ndarray:
    """Describe every 8 x 8 block-DCT frequency of luma and of half-resolution chroma, as in 4:2:0 JPEG.

    Per frequency: mean magnitude, spread, kurtosis, and the fraction below 1, which counts the coefficients that
    JPEG set to zero. Per zone of frequencies: the first digits (Benford's law). Blocks start at the top-left corner
    and so coincide with the JPEG grid of an uncropped image; mirroring preserves the features only if the width is
    a multiple of 16. Frank et al., "Leveraging Frequency Analysis for Deep Fake Image Recognition", ICML 2020, arXiv
    2003.08685, use the DCT of the whole image instead of blocks.
    """
    # One histogram counts all three zones. The DC coefficient is omitted: it follows brightness, not Benford's law.
    zone = [(k // 8 + k % 8 > 2) + (k // 8 + k % 8 > 5) for k in range(1, 64)]
    offset = torch.tensor(zone, dtype=torch.int16)[:, None] * DIGIT_LIMIT
    moments, digits = [], []
    for plane in (planes.luma, planes.half_ycbcr[:, 1], planes.half_ycbcr[:, 2]):
        coefficients = _block_dct(plane)
        magnitude = coefficients.abs()
        square = coefficients.square()
        variance = square.mean(2)
        kurtosis = square.square().mean(2) / (variance.square() + 1e-3)
        moments += [(magnitude.mean(2) + 0.1).log(), (variance + 0.01).log() / 2, (kurtosis + 1).log()]
        moments.append(magnitude.clone().lt_(1).mean(2))  # in place: a comparison to bool is not vectorised
        counts = histograms(magnitude[:, 1:].to(torch.int16) + offset, DIGIT_LIMIT * len(ZONES))
        by_zone = counts.reshape(-1, len(ZONES), DIGIT_LIMIT) @ _first_digits()
        digits.append(by_zone.reshape(len(counts), -1))
    return np.concatenate([torch.cat(moments, 1).numpy(), np.sqrt(np.concatenate(digits, 1))], axis=1)
