"""FGSM: one step of size eps along the sign of the gradient, or along the gradient itself under L2.

Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015 (arXiv 1412.6572).
"""

from torch import Tensor

from utils.attacks import gradient
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan


@register_attack(settings=())
def fgsm(plan: Plan, logit_of: gradient.LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Take the one step from the image itself, without a random start."""
    return gradient.pgd(logit_of, images, labels, plan.eps, norm=plan.norm, alpha=plan.eps, steps=1, random_start=False)
