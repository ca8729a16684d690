"""Random degradations of training images, as delivery channels cause them, with OpenCV.

The same steps in albumentations take twice as long, mostly because it draws the noise of every image; see
studies/speed/input_pipeline.py.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

import cv2
import numpy as np

NOISE_POOL = 1 << 22  # numbers; an image takes a slice that starts anywhere

Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@functools.cache
def noise_pool() -> np.ndarray:
    """Standard normal numbers, the same in every process."""
    return np.random.default_rng(0).standard_normal(NOISE_POOL, dtype=np.float32)


def downscale(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Scale by 0.5..0.95 and back."""
    height, width = image.shape[:2]
    scale = generator.uniform(0.5, 0.95)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))


def blur(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian blur of sigma 0.3..2 px.

    Two passes in floating point take half the time of cv2.GaussianBlur. That one gives the same pixels on every
    machine; here a pixel may differ by one level.
    """
    sigma = generator.uniform(0.3, 2.0)
    kernel = cv2.getGaussianKernel(round(6 * sigma + 1) | 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(image, -1, kernel, kernel)


def noise(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise of 0.5..4 % of the range per pixel and channel.

    The numbers come from a pool of four million, because drawing them takes longer than all other steps.
    """
    pool, n = noise_pool(), image.size
    std = 255 * generator.uniform(0.005, 0.04)
    if n >= len(pool):  # an image of more than 1,182 x 1,182 px
        numbers = generator.standard_normal(image.shape, dtype=np.float32)
    else:
        start = int(generator.integers(len(pool) - n))
        numbers = pool[start : start + n].reshape(image.shape)
    return cv2.addWeighted(image, 1.0, numbers, std, 0.0, dtype=cv2.CV_8U)


def jpeg(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """JPEG of quality 40..95."""
    return recode(image, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, int(generator.integers(40, 96))))


def zoom(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A window of 0.55..1 of the sides, enlarged to full size: the tight, soft faces of small pictures.

    Without it, a detector trained on identically framed faces learns that soft means fake.
    """
    rows, columns = window_sides(image, generator.uniform(0.55, 1.0))
    top = int(generator.integers(image.shape[0] - rows + 1))
    left = int(generator.integers(image.shape[1] - columns + 1))
    return enlarge(image, image[top : top + rows, left : left + columns])


def tight(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A window of 0.5..1 of the sides around a point near the middle, enlarged: a face without its surroundings."""
    rows, columns = window_sides(image, generator.uniform(0.5, 1.0))
    top = round((image.shape[0] - rows) * generator.uniform(0.25, 0.75))
    left = round((image.shape[1] - columns) * generator.uniform(0.25, 0.75))
    return enlarge(image, image[top : top + rows, left : left + columns])


def window_sides(image: np.ndarray, share: float) -> tuple[int, int]:
    """Height and width in px of this share of an image, one at least."""
    return max(1, round(image.shape[0] * share)), max(1, round(image.shape[1] * share))


def enlarge(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Resample a window to the size of its image, bicubic."""
    return cv2.resize(np.ascontiguousarray(window), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def tone(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Another camera or editor: gamma 0.7..1.4, contrast, white balance and saturation; one in six becomes grey.

    Tones carry no trace of a generator; without this step the studio light of one dataset may be mistaken for one.
    """
    gamma, contrast = generator.uniform(0.7, 1.4), generator.uniform(0.75, 1.2)
    balance = generator.uniform(0.92, 1.08, 3)
    levels = np.linspace(0, 1, 256)[:, None] ** gamma
    table = np.clip(255 * ((levels - 0.5) * contrast + 0.5) * balance, 0, 255).round().astype(np.uint8)
    image = cv2.LUT(image, table[None])
    return saturate(image, 0.0 if generator.random() < 1 / 6 else generator.uniform(0.5, 1.3))


def grade(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A photographer's colour grading: gamma 0.5..2, contrast, tinted shadows and lights; one in eight becomes grey.

    Stronger than `tone`. Image generators imitate such portraits; applied to both classes, the style is no cue.
    """
    gamma, contrast = np.exp(generator.uniform(-0.7, 0.7)), generator.uniform(0.6, 1.4)
    shadows, lights = generator.uniform(-0.12, 0.12, (2, 3))
    levels = np.linspace(0, 1, 256)[:, None] ** gamma
    middle = 0.5**gamma
    graded = (levels - middle) * contrast + middle + shadows * (1 - levels) ** 2 + lights * levels**2
    image = cv2.LUT(image, np.clip(255 * graded, 0, 255).round().astype(np.uint8)[None])
    return saturate(image, 0.0 if generator.random() < 1 / 8 else generator.uniform(0.3, 1.5))


def saturate(image: np.ndarray, saturation: float) -> np.ndarray:
    """Scale the saturation; 0 makes the image grey."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, saturation, grey, 1 - saturation, 0.0)


def vignette(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Darken by 20..90 % away from a point near the middle."""
    (height, width), (y, x) = image.shape[:2], generator.uniform(0.2, 0.8, 2)
    rows = (np.linspace(0, 1, height, dtype=np.float32) - np.float32(y))[:, None] ** 2
    columns = (np.linspace(0, 1, width, dtype=np.float32) - np.float32(x)) ** 2
    light = 1 - np.float32(generator.uniform(0.2, 0.9)) * np.minimum((rows + columns) / 0.6, 1)
    return (image * light[..., None]).astype(np.uint8)


def share_online(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An upload to a website, enlarged by the detector: scale 0.4..1, JPEG or WebP of quality 50..90, full size."""
    height, width = image.shape[:2]
    scale = generator.uniform(0.4, 1.0)
    small = cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    quality = int(generator.integers(50, 91))
    if generator.random() < 0.5:
        small = recode(small, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, quality))
    else:
        small = recode(small, ".webp", (cv2.IMWRITE_WEBP_QUALITY, quality))
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def recode(image: np.ndarray, extension: str, options: Sequence[int]) -> np.ndarray:
    """Encode ``(H, W, 3)`` uint8 RGB in the format of this file extension and decode it again."""
    _, data = cv2.imencode(extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None  # it was encoded a line above
    return decoded


# After the steps that change the face: sites, messengers and what is left of the others.
DELIVERY = ((share_online, 0.4), (blur, 0.1), (noise, 0.1), (jpeg, 0.2))

# The steps of each preset in order, with their probabilities; every preset but `none` flips first. Each preset
# degrades more than the ones above it.
STEPS: dict[str, tuple[tuple[Degradation, float], ...]] = {
    "none": (),
    "light": (),
    "forensic": ((downscale, 0.2), (blur, 0.2), (noise, 0.2), (jpeg, 0.4)),
    "delivery": ((zoom, 0.25), *DELIVERY),
    "graded": ((zoom, 0.25), (grade, 0.35), (vignette, 0.15), *DELIVERY),
    "wild": ((tight, 0.5), (tone, 0.4), (share_online, 0.4), (blur, 0.1), (noise, 0.05), (jpeg, 0.1)),
}


def is_flipped(seed: int) -> bool:
    """Whether the image with this seed is flipped; half of them are.

    The second draw of Python's generator decides, as in the albumentations version of the published runs, which must
    stay reproducible bit for bit.
    """
    draws = random.Random(seed)
    draws.random()
    return draws.random() < 0.5


def augment(
    image: np.ndarray, steps: tuple[tuple[Degradation, float], ...], generator: np.random.Generator, seed: int
) -> np.ndarray:
    """Flip ``(H, W, 3)`` uint8 RGB with probability 0.5, then apply each step with its probability."""
    if is_flipped(seed):
        image = cv2.flip(image, 1)
    for step, probability in steps:
        if generator.random() < probability:
            image = step(np.ascontiguousarray(image), generator)
    return image
