"""Square: random squares that are kept where they lower the margin. It queries scores only, no gradient.

Andriushchenko et al., "Square Attack: a Query-efficient Black-box Adversarial Attack via Random Search", ECCV 2020
(arXiv 1912.00049).
"""

import torch
from torch import Tensor

from utils.attacks.gradient import LogitOf
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan
from utils.attacks.torchattacks_bridge import NORM_NAMES, run_torchattacks
from utils.errors import UserError


@register_attack(needs_gradient=False, settings=("queries",))
def square(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Search with ``plan.queries`` queries per image.

    Raises:
        UserError: under L2, images of a size at which the tiles of torchattacks do not fit (24 px is one).
    """
    settings = {"n_queries": plan.queries, "seed": plan.seed}
    try:
        return run_torchattacks(
            "Square", logit_of, images, labels, norm=NORM_NAMES[plan.norm], eps=plan.eps, **settings
        )
    except RuntimeError as error:
        if plan.norm != "l2" or isinstance(error, torch.OutOfMemoryError):
            raise
        height, width = images.shape[-2:]
        raise UserError(
            f"expected images that Square's L2 tiles fit, got {height} x {width} px, at which torchattacks fails; "
            "use --norm linf or a detector with another input size"
        ) from None
