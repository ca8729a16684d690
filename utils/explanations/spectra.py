"""Spectra for the eye: the two-dimensional one of an image, and its mean over each ring."""

from __future__ import annotations

import numpy as np

SIDE = 128  # px of the square that is analysed; pictures are cut, never resampled, which would change the spectrum


def central_luma(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The middle of ``(H, W, 3)`` uint8 RGB as luma ``(side, side)`` float64; small pictures are mirrored outwards."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    missing = [max(0, side - length) for length in luma.shape]
    luma = np.pad(luma, [(each // 2, each - each // 2) for each in missing], mode="symmetric")
    top, left = ((length - side) // 2 for length in luma.shape)
    return luma[top : top + side, left : left + side]


def log_spectrum(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Log10 power spectrum ``(side, side)`` of the middle of an image under a Hann window, zero frequency centred."""
    window = np.outer(np.hanning(side), np.hanning(side))
    luma = central_luma(image, side)
    return np.log10(np.abs(np.fft.fftshift(np.fft.fft2((luma - luma.mean()) * window))) ** 2 + 1e-3)


def radial_profile(spectrum: np.ndarray) -> np.ndarray:
    """Mean of a square spectrum over rings of one step, ``(side // 2,)``, from zero to half a cycle per pixel."""
    side = len(spectrum)
    rows, columns = np.indices(spectrum.shape) - side // 2
    radius = np.hypot(rows, columns).round().astype(int)
    inside = radius < side // 2
    return np.bincount(radius[inside], spectrum[inside]) / np.bincount(radius[inside])
