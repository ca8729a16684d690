"""Attacks of torchattacks on a detector of one logit, where they are correct on two classes.

torchattacks wants one logit per class. A detector's logit z becomes (-z / 2, z / 2): the cross-entropy of this pair is
the binary cross-entropy of z, and the difference of the pair is z. The pair (0, z) would have both properties too, but
CW compares each logit with 0 and so never moves an image with label 0 under it. ``AutoAttack``, ``APGDT`` and the DLR
loss need a third class and crash on two; they have no entry here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from utils.attacks.gradient import LogitOf, check_images
from utils.errors import UserError

NORM_NAMES = {"linf": "Linf", "l2": "L2"}


class TwoClass(nn.Module):
    """Logits ``(N, 2)``, real and fake, of a function that gives one logit ``(N,)``."""

    def __init__(self, logit_of: LogitOf, device: torch.device) -> None:
        super().__init__()
        self.logit_of = logit_of
        # torchattacks takes its device from the first parameter, and a classical detector may have none.
        self.device_marker = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        # torchattacks puts a model that it finds in training mode, as a new module is, back there with all its parts.
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        half = self.logit_of(images) / 2
        return torch.stack([-half, half], dim=1)


def minimal_attack(
    logit_of: LogitOf, images: Tensor, labels: Tensor, eps: float, norm: str, attack: str, steps: int
) -> Tensor:
    """Attack with ``cw`` or ``deepfool``, which look for the smallest L2 change instead of the best one within eps.

    An image whose change turns out larger than eps, in the norm that is asked for, is given back unchanged.

    Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", IEEE S&P 2017 (arXiv 1608.04644), here
    with one fixed weight c = 10 of the loss; Moosavi-Dezfooli et al., "DeepFool: a simple and accurate method to fool
    deep neural networks", CVPR 2016 (arXiv 1511.04599).
    """
    settings: dict[str, Any] = {"steps": steps}
    if attack == "cw":
        settings |= {"c": 10.0, "lr": 0.002}  # the default rate moves a pixel by 2/255 in its first step
    found = _run({"cw": "CW", "deepfool": "DeepFool"}[attack], logit_of, images, labels, settings)
    change = (found - images).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    return torch.where((size <= eps)[:, None, None, None], found, images)


def apgd(
    logit_of: LogitOf, images: Tensor, labels: Tensor, eps: float, norm: str, steps: int, restarts: int, seed: int
) -> Tensor:
    """APGD on the cross-entropy: PGD whose step halves where progress stalls.

    Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
    ICML 2020 (arXiv 2003.01690).
    """
    settings = {"norm": NORM_NAMES[norm], "eps": eps, "steps": steps, "n_restarts": restarts, "seed": seed}
    return _run("APGD", logit_of, images, labels, settings)


def fab(logit_of: LogitOf, images: Tensor, labels: Tensor, eps: float, norm: str, steps: int, seed: int) -> Tensor:
    """FAB: steps to the linearised decision boundary, pulled back towards the image.

    Croce, Hein, "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML 2020 (arXiv
    1907.02044).
    """
    settings = {"norm": NORM_NAMES[norm], "eps": eps, "steps": steps, "seed": seed, "n_classes": 2}
    return _run("FAB", logit_of, images, labels, settings)


def square(logit_of: LogitOf, images: Tensor, labels: Tensor, eps: float, norm: str, queries: int, seed: int) -> Tensor:
    """Random squares that are kept where they lower the margin: needs scores only, no gradient.

    Andriushchenko et al., "Square Attack: a Query-efficient Black-box Adversarial Attack via Random Search", ECCV 2020
    (arXiv 1912.00049).
    """
    settings = {"norm": NORM_NAMES[norm], "eps": eps, "n_queries": queries, "seed": seed}
    return _run("Square", logit_of, images, labels, settings)


def _run(name: str, logit_of: LogitOf, images: Tensor, labels: Tensor, settings: dict[str, Any]) -> Tensor:
    """Run one class of torchattacks; its input is checked here, because it would clamp it in silence.

    Raises:
        UserError: torchattacks is not installed.
    """
    check_images(images)
    try:
        import torchattacks
    except ImportError as error:
        raise UserError(f"expected the package torchattacks for {name}; pip install torchattacks ({error})") from error
    attack = getattr(torchattacks, name)(TwoClass(logit_of, images.device), **settings)
    # Contiguous: some of its attacks flatten images with view(), which channels_last refuses.
    return attack(images.contiguous(), labels.long()).detach()
