"""Controls: maps that do not depend on the detector, and a detector with shuffled weights."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from models.detector import Detector
from utils.explanations.maps import enlarge

RANDOM_GRID = 8  # cells per side: as coarse as most activation maps
CENTRE_WIDTH = 0.25  # of the side, sigma


def control_maps(images: Tensor, seed: int) -> dict[str, Tensor]:
    """Maps of images ``(N, 3, H, W)`` that need no detector, ``(N, H, W)`` float32 each, not below 0.

    ``random`` is uniform noise on a coarse grid, different for each image; ``centre`` a Gaussian in the middle, where
    faces are; ``edges`` the strength of the luma gradient.
    """
    count, _, height, width = images.shape
    noise = np.random.default_rng(seed).random((count, RANDOM_GRID, RANDOM_GRID), dtype=np.float32)
    return {
        "random": enlarge(torch.from_numpy(noise), (height, width)),
        "centre": centre_map(height, width).expand(count, -1, -1),
        "edges": torch.from_numpy(np.stack([edge_map(image) for image in images.cpu().numpy()])),
    }


def centre_map(height: int, width: int) -> Tensor:
    """A Gaussian ``(H, W)`` in the middle of the image."""
    rows, columns = (((torch.arange(side) + 0.5) / side - 0.5) / CENTRE_WIDTH for side in (height, width))
    return torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / 2)


def edge_map(image: np.ndarray) -> np.ndarray:
    """Strength of the luma gradient of ``(3, H, W)`` float RGB, slightly smoothed."""
    luma = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), image.astype(np.float32), 1)
    strength = np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1))
    return cv2.GaussianBlur(strength, (0, 0), max(image.shape[1:]) / 64)


def randomised(detector: Detector, seed: int) -> Detector:
    """A copy of the detector with the entries of every parameter and of the batch-norm statistics shuffled.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292). Deviation: all layers at once,
    and shuffled instead of redrawn, so that no layer saturates.
    """
    shuffled = copy.deepcopy(detector)
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in shuffled.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    statistics = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    with torch.no_grad():
        for tensor in (*shuffled.parameters(), *statistics):
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            tensor.copy_(tensor.reshape(-1)[order].view_as(tensor))
    return shuffled


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two maps; NaN if one of them is constant."""
    ranks = [rankdata(each) for each in (first, second)]
    if min(np.ptp(each) for each in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])
