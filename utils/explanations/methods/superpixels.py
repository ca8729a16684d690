"""LIME on superpixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils.explanations.maps import Question
from utils.explanations.regions import SEGMENTS, segment
from utils.explanations.registry import register_explanation

KERNEL_WIDTH = 0.25  # of LIME's similarity
RIDGE = 1.0


@register_explanation("superpixels", "LIME superpixels", table_options={"samples": 40, "segments": 20})
@torch.inference_mode()
def superpixels(question: Question, samples: int = 200, segments: int = SEGMENTS, seed: int = 0) -> Tensor:
    """Weight of each superpixel in a local linear model, ``(N, H, W)``; ``samples`` forward passes.

    Ribeiro et al., "Why Should I Trust You?", KDD 2016 (arXiv 1602.04938): segments are blurred at random, and a
    weighted ridge regression of the target on the kept segments gives each segment a coefficient. Tsigos et al.,
    "Towards Quantitative Evaluation of Explainable AI Methods for Deepfake Detection", MAD 2024 (arXiv 2404.18649),
    rank it first of five methods on a deepfake detector.
    """
    images = question.images
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    parts = [segment(image, segments) for image in pixels]
    counts = [int(part.max()) + 1 for part in parts]
    numbers = torch.from_numpy(np.stack(parts)).to(images.device).flatten(1)
    kept = np.random.default_rng(seed).random((samples, len(images), max(counts))) < 0.5
    kept[0] = True  # the image itself
    targets = np.empty((samples, len(images)))
    for row in range(samples):
        mask = torch.from_numpy(kept[row]).to(images.device).gather(1, numbers)
        mask = mask.view(len(images), 1, *images.shape[-2:])
        targets[row] = question.score(torch.where(mask, images, question.blurred)).cpu().numpy()
    heats = [
        local_weights(kept[:, index, :count], targets[:, index])[part]
        for index, (part, count) in enumerate(zip(parts, counts, strict=True))
    ]
    return torch.from_numpy(np.stack(heats)).float().relu()


def local_weights(kept: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Coefficients ``(S,)`` of LIME's weighted ridge regression of targets ``(M,)`` on kept segments ``(M, S)``."""
    x = kept.astype(np.float64)
    cosine = np.sqrt(x.mean(axis=1))  # between a row of zeros and ones and the row of ones
    weights = np.exp(-((1 - cosine) ** 2) / KERNEL_WIDTH**2)
    x_centred = x - np.average(x, axis=0, weights=weights)
    y_centred = targets - np.average(targets, weights=weights)
    gram = (x_centred * weights[:, None]).T @ x_centred + RIDGE * np.eye(x.shape[1])
    return np.linalg.solve(gram, (x_centred * weights[:, None]).T @ y_centred)
