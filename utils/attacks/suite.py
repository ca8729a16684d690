"""Every attack by its name on the command line, and the strong suite that joins the best of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.attacks.gradient import LogitOf, check_images, fgsm, loss_per_image, mifgsm, pgd
from utils.attacks.torchattacks_bridge import apgd, fab, minimal_attack, square


@dataclass(frozen=True)
class Plan:
    """One attack with all its settings; sizes in pixel units, ``alpha`` None for 2.5 eps / steps."""

    attack: str
    norm: str
    eps: float
    alpha: float | None = None
    steps: int = 20
    restarts: int = 1
    queries: int = 500
    seed: int = 0

    def run(self, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
        """Attack images ``(N, 3, H, W)`` in [0, 1] with labels ``(N,)``; the same seed gives the same result."""
        check_images(images)
        torch.manual_seed(self.seed)
        return ATTACK_FUNCTIONS[self.attack](self, logit_of, images, labels)


def run_strong(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """The worst of PGD on the margin, APGD-CE with restarts, FAB and Square, each on the survivors of those before.

    The suite of Croce and Hein (AutoAttack, ICML 2020, arXiv 2003.01690) as far as it is correct on two classes: its
    targeted APGD on the DLR loss needs at least three, and PGD on the margin stands in for it. A survivor keeps the
    change that brought it closest to the boundary.
    """
    shared = {"steps": plan.steps, "seed": plan.seed}
    members: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, y: pgd(
            logit_of, x, y, plan.eps, norm=plan.norm, alpha=plan.alpha, steps=plan.steps, restarts=plan.restarts
        ),
        lambda x, y: apgd(logit_of, x, y, plan.eps, plan.norm, restarts=plan.restarts + 1, **shared),
        lambda x, y: fab(logit_of, x, y, plan.eps, plan.norm, **shared),
        lambda x, y: square(logit_of, x, y, plan.eps, plan.norm, plan.queries, plan.seed),
    ]
    worst = images.clone()
    margin = margin_of(logit_of, worst, labels)
    for member in members:
        alive = torch.nonzero(margin < 0).flatten()
        if not len(alive):
            break
        found = member(images[alive], labels[alive])
        found_margin = margin_of(logit_of, found, labels[alive])
        better = found_margin > margin[alive]
        worst[alive[better]] = found[better]
        margin[alive[better]] = found_margin[better]
    return worst


@torch.no_grad()
def margin_of(logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """How far each image is on the wrong side of the boundary, ``(N,)``: negative means that it is called right."""
    return loss_per_image(logit_of(images), labels, "margin")


ATTACK_FUNCTIONS: dict[str, Callable[[Plan, LogitOf, Tensor, Tensor], Tensor]] = {
    "fgsm": lambda p, f, x, y: fgsm(f, x, y, p.eps, p.norm),
    "pgd": lambda p, f, x, y: pgd(f, x, y, p.eps, norm=p.norm, alpha=p.alpha, steps=p.steps, restarts=p.restarts),
    "mifgsm": lambda p, f, x, y: mifgsm(f, x, y, p.eps, alpha=p.alpha, steps=p.steps),
    "cw": lambda p, f, x, y: minimal_attack(f, x, y, p.eps, p.norm, "cw", p.steps),
    "deepfool": lambda p, f, x, y: minimal_attack(f, x, y, p.eps, p.norm, "deepfool", p.steps),
    "square": lambda p, f, x, y: square(f, x, y, p.eps, p.norm, p.queries, p.seed),
    "strong": run_strong,
}
