"""Strong: the worst of four attacks for each image.

This follows AutoAttack as far as it applies to two classes: Croce, Hein, "Reliable Evaluation of Adversarial Robustness
with an Ensemble of Diverse Parameter-free Attacks", ICML 2020 (arXiv 2003.01690). Its targeted APGD on the DLR loss
needs at least three classes; PGD on the margin replaces it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from utils.attacks.gradient import LogitOf, margin_of
from utils.attacks.methods.apgd import apgd
from utils.attacks.methods.fab import fab
from utils.attacks.methods.pgd import pgd
from utils.attacks.methods.square import square
from utils.attacks.registry import register_attack
from utils.attacks.threat_model import Plan


@register_attack()
def strong(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Run each attack on the survivors of those before it; APGD gets one more restart than PGD.

    A survivor keeps the change that brought it closest to the boundary.
    """
    worst = images.clone()
    margin = margin_of(logit_of, worst, labels)
    for attack in (pgd, apgd, fab, square):
        alive = torch.nonzero(margin < 0).flatten()
        if not len(alive):
            break
        settings = replace(plan, restarts=plan.restarts + 1) if attack is apgd else plan
        found = attack(settings, logit_of, images[alive], labels[alive])
        found_margin = margin_of(logit_of, found, labels[alive])
        better = found_margin > margin[alive]
        worst[alive[better]] = found[better]
        margin[alive[better]] = found_margin[better]
    return worst
