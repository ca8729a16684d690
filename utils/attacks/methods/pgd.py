"""PGD: projected gradient ascent from a random point of the ball.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018 (arXiv 1706.06083).
"""

from torch import Tensor

from utils.attacks import gradient
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan


@register_attack(settings=("steps", "restarts"))
def pgd(plan: Plan, logit_of: gradient.LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Ascend the margin; each image keeps the best of its restarts."""
    return gradient.pgd(logit_of, images, labels, plan.eps, norm=plan.norm, steps=plan.steps, restarts=plan.restarts)
