"""Power spectra for figures: two-dimensional, and averaged over rings."""

from __future__ import annotations

import numpy as np

SIDE = 128  # px of the analysed square; pictures are cropped, because resampling would change the spectrum


def central_luma(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Luma of the central square of ``(H, W, 3)`` uint8 RGB, ``(side, side)`` float64; small pictures are mirrored."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    missing = [max(0, side - length) for length in luma.shape]
    luma = np.pad(luma, [(each // 2, each - each // 2) for each in missing], mode="symmetric")
    top, left = ((length - side) // 2 for length in luma.shape)
    return luma[top : top + side, left : left + side]


def log_spectrum(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Log10 power spectrum ``(side, side)`` of the centre of an image, Hann window, zero frequency in the middle."""
    window = np.outer(np.hanning(side), np.hanning(side))
    luma = central_luma(image, side)
    return np.log10(np.abs(np.fft.fftshift(np.fft.fft2((luma - luma.mean()) * window))) ** 2 + 1e-3)


def radial_profile(spectrum: np.ndarray) -> np.ndarray:
    """Mean of a square spectrum over rings of width 1, ``(side // 2,)``, from 0 to 0.5 cycles per pixel."""
    side = len(spectrum)
    rows, columns = np.indices(spectrum.shape) - side // 2
    radius = np.hypot(rows, columns).round().astype(int)
    inside = radius < side // 2
    return np.bincount(radius[inside], spectrum[inside]) / np.bincount(radius[inside])
