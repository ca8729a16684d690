"""DeepFool: the smallest L2 change, in steps to the linearised decision boundary.

Moosavi-Dezfooli et al., "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016 (arXiv
1511.04599).
"""

from torch import Tensor

from utils.attacks.gradient import LogitOf
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan
from utils.attacks.torchattacks_bridge import run_torchattacks, within_eps


@register_attack(settings=("steps",))
def deepfool(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Return images whose change exceeds eps, in the norm of the plan, unchanged."""
    return within_eps(plan, images, run_torchattacks("DeepFool", logit_of, images, labels, steps=plan.steps))
