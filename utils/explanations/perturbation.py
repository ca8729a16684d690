"""Explanations by changing the image and looking at the logit: integrated gradients, occlusion, LIME superpixels.

What is taken away is replaced by the blurred image: it keeps the face and the colours and drops the fine traces that
detectors read. A grey patch would bring sharp edges of its own.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from models.detector import Detector
from utils.explanations.cam import frozen
from utils.explanations.superpixels import segment

BLUR = 2.0  # px, sigma; of 128 px images, in proportion for others
SMOOTH = 1 / 48  # of the side, sigma: pixels alone say nothing, their neighbourhoods do
KERNEL_WIDTH = 0.25  # of LIME's similarity
RIDGE = 1.0


def blurred(images: Tensor, sigma: float = BLUR) -> Tensor:
    """Blur ``(N, 3, H, W)`` by a Gaussian of ``sigma`` px at 128 px."""
    scaled = sigma * max(images.shape[-2:]) / 128
    planes = images.flatten(0, 1).float().cpu().numpy()
    smooth = np.stack([cv2.GaussianBlur(plane, (0, 0), scaled) for plane in planes])
    return torch.from_numpy(smooth).to(images.device).reshape(images.shape)


def integrated_gradients(detector: Detector, images: Tensor, sign: Tensor, steps: int = 16) -> Tensor:
    """Attribution of each pixel ``(N, H, W)``, signed: their sum is the target minus that of the blurred image.

    Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017 (arXiv 1703.01365), midpoint rule;
    deviation: the path starts at the blurred image and not at black.
    """
    start = blurred(images)
    total = torch.zeros_like(images)
    with frozen(detector), torch.enable_grad():
        for step in range(steps):
            point = (start + (step + 0.5) / steps * (images - start)).requires_grad_()
            total += torch.autograd.grad((detector(point) * sign).sum(), point)[0]
    return ((images - start) * total / steps).sum(1)


def integrated_gradients_map(detector: Detector, images: Tensor, sign: Tensor, steps: int = 16) -> Tensor:
    """What speaks for the target after smoothing the attributions, ``(N, H, W)``, not below 0."""
    signed = integrated_gradients(detector, images, sign, steps)
    return blurred(signed[:, None], 128 * SMOOTH)[:, 0].relu()


def spans(length: int, grid: int) -> list[tuple[int, int]]:
    """Cut a side into ``grid`` windows, each overlapping the next by half: (first, last + 1)."""
    edges = np.linspace(0, length, grid + 2).round().astype(int).tolist()
    return [(first, max(last, first + 1)) for first, last in zip(edges[:-2], edges[2:], strict=True)]


@torch.inference_mode()
def occlusion(detector: Detector, images: Tensor, sign: Tensor, grid: int = 7) -> Tensor:
    """How much the target falls when a window is blurred, ``(N, H, W)``, not below 0; grid * grid forward passes.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014 (arXiv 1311.2901).
    """
    fill = blurred(images)
    whole = detector(images).float() * sign
    total = torch.zeros(len(images), *images.shape[-2:], device=images.device)
    cover = torch.zeros(images.shape[-2:], device=images.device)
    for top, bottom in spans(images.shape[-2], grid):
        for left, right in spans(images.shape[-1], grid):
            changed = images.clone()
            changed[..., top:bottom, left:right] = fill[..., top:bottom, left:right]
            fall = whole - detector(changed).float() * sign
            total[:, top:bottom, left:right] += fall[:, None, None]
            cover[top:bottom, left:right] += 1
    return (total / cover).relu()


@torch.inference_mode()
def superpixels(
    detector: Detector, images: Tensor, sign: Tensor, samples: int = 200, count: int = 36, seed: int = 0
) -> Tensor:
    """LIME on superpixels, ``(N, H, W)``, not below 0; ``samples`` forward passes.

    Ribeiro et al., "Why Should I Trust You?", KDD 2016 (arXiv 1602.04938): segments are blurred at random, and a
    weighted ridge regression of the target on what was kept gives each segment its coefficient. Tsigos et al.,
    "Towards Quantitative Evaluation of Explainable AI Methods for Deepfake Detection", MAD 2024 (arXiv 2404.18649),
    found it the best of five on a deepfake detector.
    """
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    segments = [segment(image, count) for image in pixels]
    numbers = torch.from_numpy(np.stack(segments)).to(images.device)
    generator = np.random.default_rng(seed)
    kept = generator.random((samples, len(images), max(int(part.max()) for part in segments) + 1)) < 0.5
    kept[0] = True  # the image itself
    fill, targets = blurred(images), np.empty((samples, len(images)))
    for row in range(samples):
        keep = torch.from_numpy(kept[row]).to(images.device)
        mask = keep.gather(1, numbers.flatten(1)).view(len(images), 1, *images.shape[-2:])
        targets[row] = (detector(torch.where(mask, images, fill)).float() * sign).cpu().numpy()
    heats = [
        local_weights(kept[:, index, : int(part.max()) + 1], targets[:, index])[part]
        for index, part in enumerate(segments)
    ]
    return torch.from_numpy(np.stack(heats)).float().relu()


def local_weights(kept: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Coefficients ``(S,)`` of the ridge regression of targets ``(M,)`` on kept segments ``(M, S)``, as LIME weighs."""
    x = kept.astype(np.float64)
    cosine = np.sqrt(x.mean(axis=1))  # between a row of zeros and ones and the row of ones
    weights = np.exp(-((1 - cosine) ** 2) / KERNEL_WIDTH**2)
    x_centred = x - np.average(x, axis=0, weights=weights)
    y_centred = targets - np.average(targets, weights=weights)
    gram = (x_centred * weights[:, None]).T @ x_centred + RIDGE * np.eye(x.shape[1])
    return np.linalg.solve(gram, (x_centred * weights[:, None]).T @ y_centred)
