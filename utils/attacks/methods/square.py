"""Square: random squares that are kept where they lower the margin. It queries scores only, no gradient.

Andriushchenko et al., "Square Attack: a Query-efficient Black-box Adversarial Attack via Random Search", ECCV 2020
(arXiv 1912.00049).
"""

from torch import Tensor

from utils.attacks.gradient import LogitOf
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan
from utils.attacks.torchattacks_bridge import NORM_NAMES, run_torchattacks
from utils.errors import UserError

MIN_SIDE = 25  # px; below it, the 5 x 5 tiles of torchattacks leave the image under L2


@register_attack(needs_gradient=False)
def square(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Search with ``plan.queries`` queries per image."""
    if plan.norm == "l2" and min(images.shape[-2:]) < MIN_SIDE:
        raise UserError(f"expected an input of at least {MIN_SIDE} px for square under L2, got less; use --norm linf")
    settings = {"n_queries": plan.queries, "seed": plan.seed}
    return run_torchattacks("Square", logit_of, images, labels, norm=NORM_NAMES[plan.norm], eps=plan.eps, **settings)
