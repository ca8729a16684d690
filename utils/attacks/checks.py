"""Reasons not to believe an attack: what must hold before a robust accuracy is worth its name.

Carlini et al., "On Evaluating Adversarial Robustness", 2019 (arXiv 1902.06705), and Croce et al., "RobustBench",
NeurIPS Datasets and Benchmarks 2021 (arXiv 2010.09670), list the symptoms of an attack that fails for a reason of its
own: gradients that vanish, a black-box attack that beats a white-box one, images that survive any eps.
A detector is checked on a few images once per data set (:func:`check_detector`); each cell is checked for the ball and
the box (:func:`check_change`), and the finished rows against each other (:func:`compare_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from utils.attacks.gradient import LogitOf, input_gradient, pgd
from utils.attacks.suite import Plan, margin_of

CHECK_IMAGES = 16
SQUARE_QUERIES = 100
FREE_STEPS = tuple(levels / 255 for levels in (0.5, 2, 8, 32))
MAX_MASKED = 0.05  # share of images whose gradient is exactly zero
TOLERANCE = 0.051  # of accuracy on CHECK_IMAGES images: none of 16 may differ
ROW_TOLERANCE = 0.01  # of accuracy between two rows of a table
BALL_TOLERANCE = 1e-6  # pixel units; 8.000007/255 occurs in float32, and L2 sums its errors
DETERMINISTIC = "logits are deterministic"


def check_detector(
    logit_of: LogitOf, images: Tensor, labels: Tensor, plan: Plan, has_gradient: bool
) -> list[dict[str, Any]]:
    """Check a detector on a few images; returns ``{check, passed, detail}`` for each check.

    ``plan`` gives norm, eps, steps and seed. Without a gradient only determinism can be checked.
    """
    with torch.no_grad():
        spread = (logit_of(images) - logit_of(images)).abs().max().item()
    checks = [_check(DETERMINISTIC, spread == 0, f"largest difference {spread:.3g}")]
    if not has_gradient:
        return checks

    def accuracy(attack: str, **changes: Any) -> float:
        attacked = replace(plan, attack=attack, **changes).run(logit_of, images, labels)
        return (margin_of(logit_of, attacked, labels) < 0).float().mean().item()

    gradient = input_gradient(logit_of, images, labels).flatten(1)
    masked = (gradient.abs().amax(1) == 0).float().mean().item()
    finite = bool(torch.isfinite(gradient).all())
    base = accuracy("pgd")
    more = accuracy("pgd", steps=2 * plan.steps)
    everything = accuracy_without_bound(logit_of, images, labels, plan.steps)
    black_box = accuracy("square", queries=SQUARE_QUERIES)
    return [
        *checks,
        _check("gradients are not zero", finite and masked <= MAX_MASKED, f"zero for {masked:.0%} of the images"),
        _check(
            "more steps do not help the defender",
            more <= base + TOLERANCE,
            f"accuracy {base:.3f} after {plan.steps} steps, {more:.3f} after {2 * plan.steps}",
        ),
        _check("eps = 1 leaves nothing", everything == 0, f"accuracy {everything:.3f}"),
        _check(
            "Square does not beat PGD",
            black_box >= min(base, more) - TOLERANCE,
            f"accuracy {black_box:.3f} under Square, {min(base, more):.3f} under PGD",
        ),
    ]


def accuracy_without_bound(logit_of: LogitOf, images: Tensor, labels: Tensor, steps: int) -> float:
    """Accuracy when any image is allowed (eps = 1): what survives, survives because the attack does not work.

    Steps of one size do not do: large ones jump over the narrow region in which a fine-grained detector is wrong, and
    small ones do not get far in a robust one. So each image may fall to any of FREE_STEPS.
    """
    alive = margin_of(logit_of, images, labels) < 0
    for alpha in FREE_STEPS:
        if not alive.any():
            break
        attacked = pgd(logit_of, images[alive], labels[alive], 1.0, alpha=alpha, steps=steps, random_start=False)
        alive[alive.clone()] = margin_of(logit_of, attacked, labels[alive]) < 0
    return alive.float().mean().item()


def _check(name: str, passed: bool, detail: str) -> dict[str, Any]:
    return {"check": name, "passed": bool(passed), "detail": detail}


def check_change(images: Tensor, adversarial: Tensor, eps: float, norm: str) -> list[str]:
    """Name what is wrong with adversarial images: not finite, outside the ball around the images, outside the box."""
    if not torch.isfinite(adversarial).all():
        return ["values are not finite"]
    change = (adversarial - images).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    failures = []
    if (size > eps + BALL_TOLERANCE * (1 if norm == "linf" else 10 * max(1.0, eps))).any():
        failures.append("left the ball")
    if adversarial.min() < 0 or adversarial.max() > 1:
        failures.append("left the box")
    return failures


def compare_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Mark rows that contradict each other: adds to ``failed`` of each row whose attack must have been too weak.

    Larger eps may not leave more images than smaller eps, PGD not more than FGSM, the strong suite not more than PGD,
    and no white-box attack more than Square.
    """
    stronger = {"pgd": ("fgsm", "square"), "strong": ("fgsm", "pgd", "square", "mifgsm", "cw", "deepfool")}
    setting = ("checkpoint", "source", "dataset", "split", "data_fingerprint", "norm", "direction")
    for row in rows:
        for other in rows:
            same = all(row[key] == other[key] for key in setting)
            if not same or row["robust_acc"] <= other["robust_acc"] + ROW_TOLERANCE:
                continue
            if row["attack"] == other["attack"] and other["eps"] < row["eps"]:
                row["failed"].append("larger eps helps the defender")
            elif row["eps"] == other["eps"] and other["attack"] in stronger.get(row["attack"], ()):
                row["failed"].append(f"weaker than {other['attack']}")
        row["failed"] = list(dict.fromkeys(row["failed"]))
