"""Strong: the worst of four attacks for each image.

This follows AutoAttack as far as it applies to two classes: Croce, Hein, "Reliable Evaluation of Adversarial Robustness
with an Ensemble of Diverse Parameter-free Attacks", ICML 2020 (arXiv 2003.01690). Its targeted APGD on the DLR loss
needs at least three classes; PGD on the margin replaces it. FAB: Croce, Hein, "Minimally Distorted Adversarial Examples
with a Fast Adaptive Boundary Attack", ICML 2020 (arXiv 1907.02044).
"""

from functools import partial

import torch
from torch import Tensor

from utils.attacks.gradient import LogitOf, margin_of
from utils.attacks.methods.pgd import pgd
from utils.attacks.methods.square import square
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan
from utils.attacks.torchattacks_bridge import NORM_NAMES, run_torchattacks


@register_attack()
def strong(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Run each attack on the survivors of those before it; APGD gets one more restart than PGD.

    A survivor keeps the change that brought it closest to the boundary.
    """

    def apgd(x: Tensor, y: Tensor) -> Tensor:
        return run_torchattacks("APGD", logit_of, x, y, **shared, n_restarts=plan.restarts + 1)

    def fab(x: Tensor, y: Tensor) -> Tensor:
        return run_torchattacks("FAB", logit_of, x, y, **shared, n_classes=2)

    shared = {"norm": NORM_NAMES[plan.norm], "eps": plan.eps, "steps": plan.steps, "seed": plan.seed}
    worst = images.clone()
    margin = margin_of(logit_of, worst, labels)
    for attack in (partial(pgd, plan, logit_of), apgd, fab, partial(square, plan, logit_of)):
        alive = torch.nonzero(margin < 0).flatten()
        if not len(alive):
            break
        found = attack(images[alive], labels[alive])
        found_margin = margin_of(logit_of, found, labels[alive])
        better = found_margin > margin[alive]
        worst[alive[better]] = found[better]
        margin[alive[better]] = found_margin[better]
    return worst
