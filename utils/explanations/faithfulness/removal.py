"""Faithfulness by removal: remove the places that a map marks and measure how the logit changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.detector import Detector
from utils.explanations.layers import frozen
from utils.explanations.maps import blurred
from utils.explanations.regions import top_segments

SHARES = (0.2, 0.5)  # of the pixels, removed by ROAD
CURVE = (0.15, 0.45)  # of the pixels, deleted or inserted; 0 and 1 are the image and its blur
NOISE = 0.01  # added to imputed pixels, as in the paper
JACOBI_STEPS = 6
COARSE_SHARE = 0.5  # a coarse cell counts as known if at least this share of it is known
NEIGHBOURS = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
ATTACKED = 5  # segments
ATTACK_EPS = 2 / 255

Score = Callable[[Tensor], Tensor]


def removal_order(heat: np.ndarray, seed: int = 0) -> np.ndarray:
    """Rank ``(H, W)`` of each pixel, 0 for the most relevant; ties are ordered at random."""
    noise = np.random.default_rng(seed).random(heat.size)
    order = np.lexsort((noise, -heat.reshape(-1)))
    ranks = np.empty(heat.size, np.int64)
    ranks[order] = np.arange(heat.size)
    return ranks.reshape(heat.shape)


def impute(images: Tensor, missing: Tensor, noise: float = NOISE, seed: int = 0) -> Tensor:
    """Replace missing pixels by the weighted mean of their eight neighbours, plus a little noise.

    Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022 (arXiv
    2202.00449). Deviation: the linear system is solved from coarse to fine with a few Jacobi steps per size, for a
    whole batch at once; the tests bound the difference from the exact solution.

    Args:
        images: ``(N, 3, H, W)``.
        missing: ``(N, H, W)`` bool.
    """
    known = (~missing)[:, None].to(images)
    filled = _fill(images * known, known)
    generator = torch.Generator().manual_seed(seed)
    grain = noise * torch.randn(images.shape[1:], generator=generator).to(images)
    return torch.where(missing[:, None], (filled + grain).clamp(0, 1), images)


def _fill(values: Tensor, known: Tensor) -> Tensor:
    """Solve for the unknown pixels: ``values`` (N, 3, h, w) is 0 there, ``known`` (N, 1, h, w) is 0 or 1."""
    if min(known.shape[-2:]) <= 2:
        total = known.mean((2, 3), keepdim=True).clamp(min=1e-6)
        return torch.where(known > 0, values, values.mean((2, 3), keepdim=True) / total)
    share, mean = (F.avg_pool2d(each, 2, ceil_mode=True, count_include_pad=False) for each in (known, values))
    enough = (share >= COARSE_SHARE).to(values)
    coarse = _fill(mean / share.clamp(min=1e-6) * enough, enough)
    filled = F.interpolate(coarse, known.shape[-2:], mode="bilinear", align_corners=False)
    kernel = NEIGHBOURS.to(values).expand(3, 1, 3, 3)
    weight = F.conv2d(torch.ones_like(known[:1]), kernel[:1], padding=1)
    filled = torch.where(known > 0, values, filled)
    for _ in range(JACOBI_STEPS):
        filled = torch.where(known > 0, values, F.conv2d(filled, kernel, padding=1, groups=3) / weight)
    return filled


def road_combined(score: Score, images: Tensor, ranks: Tensor, shares: Sequence[float] = SHARES) -> Tensor:
    """ROAD: half the difference between the logits after removing the least and the most relevant pixels.

    Args:
        score: returns the target's logit ``(N,)`` for images.
        ranks: ``(N, H, W)``, 0 for the most relevant pixel.

    Returns:
        ``(N,)`` float64, mean over ``shares``; 0 is chance, higher is better. In logits.
    """
    total = torch.zeros(len(images), dtype=torch.float64)
    pixels = ranks[0].numel()
    for share in shares:
        least = impute(images, ranks >= pixels - share * pixels)
        most = impute(images, ranks < share * pixels)
        total += (score(least) - score(most)).double().cpu() / 2
    return total / len(shares)


def insertion_deletion(score: Score, images: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Areas under the insertion and deletion curves of the target's probability, ``(N,)`` in [0, 1] each.

    Petsiuk et al., "RISE", BMVC 2018 (arXiv 1806.07421); removed pixels are those of the blurred image. A good map has
    a high insertion and a low deletion area. Both mislead where the blurred image is itself evidence for the target;
    ROAD is less prone to that.
    """
    blank = blurred(images)
    shares = np.array([0, *CURVE, 1])
    curves = np.empty((2, len(shares), len(images)))
    curves[0, 0] = curves[1, -1] = torch.sigmoid(score(blank)).double().cpu()
    curves[0, -1] = curves[1, 0] = torch.sigmoid(score(images)).double().cpu()
    for place, share in enumerate(shares[1:-1], start=1):
        top = (ranks < share * ranks[0].numel())[:, None]
        curves[0, place] = torch.sigmoid(score(torch.where(top, images, blank))).double().cpu()
        curves[1, place] = torch.sigmoid(score(torch.where(top, blank, images))).double().cpu()
    areas = torch.from_numpy(np.trapezoid(curves, shares, axis=1))
    return areas[0], areas[1]


def attack_direction(detector: Detector, images: Tensor) -> Tensor:
    """Sign of the gradient of the logit at each pixel, ``(N, 3, H, W)``; one forward and one backward pass."""
    with frozen(detector), torch.enable_grad():
        pixels = images.clone().requires_grad_()
        return torch.autograd.grad(detector(pixels).sum(), pixels)[0].sign()


def attacked_segments(
    images: Tensor, direction: Tensor, heats: np.ndarray, segments: Sequence[np.ndarray], says_fake: Tensor
) -> Tensor:
    """Attack the strongest segments of each image against its verdict, by one step of ``ATTACK_EPS``.

    After Tsigos et al. (arXiv 2404.18649); the attack is FGSM (Goodfellow et al., ICLR 2015, arXiv 1412.6572) inside
    the mask, and all methods share its gradient.
    """
    top = [top_segments(heat, part, ATTACKED) > 0 for heat, part in zip(heats, segments, strict=True)]
    mask = torch.from_numpy(np.stack(top)).to(images)[:, None]
    against = torch.where(says_fake, -1.0, 1.0).to(images).view(-1, 1, 1, 1)
    return (images + ATTACK_EPS * against * direction * mask).clamp(0, 1)
