"""FAB: steps to the linearised decision boundary, biased towards the original image.

Croce, Hein, "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML 2020 (arXiv
1907.02044).
"""

from torch import Tensor

from utils.attacks.gradient import LogitOf
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan
from utils.attacks.torchattacks_bridge import NORM_NAMES, run_torchattacks


@register_attack()
def fab(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Change only the images that the attack turns."""
    settings = {"steps": plan.steps, "seed": plan.seed, "n_classes": 2}
    return run_torchattacks("FAB", logit_of, images, labels, norm=NORM_NAMES[plan.norm], eps=plan.eps, **settings)
