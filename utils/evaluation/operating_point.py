"""Fit the operating point of a detector on validation scores: calibration, thresholds and unsure band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.operating_point import Calibration, OperatingPoint, check_logits, sigmoid
from utils.errors import UserError
from utils.metrics.binary import auc
from utils.metrics.thresholds import fit_thresholds, unsure_band
from utils.scoring.table import ScoreTable

CALIBRATION_METHODS = ("temperature", "isotonic", "none")
ALL_UNSURE = {"unsure_low": 0.0, "unsure_high": float(np.nextafter(1.0, 2.0))}
FEW_IMAGES = 20  # of a class; thresholds fitted on fewer are rough
Z = 1.96  # of a 95 % interval
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0


def fit_operating_point(tables: Sequence[ScoreTable], method: str = "temperature") -> OperatingPoint:
    """Fit calibration, thresholds and unsure band on the validation scores of all data sets together.

    ``method`` is one of CALIBRATION_METHODS. A temperature has one parameter and cannot overfit; the isotonic curve
    takes any increasing shape and needs about a thousand images (Niculescu-Mizil and Caruana, "Predicting Good
    Probabilities with Supervised Learning", ICML 2005). Neither changes the order of the images, nor AUC.

    The band of a detector without skill (see :func:`auc_bound`) covers everything: each of its verdicts is unsure.

    Raises:
        UserError: an unknown method, one class only, or NaN or infinite logits.
    """
    if method not in CALIBRATION_METHODS:
        raise UserError(f"expected a calibration method of {', '.join(CALIBRATION_METHODS)}, got {method!r}")
    labels = np.concatenate([table.label for table in tables])
    logits = np.concatenate([table.logit for table in tables])
    calibration: Calibration = None
    if method == "isotonic":
        calibration = fit_isotonic(labels, logits)
    elif method == "temperature":
        calibration = {"method": "temperature", "temperature": fit_temperature(labels, logits)}
    p_fake = OperatingPoint(calibration).p_fake(logits)
    thresholds = fit_thresholds(labels, p_fake)
    low, high = unsure_band(labels, p_fake, thresholds["balanced"])
    band = {"unsure_low": low, "unsure_high": high} if has_skill(tables) else ALL_UNSURE
    names = dict.fromkeys(name for table in tables for name in table.dataset)
    return OperatingPoint(calibration, {**thresholds, **band}, tuple(names))


def doubts(tables: Sequence[ScoreTable]) -> list[str]:
    """Return one line for each reason not to rely on an operating point fitted on these scores."""
    found, (n_real, n_fake) = [], _count_images(tables)
    value, bound = auc_bound(tables)
    if not value > bound:
        found.append(
            f"the validation AUC is {value:.3f}, not above the {bound:.3f} that chance reaches with {n_real} real and "
            f"{n_fake} fake images: every verdict will be unsure; train longer, check the labels or add images"
        )
    if min(n_real, n_fake) < FEW_IMAGES:
        found.append(
            f"the thresholds rest on {n_real} real and {n_fake} fake validation images; they are rough below "
            f"{FEW_IMAGES} of each"
        )
    return found


def has_skill(tables: Sequence[ScoreTable]) -> bool:
    """Tell whether the AUC is above what chance reaches on as many images."""
    value, bound = auc_bound(tables)
    return value > bound


def auc_bound(tables: Sequence[ScoreTable]) -> tuple[float, float]:
    """Return the AUC of all scores together, and the upper end of the 95 % interval of the AUC of a guess.

    The interval is 0.5 +- Z sqrt((n_real + n_fake + 1) / (12 n_real n_fake)), from the variance of the rank sum (Mann
    and Whitney, Annals of Mathematical Statistics 18, 1947). An image that was scored in several tiers counts once.
    """
    labels = np.concatenate([table.label for table in tables])
    value = auc(labels, sigmoid(np.concatenate([table.logit for table in tables])))
    n_real, n_fake = _count_images(tables)
    if value is None:
        return 0.5, 0.5
    return value, 0.5 + Z * float(np.sqrt((n_real + n_fake + 1) / (12 * n_real * n_fake)))


def _count_images(tables: Sequence[ScoreTable]) -> tuple[int, int]:
    """Count the real and the fake images, each once however often it was scored."""
    images = {row for table in tables for row in zip(table.dataset, table.path, table.label.tolist(), strict=True)}
    n_fake = sum(label for _, _, label in images)
    return len(images) - n_fake, n_fake


def fit_isotonic(labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Fit the increasing curve from logit to fraction of fakes with the least squared error on validation.

    Pool-adjacent-violators (Ayer, Brunk, Ewing, Reid and Silverman, Annals of Mathematical Statistics 26, 1955; for
    calibration: Zadrozny and Elkan, KDD 2002): images are sorted by logit, and neighbouring blocks are merged while the
    fraction of fakes falls. The curve is linear between blocks. Unlike the textbook's, it stays in
    [1 / (N + 2), 1 - 1 / (N + 2)], the rule of succession for an event never seen in N images.

    Returns:
        {"method": "isotonic", "x": [...], "y": [...]} of plain floats with x strictly increasing: the lowest and the
        highest logit of each block.

    Raises:
        UserError: NaN or infinite logits, a different number of labels, or one class only.
    """
    logits, labels = check_logits(logits), np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(labels) != len(logits):
        raise UserError(f"expected one label per logit, got {len(labels)} labels and {len(logits)} logits")
    n_fake = int(np.sum(labels > 0.5))
    if n_fake in (0, len(labels)):
        raise UserError(
            f"expected real and fake images to fit an isotonic calibration, got {len(labels) - n_fake} real and "
            f"{n_fake} fake; add images of the missing class to the validation split"
        )
    distinct, group = np.unique(logits, return_inverse=True)
    # A block: [fakes, images, lowest logit, highest logit]; fractions are compared exactly, as products of integers.
    blocks: list[list[float]] = []
    for fakes, images, logit in zip(np.bincount(group, labels > 0.5), np.bincount(group), distinct, strict=True):
        block = [float(fakes), float(images), float(logit), float(logit)]
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            before = blocks.pop()
            block = [before[0] + block[0], before[1] + block[1], before[2], block[3]]
        blocks.append(block)
    margin = 1 / (len(labels) + 2)
    points = {logit: min(max(b[0] / b[1], margin), 1 - margin) for b in blocks for logit in (b[2], b[3])}
    return {"method": "isotonic", "x": list(points), "y": list(points.values())}


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the temperature that minimises the negative log-likelihood of sigmoid(logit / T) on validation.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599. The loss
    is convex in 1 / T, so the sign of its slope is bisected, which gives the same result on every machine (the paper
    uses L-BFGS). The result is limited to [0.01, 100].

    Returns 1.0, no calibration, if there is no finite positive optimum: no image or one class only, all images on the
    right side of 0, or logits that rank no better than chance.

    Raises:
        UserError: NaN or infinite logits, or a different number of labels.
    """
    logits = check_logits(logits)
    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(labels) != len(logits):
        raise UserError(f"expected one label per logit, got {len(labels)} labels and {len(logits)} logits")
    signed = np.where(labels > 0.5, logits, -logits)
    one_class = len(labels) == 0 or labels.min() == labels.max()
    # signed.sum() <= 0: the loss rises from beta = 1 / T = 0 on, so the best beta is not positive.
    if one_class or signed.min() >= 0 or signed.sum() <= 0:
        return 1.0

    def slope_is_negative(beta: float) -> bool:
        return bool(np.sum(signed * sigmoid(-beta * signed)) > 0)

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        if not low < middle < high:
            break
        low, high = (middle, high) if slope_is_negative(middle) else (low, middle)
    return float(np.clip(1 / np.sqrt(low * high), MIN_TEMPERATURE, MAX_TEMPERATURE))
