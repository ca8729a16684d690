"""CW: the smallest L2 change that crosses the boundary, found with Adam.

Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", IEEE S&P 2017 (arXiv 1608.04644). Unlike the
paper, this uses one fixed weight c = 10 of the loss instead of a search for it.
"""

from torch import Tensor

from utils.attacks.gradient import LogitOf
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan
from utils.attacks.torchattacks_bridge import run_torchattacks, within_eps


@register_attack(settings=("steps",))
def cw(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Return images whose change exceeds eps, in the norm of the plan, unchanged."""
    # The default learning rate of torchattacks moves a pixel by 2/255 in the first step.
    found = run_torchattacks("CW", logit_of, images, labels, steps=plan.steps, c=10.0, lr=0.002)
    return within_eps(plan, images, found)
