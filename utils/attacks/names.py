"""What can be asked of attacks on the command line: their names, threat models and sizes; needs no torch."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from fractions import Fraction

from datasets.spec import closest
from utils.args import float_in, int_in
from utils.errors import UserError

WHITE_BOX = ("fgsm", "pgd", "mifgsm", "cw", "deepfool", "strong")  # they need the gradient
ATTACKS = (*WHITE_BOX, "square")
LINF_ONLY = ("mifgsm",)
DIRECTIONS = {"both": (0, 1), "fake-to-real": (1,), "real-to-fake": (0,)}  # labels of the images that are attacked
DEFAULT_EPS = {"linf": ("0.5/255", "1/255", "2/255", "4/255", "8/255"), "l2": ("0.25", "0.5", "1", "2")}


def add_adversarial_group(parser: argparse.ArgumentParser) -> None:
    """Add the flags of adversarial training: --adversarial and what belongs to it."""
    group = parser.add_argument_group("adversarial training")
    group.add_argument("--adversarial", choices=("fgsm", "pgd", "trades"), help="attack the training images (Linf)")
    group.add_argument("--adv-eps", type=parse_size, default=2 / 255, help="pixel units (default: 2/255)")
    group.add_argument("--adv-steps", type=int_in(1, 100), default=3, help="of pgd and trades (default: 3)")
    group.add_argument("--adv-ramp", type=float_in(0, 1), default=0.3, help="share of the run in which eps rises")
    group.add_argument("--adv-clean-share", type=float_in(0, 0.9), default=0.3, help="of each batch (fgsm, pgd)")
    group.add_argument("--trades-beta", type=float_in(0, 100), default=3.0, help="weight of robustness (default: 3)")


def parse_size(text: str) -> float:
    """Return an argparse type's value: a perturbation size in pixel units, as ``8/255`` or as ``0.031``."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(Fraction(numerator) / Fraction(denominator)) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a size in pixel units such as 8/255, got {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a size above 0 (pixel units) such as 8/255, got {text!r}")
    return value


def check_linf_eps(value: float, flag: str = "--eps") -> None:
    """Raise UserError for an L-infinity size above 1, which is most likely a number of grey levels."""
    if value > 1:
        raise UserError(f"expected {flag} in [0, 1] (pixel units), got {value:g}; did you mean {value:g}/255?")


def check_alpha(alpha: float | None, eps: Sequence[float]) -> None:
    """Raise UserError for a step that leaves the ball at once."""
    if alpha is not None and alpha > min(eps):
        raise UserError(
            f"expected --alpha of at most eps ({size_name(min(eps))}), got {size_name(alpha)}; "
            "take a smaller step, or leave it out for 2.5 eps / steps"
        )


def check_attacks(names: Sequence[str], norm: str) -> None:
    """Raise UserError for an unknown attack or one that the norm has not."""
    for name in names:
        if name not in ATTACKS:
            raise UserError(f"expected --attacks of {', '.join(ATTACKS)}, got {name!r}{closest(name, ATTACKS)}")
        if norm != "linf" and name in LINF_ONLY:
            raise UserError(f"expected --norm linf for {name}, got {norm}; use pgd")


def size_name(eps: float) -> str:
    """A size as people write it: ``2/255``, ``0.5/255``, or a plain number where that is no multiple of 0.05/255."""
    levels = round(eps * 255, 6)
    return f"{levels:g}/255" if eps <= 1 and math.isclose(levels * 20, round(levels * 20), abs_tol=1e-4) else f"{eps:g}"
