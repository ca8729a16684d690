"""Fit the operating point of a detector on validation scores: calibration, thresholds and unsure band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from datasets.balance import shares
from datasets.listing.records import LABEL_NAMES
from models.operating_point import Calibration, OperatingPoint, check_logits, sigmoid
from utils.errors import UserError
from utils.metrics.source_pairs import mix_auc, pair_aucs
from utils.metrics.thresholds import MAX_CALLED_FAKE, fit_thresholds
from utils.scoring.table import ScoreTable

CALIBRATION_METHODS = ("temperature", "isotonic", "none")
ALL_UNSURE = {"unsure_low": 0.0, "unsure_high": float(np.nextafter(1.0, 2.0))}
FEW_IMAGES = 20  # of a class; thresholds fitted on fewer are rough
Z = 1.96  # of a 95 % interval
RESAMPLES = 200
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0


def fit_operating_point(tables: Sequence[ScoreTable], method: str = "temperature") -> OperatingPoint:
    """Fit calibration, thresholds and unsure band on the validation scores of all data sets together.

    ``method`` is one of CALIBRATION_METHODS. A temperature has one parameter and cannot overfit; the isotonic curve
    takes any increasing shape and needs about a thousand images (Niculescu-Mizil and Caruana, "Predicting Good
    Probabilities with Supervised Learning", ICML 2005). Neither changes the order of the images, nor AUC. On a mix
    with sources of one class, all sources have equal weight, see :func:`image_weights`.

    The band of a detector without skill (see :func:`auc_bound`) covers everything: each of its verdicts is unsure.

    Raises:
        UserError: an unknown method, one class only, or NaN or infinite logits.
    """
    if method not in CALIBRATION_METHODS:
        raise UserError(f"expected a calibration method of {', '.join(CALIBRATION_METHODS)}, got {method!r}")
    table = ScoreTable.join(list(tables))
    labels, logits, weights = table.label, table.logit, image_weights(table)
    calibration: Calibration = None
    if method == "isotonic":
        calibration = fit_isotonic(labels, logits, weights)
    elif method == "temperature":
        calibration = {"method": "temperature", "temperature": fit_temperature(labels, logits, weights)}
    thresholds = fit_thresholds(labels, OperatingPoint(calibration).p_fake(logits), weights)
    band = {} if has_skill(tables) else ALL_UNSURE
    return OperatingPoint(calibration, {**thresholds, **band}, tuple(dict.fromkeys(table.dataset)))


def image_weights(table: ScoreTable) -> np.ndarray:
    """Return how much each image counts, ``(N,)``, 1 on average.

    Where each source (``dataset``) has both classes, all images have equal weight. Where some have one class only, both
    classes have equal weight, and so have the sources of a class, as in a balanced epoch: the images of a very small
    source count at most three times (see :func:`datasets.balance.shares`).
    """
    sources = _sources(table)
    if all(len(set(part.label.tolist())) == 2 for part in sources.values()):
        return np.ones(len(table))
    keys = list(zip(table.dataset, table.label.tolist(), strict=True))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([numbers[key] for key in keys])
    sizes = np.bincount(group)
    return (len(table) * shares(sizes, [label for _, label in numbers]) / sizes)[group]


def doubts(tables: Sequence[ScoreTable], point: OperatingPoint) -> list[str]:
    """Return one line for each reason not to rely on an operating point fitted on these scores."""
    found, (n_real, n_fake) = [], _count_images(tables)
    value, bound = auc_bound(tables)
    if not value > bound:
        bound = min(bound, 1.0)  # the approximation exceeds 1 for a few images
        found.append(
            f"the validation AUC is {value:.3f}, not above the {bound:.3f} that chance reaches with {n_real} real and "
            f"{n_fake} fake images: every verdict will be unsure; train longer, check the labels or add images"
        )
    if min(n_real, n_fake) < FEW_IMAGES:
        found.append(
            f"the thresholds rest on {n_real} real and {n_fake} fake validation images; they are rough below "
            f"{FEW_IMAGES} of each"
        )
    limit = 2 * MAX_CALLED_FAKE
    alarms = [row for row in verdict_shares(tables, point) if row["label"] == "real" and row["fake"] > limit]
    if alarms:
        names = ", ".join(f"{row['fake']:.0%} of {row['dataset']}" for row in alarms)
        found.append(f"the verdict fake is wrong for more than {limit:.0%} of the reals of some sources: {names}")
    return found


def verdict_shares(tables: Sequence[ScoreTable], point: OperatingPoint) -> list[dict[str, Any]]:
    """Return the share of each verdict among the reals and the fakes of each source, one row each.

    A row has ``dataset``, ``label`` (real or fake), ``n``, and the shares ``fake``, ``unsure`` and ``real``.
    """
    rows = []
    for name, source in _sources(ScoreTable.join(list(tables))).items():
        said = np.array(point.verdicts(point.p_fake(source.logit)))
        for number, label in enumerate(LABEL_NAMES):
            own = said[source.label == number]
            if len(own):
                shares_of = {verdict: float(np.mean(own == verdict)) for verdict in ("fake", "unsure", "real")}
                rows.append({"dataset": name, "label": label, "n": len(own), **shares_of})
    return rows


def has_skill(tables: Sequence[ScoreTable]) -> bool:
    """Tell whether the AUC is above what chance reaches on as many images."""
    value, bound = auc_bound(tables)
    return value > bound


def auc_bound(tables: Sequence[ScoreTable]) -> tuple[float, float]:
    """Return the AUC, as `mix_auc` has it, and the upper end of the 95 % interval of the AUC of a guess.

    The interval is 0.5 +- Z sqrt((n_real + n_fake + 1) / (12 n_real n_fake)), from the variance of the rank sum (Mann
    and Whitney, Annals of Mathematical Statistics 18, 1947). An image that was scored in several tiers counts once. On
    a mix, some sources may be small: the interval is at least as wide as the spread of bootstrap resamples says.
    """
    n_real, n_fake = _count_images(tables)
    if not n_real or not n_fake:
        return 0.5, 0.5
    parts = _sources(ScoreTable.join(list(tables))).values()
    sources = [(part.label, sigmoid(part.logit)) for part in parts]
    spread = float(np.sqrt((n_real + n_fake + 1) / (12 * n_real * n_fake)))
    if len(sources) > 1:
        spread = max(spread, float(np.std(mix_auc(pair_aucs(sources, RESAMPLES)))))
    return float(mix_auc(pair_aucs(sources))[0]), 0.5 + Z * spread


def _sources(table: ScoreTable) -> dict[str, ScoreTable]:
    """Return the rows of each data set by its name."""
    return {name: part for (name,), part in table.groups("dataset")}


def _count_images(tables: Sequence[ScoreTable]) -> tuple[int, int]:
    """Count the real and the fake images, each once however often it was scored."""
    images = {row for table in tables for row in zip(table.dataset, table.path, table.label.tolist(), strict=True)}
    n_fake = sum(label for _, _, label in images)
    return len(images) - n_fake, n_fake


def fit_isotonic(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray | None = None) -> dict[str, Any]:
    """Fit the increasing curve from logit to fraction of fakes with the least squared error on validation.

    Pool-adjacent-violators (Ayer, Brunk, Ewing, Reid and Silverman, Annals of Mathematical Statistics 26, 1955; for
    calibration: Zadrozny and Elkan, KDD 2002): images are sorted by logit, and neighbouring blocks are merged while the
    fraction of fakes falls. The curve is linear between blocks. Unlike the textbook's, it stays in
    [1 / (N + 2), 1 - 1 / (N + 2)], the rule of succession for an event never seen in N images. Each image counts by its
    weight ``(N,)``, by default 1.

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
    # A block: [fakes, images, lowest logit, highest logit]. Fractions are compared as products: of integers, exactly.
    blocks: list[list[float]] = []
    weights = np.ones(len(labels)) if weights is None else weights
    counts = np.bincount(group, weights * (labels > 0.5)), np.bincount(group, weights)
    for fakes, images, logit in zip(*counts, distinct, strict=True):
        block = [float(fakes), float(images), float(logit), float(logit)]
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            before = blocks.pop()
            block = [before[0] + block[0], before[1] + block[1], before[2], block[3]]
        blocks.append(block)
    margin = 1 / (len(labels) + 2)
    points = {logit: min(max(b[0] / b[1], margin), 1 - margin) for b in blocks for logit in (b[2], b[3])}
    return {"method": "isotonic", "x": list(points), "y": list(points.values())}


def fit_temperature(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray | None = None) -> float:
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
    weighted = signed if weights is None else weights * signed
    one_class = len(labels) == 0 or labels.min() == labels.max()
    # weighted.sum() <= 0: the loss rises from beta = 1 / T = 0 on, so the best beta is not positive.
    if one_class or signed.min() >= 0 or weighted.sum() <= 0:
        return 1.0

    def slope_is_negative(beta: float) -> bool:
        return bool(np.sum(weighted * sigmoid(-beta * signed)) > 0)

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        if not low < middle < high:
            break
        low, high = (middle, high) if slope_is_negative(middle) else (low, middle)
    return float(np.clip(1 / np.sqrt(low * high), MIN_TEMPERATURE, MAX_TEMPERATURE))
