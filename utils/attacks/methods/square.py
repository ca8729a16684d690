"""Square: random squares that are kept where they lower the margin. It queries scores only, no gradient.

Andriushchenko et al., "Square Attack: a Query-efficient Black-box Adversarial Attack via Random Search", ECCV 2020
(arXiv 1912.00049).
"""

from torch import Tensor

from utils.attacks.gradient import LogitOf
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan
from utils.attacks.torchattacks_bridge import NORM_NAMES, run_torchattacks


@register_attack(needs_gradient=False)
def square(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Search with ``plan.queries`` queries per image."""
    settings = {"n_queries": plan.queries, "seed": plan.seed}
    return run_torchattacks("Square", logit_of, images, labels, norm=NORM_NAMES[plan.norm], eps=plan.eps, **settings)
