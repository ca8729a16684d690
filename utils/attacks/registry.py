"""Attacks by name. Each file in ``methods/`` registers one attack; adding a file adds the attack everywhere."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from utils.attacks.gradient import LogitOf, check_images
from utils.attacks.threat_model import METHODS_DIR, NORMS, SETTINGS, Plan

AttackFunction = Callable[[Plan, LogitOf, Tensor, Tensor], Tensor]
_ATTACKS: dict[str, AttackFunction] = {}


def register_attack(
    *, needs_gradient: bool = True, norms: tuple[str, ...] = NORMS, settings: tuple[str, ...] = tuple(SETTINGS)
) -> Callable[[AttackFunction], AttackFunction]:
    """Register a function as the attack of its name.

    The function receives the plan, ``logit_of``, images ``(N, 3, H, W)`` in [0, 1] and labels ``(N,)``, and returns
    images within ``plan.eps`` of the given ones and within [0, 1]. ``settings`` are those of the plan that it reads.
    Pass the arguments as literals: :func:`utils.attacks.threat_model.attack_traits` reads them from the source.

    Raises:
        ValueError: two functions share a name.
    """

    def register(function: AttackFunction) -> AttackFunction:
        if function.__name__ in _ATTACKS:
            raise ValueError(f"attack {function.__name__!r} is registered twice")
        _ATTACKS[function.__name__] = function
        return function

    return register


@cache
def _register_all() -> None:
    for module in pkgutil.iter_modules([str(METHODS_DIR)]):
        importlib.import_module(f"utils.attacks.methods.{module.name}")


def run_attack(plan: Plan, logit_of: LogitOf, images: Tensor, labels: Tensor) -> Tensor:
    """Attack images ``(N, 3, H, W)`` in [0, 1] with labels ``(N,)``; the same seed gives the same result."""
    _register_all()
    check_images(images)
    torch.manual_seed(plan.seed)
    return _ATTACKS[plan.attack](plan, logit_of, images, labels)
