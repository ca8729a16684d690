"""Certificates by randomised smoothing: a radius within which no attack at all can change the answer.

Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019 (arXiv 1902.02918). The
certified classifier is not the detector but its majority vote under Gaussian noise, and it is only as good as the
detector is on noisy images; the detector is not retrained with noise here. The decision is taken at the threshold of
the checkpoint. Radii are L2, in pixel units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import binomtest, norm
from torch import Tensor

from utils.attacks.gradient import LogitOf

GUESS_DRAWS = 32  # noisy copies that choose the answer
DRAWS = 256  # further copies that bound how often it is given
FAILURE = 0.001  # probability that a certificate is wrong


@dataclass(frozen=True)
class Certificate:
    """``label`` of the smoothed detector, None where it abstains, and the L2 radius in which it cannot change."""

    label: int | None
    radius: float


def certify(
    logit_of: LogitOf, image: Tensor, sigma: float, generator: torch.Generator, batch_size: int = 64
) -> Certificate:
    """Certify one image ``(3, H, W)`` in [0, 1] under noise of standard deviation ``sigma`` (pixel units)."""
    guess = int(2 * count_fake(logit_of, image, sigma, GUESS_DRAWS, generator, batch_size) > GUESS_DRAWS)
    votes = count_fake(logit_of, image, sigma, DRAWS, generator, batch_size)
    votes = votes if guess else DRAWS - votes
    return certificate(guess, votes, DRAWS, sigma)


def certificate(guess: int, votes: int, draws: int, sigma: float) -> Certificate:
    """The certificate of ``votes`` out of ``draws`` for ``guess``: the exact lower bound of Clopper and Pearson."""
    low = binomtest(votes, draws, alternative="greater").proportion_ci(1 - FAILURE, "exact").low
    return Certificate(guess, float(sigma * norm.ppf(low))) if low > 0.5 else Certificate(None, 0.0)


@torch.no_grad()
def count_fake(
    logit_of: LogitOf, image: Tensor, sigma: float, draws: int, generator: torch.Generator, batch_size: int
) -> int:
    """How many of ``draws`` noisy copies are called fake. As in the paper, the copies may leave [0, 1]."""
    total = 0
    for start in range(0, draws, batch_size):
        size = (min(batch_size, draws - start), *image.shape)
        noise = torch.randn(size, generator=generator, device=image.device)
        total += int((logit_of((image + sigma * noise).contiguous(memory_format=torch.channels_last)) > 0).sum())
    return total
