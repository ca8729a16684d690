"""Sanity checks that an attack must pass before a robust accuracy can be trusted.

Carlini et al., "On Evaluating Adversarial Robustness", 2019 (arXiv 1902.06705), and Croce et al., "RobustBench",
NeurIPS Datasets and Benchmarks 2021 (arXiv 2010.09670), list the symptoms of an attack that fails although the detector
is not robust: vanishing gradients, a black-box attack that beats a white-box one, images that survive any eps.
Each detector is checked here on a few images once per data set. In addition, every cell is checked for the ball and the
box, and the finished rows are compared with each other (:func:`utils.attacks.report.compare_rows`).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.listing.records import Listing
from utils.attacks.cells import is_finished
from utils.attacks.gradient import LogitOf, attackable, input_gradient, margin_of, pgd
from utils.attacks.registry import run_attack
from utils.attacks.runs import Target, Trial, batches_of, evenly_spaced
from utils.attacks.threat_model import Plan
from utils.files import write_json

CHECK_IMAGES = 16
SQUARE_QUERIES = 100
FREE_STEPS = tuple(levels / 255 for levels in (0.5, 2, 8, 32))
MAX_MASKED = 0.05  # share of images whose gradient is exactly zero
TOLERANCE = 0.051  # of accuracy: below 1 / CHECK_IMAGES, so no image may differ
DETERMINISTIC = "logits are deterministic"


def check_source(target: Target, listing: Listing, plan: Plan, folder: Path) -> None:
    """Check a detector on evenly spaced images, once per data set and norm; the result goes to ``folder/checks``."""
    stem = folder / "checks" / f"{target.name}__{listing.name}__{listing.split}__{plan.norm}"
    key = Trial(target, [target], listing, "both", CHECK_IMAGES).key(target, plan)
    if is_finished(stem, key):
        return
    detector = target.candidate.detector
    checks: list[dict[str, Any]] = []
    for batch in batches_of(target, evenly_spaced(listing, CHECK_IMAGES), CHECK_IMAGES):
        with attackable(detector):
            checks = check_detector(target.boundary, batch.images, batch.labels, plan, detector.has_input_gradient)
    for check in checks:
        if not check["passed"]:
            print(f"{target.name} on {listing.name}: failed: {check['check']} ({check['detail']})", file=sys.stderr)
    facts = {
        "digests": {target.name: target.candidate.digest},
        "checkpoint": target.name,
        "dataset": listing.name,
        "split": listing.split,
        "norm": plan.norm,
        "eps": plan.eps,
    }
    write_json(stem.with_name(stem.name + ".json"), {"key": key, **facts, "checks": checks})


def check_detector(
    logit_of: LogitOf, images: Tensor, labels: Tensor, plan: Plan, has_gradient: bool
) -> list[dict[str, Any]]:
    """Check a detector on a few images; returns ``{check, passed, detail}`` for each check.

    ``plan`` provides norm, eps, steps and seed. Without a gradient only determinism can be checked.
    """
    with torch.no_grad():
        spread = (logit_of(images) - logit_of(images)).abs().max().item()
    checks = [_check(DETERMINISTIC, spread == 0, f"largest difference {spread:.3g}")]
    if not has_gradient:
        return checks

    def accuracy(attack: str, **changes: Any) -> float:
        attacked = run_attack(replace(plan, attack=attack, **changes), logit_of, images, labels)
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
    """Accuracy when any image is allowed (eps = 1): an image survives only if the attack does not work.

    One step size is not enough: large steps jump over the narrow region in which a fine-grained detector is wrong, and
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
