"""Whether an attack outlives a file: adversarial images as 8-bit pixels and as a JPEG of quality 90."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datasets.perturbations import jpeg

JPEG_QUALITY = 90


def to_pixels(images: Tensor) -> np.ndarray:
    """Images ``(N, 3, H, W)`` in [0, 1] as a PNG file would hold them: ``(N, H, W, 3)`` uint8."""
    return images.detach().mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def from_pixels(pixels: np.ndarray, like: Tensor) -> Tensor:
    """The images that a detector reads from such files, on the device and in the memory order of ``like``."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(like.device).permute(0, 3, 1, 2).float()
    # A tensor as divisor, as in the evaluation loop: by a plain number a GPU multiplies with its rounded inverse.
    return images.div_(torch.tensor(255.0, device=like.device)).contiguous(memory_format=torch.channels_last)


def rounded(images: Tensor) -> Tensor:
    """Images after rounding to 8 bits a channel."""
    return from_pixels(to_pixels(images), images)


def recompressed(images: Tensor, quality: int = JPEG_QUALITY) -> Tensor:
    """Images after saving them as JPEG."""
    return from_pixels(np.stack([jpeg(image, quality) for image in to_pixels(images)]), images)
