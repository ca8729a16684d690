"""Runs attacks of torchattacks on a detector with one logit.

torchattacks expects one logit per class. A detector's logit z becomes (-z / 2, z / 2): the cross-entropy of this pair
is the binary cross-entropy of z, and their difference is z. The pair (0, z) has both properties too, but CW compares
each logit with 0 and would never move an image with label 0. ``AutoAttack``, ``APGDT`` and the DLR loss crash on two
classes, so no attack here uses them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from utils.attacks.gradient import LogitOf, change_size
from utils.attacks.threat_model import Plan
from utils.errors import UserError

NORM_NAMES = {"linf": "Linf", "l2": "L2"}


class TwoClass(nn.Module):
    """Logits ``(N, 2)``, real and fake, of a function that returns one logit ``(N,)``."""

    def __init__(self, logit_of: LogitOf, device: torch.device) -> None:
        super().__init__()
        self.logit_of = logit_of
        # torchattacks takes its device from the first parameter, and a classical detector may have none.
        self.device_marker = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.training = False  # torchattacks restores the mode it finds, and a new module is in training mode

    def forward(self, images: Tensor) -> Tensor:
        half = self.logit_of(images) / 2
        return torch.stack([-half, half], dim=1)


def run_torchattacks(name: str, logit_of: LogitOf, images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    """Run the torchattacks class ``name`` with its own settings.

    Raises:
        UserError: torchattacks is not installed.
    """
    try:
        import torchattacks
    except ImportError as error:
        raise UserError(f"expected the package torchattacks for {name}; pip install torchattacks ({error})") from error
    attack = getattr(torchattacks, name)(TwoClass(logit_of, images.device), **settings)
    # Contiguous, because some attacks flatten images with view(), which channels_last does not allow.
    return attack(images.contiguous(), labels.long()).detach()


def within_eps(plan: Plan, images: Tensor, found: Tensor) -> Tensor:
    """Undo changes larger than eps: minimal attacks look for the smallest change, not for the best one within eps."""
    return torch.where((change_size(found - images, plan.norm) <= plan.eps)[:, None, None, None], found, images)
