"""APGD on the cross-entropy: PGD whose step halves where progress stalls.

Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks", ICML
2020 (arXiv 2003.01690).
"""

from torch import Tensor

from utils.attacks.gradient import LogitOf
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan
from utils.attacks.torchattacks_bridge import NORM_NAMES, run_torchattacks


@register_attack()
def apgd(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Change only the images that the attack turns."""
    settings = {"steps": plan.steps, "n_restarts": plan.restarts, "seed": plan.seed}
    return run_torchattacks("APGD", logit_of, images, labels, norm=NORM_NAMES[plan.norm], eps=plan.eps, **settings)
