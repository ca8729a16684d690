"""Threat models on the command line: attack names, norms and perturbation sizes. Imports no torch."""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import UserError, closest

METHODS_DIR = Path(__file__).with_name("methods")
NORMS = ("linf", "l2")
SETTINGS = {"steps": 20, "restarts": 1, "queries": 500}  # of attacks, and their defaults
MAX_SIZE = 1000  # pixel units; about the L2 distance between the black and the white image of 577 px
DIRECTIONS = {"both": (0, 1), "fake-to-real": (1,), "real-to-fake": (0,)}  # labels of the images to attack
DEFAULT_EPS = {"linf": ("0.5/255", "1/255", "2/255", "4/255", "8/255"), "l2": ("0.25", "0.5", "1", "2")}


@dataclass(frozen=True)
class Traits:
    """What an attack needs: the gradient of the detector, one of these norms, and the settings that it reads."""

    needs_gradient: bool = True
    norms: tuple[str, ...] = NORMS
    settings: tuple[str, ...] = tuple(SETTINGS)


@dataclass(frozen=True)
class Plan:
    """One attack and its settings; eps is in pixel units."""

    attack: str
    norm: str
    eps: float
    steps: int = SETTINGS["steps"]
    restarts: int = SETTINGS["restarts"]
    queries: int = SETTINGS["queries"]
    seed: int = 0


@cache
def attack_traits() -> dict[str, Traits]:
    """Return every attack's traits by name, read from the source of ``methods/`` so that torch is not imported."""
    found = {}
    for file in sorted(METHODS_DIR.glob("*.py")):
        functions = [node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
        for name, call in [(node.name, call) for node in functions for call in node.decorator_list]:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "register_attack":
                found[name] = Traits(**{str(word.arg): ast.literal_eval(word.value) for word in call.keywords})
    return found


def check_attacks(names: Sequence[str], norm: str) -> None:
    """Raise UserError for an unknown attack, or one that does not support the norm."""
    known = attack_traits()
    for name in names:
        if name not in known:
            raise UserError(f"expected --attacks of {', '.join(known)}, got {name!r}{closest(name, known)}")
        if norm not in known[name].norms:
            raise UserError(f"expected --norm {' or '.join(known[name].norms)} for {name}, got {norm}; use pgd")


def check_settings(given: Mapping[str, int | None], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the settings of each attack: as given where it reads them, else the defaults.

    Raises:
        UserError: no attack reads a given one.
    """
    traits = attack_traits()
    for setting, value in given.items():
        if value is not None and not any(setting in traits[name].settings for name in names):
            readers = ", ".join(name for name, trait in traits.items() if setting in trait.settings)
            raise UserError(
                f"expected --attacks of {readers} with --{setting}, got {', '.join(names)}; drop --{setting}"
            )
    chosen = {key: value for key, value in given.items() if value is not None}
    read = {name: {key: value for key, value in chosen.items() if key in traits[name].settings} for name in names}
    return {name: SETTINGS | own for name, own in read.items()}


def unusual_settings(plan: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a plan that its attack reads and that differ from their defaults, such as ``2 restarts``.

    The seed counts too, also for attacks without random numbers: :func:`run_attack` seeds all alike.
    """
    traits = attack_traits().get(plan["attack"], Traits())
    unusual = {name: f"{plan[name]} {name}" for name in traits.settings if plan[name] != SETTINGS[name]}
    return unusual | ({"seed": f"seed {plan['seed']}"} if plan["seed"] else {})


def parse_size(text: str) -> float:
    """Parse a perturbation size in pixel units, such as ``8/255`` or ``0.031``. This is an argparse type."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(Fraction(numerator) / Fraction(denominator)) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a size in pixel units such as 8/255, got {text!r}") from None
    if not 0 < value <= MAX_SIZE:
        raise argparse.ArgumentTypeError(
            f"expected a size in (0, {MAX_SIZE}] (pixel units) such as 8/255, got {text!r}"
        )
    return value


def size_name(eps: float) -> str:
    """Format a size: as ``2/255`` or ``0.5/255`` if it is a multiple of 0.05/255 below 0.25, else as a plain number."""
    twentieths = round(eps * 255 * 20)
    if eps < 0.25 and twentieths and math.isclose(eps * 255 * 20, twentieths, abs_tol=1e-4):
        return f"{twentieths / 20:g}/255"
    return f"{eps:g}"


def check_linf_eps(value: float, flag: str = "--eps") -> None:
    """Raise UserError for an L-infinity size above 1, which was probably meant in grey levels."""
    if value > 1:
        raise UserError(f"expected {flag} in [0, 1] (pixel units), got {value:g}; did you mean {value:g}/255?")
