"""Building blocks of forgeries: colour, sharpness and position changes, up-sampling layers, skin filters, warps.

Images are ``(H, W, 3)`` RGB uint8; up-sampling works on float32 grey levels. No function changes its input, and all
draws come from the generator.
"""

from __future__ import annotations

import cv2
import numpy as np

from datasets.demo_set.fakes import up_convolve, upsampling_kernel
from datasets.forgeries.masks import FaceFrame


def composite(image: np.ndarray, copy: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mix two uint8 images by the weight ``(H, W)`` of the second; pixels of weight 0 stay unchanged."""
    return cv2.blendLinear(image, copy, 1 - mask, mask)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round grey levels to uint8."""
    return cv2.convertScaleAbs(np.maximum(image, 0))


def change_colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another white balance, brightness, contrast and saturation: one matrix on the colours."""
    gain = rng.uniform(0.88, 1.12) * (1 + 0.04 * rng.standard_normal(3))
    saturation, offset = rng.uniform(0.75, 1.25), 8 * rng.standard_normal() + 4 * rng.standard_normal(3)
    mixing = saturation * np.eye(3) + (1 - saturation) * np.array([0.299, 0.587, 0.114])
    pivot = image[::8, ::8].mean(axis=(0, 1))  # contrast is relative to the mean, which keeps skin tones plausible
    matrix = gain[:, None] * mixing
    return cv2.transform(image, np.column_stack([matrix, pivot - matrix @ pivot + offset]).astype(np.float32))


def change_sharpness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Soften, by scaling down and up or by blur, or sharpen."""
    kind = rng.random()
    height, width = image.shape[:2]
    if kind < 0.4:
        scale = rng.uniform(0.35, 0.8)
        small = (max(8, round(width * scale)), max(8, round(height * scale)))
        how = cv2.INTER_AREA if rng.random() < 0.5 else cv2.INTER_LINEAR
        return cv2.resize(cv2.resize(image, small, interpolation=how), (width, height), interpolation=cv2.INTER_CUBIC)
    blurred = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.5, 1.3))
    if kind < 0.6:
        return blurred
    amount = rng.uniform(0.4, 1.5)
    return cv2.addWeighted(image, 1 + amount, blurred, -amount, 0)


def move(image: np.ndarray, rng: np.random.Generator, shift: float, scale: float, degrees: float) -> np.ndarray:
    """Shift by up to ``shift`` of the sides, scale by up to 1 +- ``scale`` and rotate around the middle."""
    height, width = image.shape[:2]
    turn, factor = rng.uniform(-degrees, degrees), 1 + rng.uniform(-scale, scale)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, factor)
    step = np.column_stack([np.zeros((2, 2)), rng.uniform(-shift, shift, 2) * (width, height)])
    how = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix + step, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT_101)


def mirror(image: np.ndarray, face: FaceFrame) -> np.ndarray:
    """Mirror around the middle of the face, so that the eyes change places."""
    matrix = np.array([[-1, 0, 2 * face.x * image.shape[1] - 1], [0, 1, 0]], np.float32)
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)


def transposed_convolution(low: np.ndarray, rng: np.random.Generator, flaw: float) -> np.ndarray:
    """Double the size by zero insertion and a nearly bilinear kernel, different for each channel."""
    return cv2.merge([up_convolve(low[..., k : k + 1], upsampling_kernel(rng, 2 * flaw)) for k in range(3)])


def nearest_convolution(low: np.ndarray, rng: np.random.Generator, flaw: float) -> np.ndarray:
    """Double the size by repeating pixels, then apply a small random kernel and phases that differ by ``flaw``."""
    high = cv2.resize(low, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    taps = np.array([0.15, 0.7, 0.15]) + 0.05 * rng.standard_normal(3)
    kernel = np.outer(taps, taps) * (1 + 0.1 * rng.standard_normal((3, 3)))
    return phase_gains(cv2.filter2D(high, -1, kernel / kernel.sum()), rng, flaw / 2)


def pixel_shuffle(low: np.ndarray, rng: np.random.Generator, flaw: float) -> np.ndarray:
    """Double the size smoothly, with a different gain for each of the four pixels that replace one."""
    return phase_gains(cv2.resize(low, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR), rng, flaw)


def phase_gains(high: np.ndarray, rng: np.random.Generator, flaw: float) -> np.ndarray:
    """Multiply each of the four phases of a 2 x 2 px grid by about 1 +- ``flaw``, slightly different per channel."""
    grey, colour = rng.standard_normal((2, 2, 1)), rng.standard_normal((2, 2, 3))
    gains = (1 + flaw * (grey + 0.4 * colour)).astype(np.float32)
    return high * np.tile(gains, (high.shape[0] // 2, high.shape[1] // 2, 1))


UPSAMPLERS = (transposed_convolution, nearest_convolution, pixel_shuffle)


def bilateral(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth skin but not edges."""
    return cv2.bilateralFilter(image, 7, rng.uniform(20, 60), rng.uniform(2, 4))


def median(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Remove small details."""
    return cv2.medianBlur(image, 5 if rng.random() < 0.5 else 7)


def guided(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth by local linear fits to the luma. K. He, J. Sun, X. Tang, "Guided Image Filtering", ECCV 2010."""
    side = 2 * int(rng.integers(2, 6)) + 1
    photo = image.astype(np.float32)
    luma = photo @ np.array([0.299, 0.587, 0.114], np.float32)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (side, side))

    middle, average = mean(luma), mean(photo)
    spread = mean(luma * luma) - middle * middle
    slope = (mean(photo * luma[..., None]) - average * middle[..., None]) / (spread + rng.uniform(20, 150))[..., None]
    return to_uint8(mean(slope) * luma[..., None] + mean(average - slope * middle[..., None]))


SMOOTHERS = (bilateral, median, guided)


def liquify(image: np.ndarray, face: FaceFrame, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Push, widen or narrow a round part of the face, strongest in its middle."""
    height, width = image.shape[:2]
    unit = face.half_width * width
    centre = np.array([face.x * width, face.y * height]) + unit * rng.uniform(-0.6, 0.6, 2)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    across, down = columns - np.float32(centre[0]), rows - np.float32(centre[1])
    weight = np.maximum(0, 1 - (across**2 + down**2) / np.float32(unit * rng.uniform(0.5, 1.0)) ** 2) ** 2
    way, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 0.2)
    push = unit * rng.uniform(0.04, 0.12) * np.array([np.cos(way), np.sin(way)])
    step_x = weight * (np.float32(push[0]) + np.float32(zoom) * across)
    step_y = weight * (np.float32(push[1]) + np.float32(zoom) * down)
    moved = cv2.remap(image, columns + step_x, rows + step_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    mask = np.minimum(1, 6 * weight)
    return composite(image, moved, mask), mask
