"""MI-FGSM: iterated FGSM along a running sum of gradients, each divided by its mean magnitude; L-infinity only.

Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018 (arXiv 1710.06081).
"""

import torch
from torch import Tensor

from utils.attacks.gradient import Ball, LogitOf, default_alpha, input_gradient
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan


@register_attack(norms=("linf",), settings=("steps",))
def mifgsm(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Accumulate the gradients with a decay of 1, as in the paper."""
    alpha = default_alpha(plan.eps, plan.steps)
    ball = Ball(images, plan.eps, plan.norm)
    adversarial, momentum = images.clone(), torch.zeros_like(images)
    for _ in range(plan.steps):
        gradient = input_gradient(logit_of, adversarial, labels)
        momentum.add_(gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp_(min=1e-38))
        adversarial = ball.step(adversarial, momentum.clone(), alpha)
    return adversarial
