"""Tests for paired scores: is one detector better than another on the same images, or is it chance?

Two detectors make related errors on the same images, so their separate intervals say little about the difference: each
test here works on the pairs. Every difference is a minus b: positive means that a is better.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.metrics.bootstrap import LEVEL, resample_counts
from utils.scoring.table import ScoreTable

Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def compare_sets(
    a: ScoreTable, b: ScoreTable, threshold_a: float, threshold_b: float, n_boot: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """Compare two detectors on the same images, one data set and tier at a time; the row order does not matter.

    The tiers of an image are copies of it, and the scores of one data set may all be higher than those of another, so
    neither are pooled. Each entry has ``dataset`` and ``tier``, the result of :func:`compare_scores`, and in ``delong``
    and ``mcnemar`` the p value ``p_holm``, corrected for the number of entries.

    Raises:
        UserError: the tables do not hold the same images with the same labels, or a threshold is not finite.
    """
    a, b = match_images(a, b)
    results = []
    for (dataset, tier), part in a.groups("dataset", "tier"):
        other = b.select((np.array(b.dataset) == dataset) & (np.array(b.tier) == tier))
        compared = compare_scores(part, other, threshold_a, threshold_b, n_boot, seed)
        results.append({"dataset": dataset, "tier": tier, **compared})
    for test in ("delong", "mcnemar"):
        found = [result[test] for result in results if result[test]]
        for entry, corrected in zip(found, holm([entry["p"] for entry in found]), strict=True):
            entry["p_holm"] = corrected
    return results


def compare_scores(
    a: ScoreTable, b: ScoreTable, threshold_a: float, threshold_b: float, n_boot: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Compare two detectors on the same images in the same order, each at its own threshold.

    Returns plain values: ``n_real``, ``n_fake``, both thresholds, ``delong`` (None with ``delong_reason`` where it does
    not exist), ``mcnemar`` and ``acc_difference_ci``, from a stratified and paired bootstrap.

    Raises:
        UserError: a threshold is not finite.
    """
    if not math.isfinite(threshold_a) or not math.isfinite(threshold_b):
        raise UserError(f"expected finite thresholds, got {threshold_a} and {threshold_b}")
    is_fake = a.label == 1
    right_a, right_b = (a.p_fake >= threshold_a) == is_fake, (b.p_fake >= threshold_b) == is_fake
    delong, reason = delong_test(a.label, a.p_fake, b.p_fake)
    return {
        "n_real": int(np.sum(~is_fake)),
        "n_fake": int(np.sum(is_fake)),
        "threshold_a": float(threshold_a),
        "threshold_b": float(threshold_b),
        "delong": delong,
        "delong_reason": reason,
        "mcnemar": mcnemar_test(right_a, right_b),
        "acc_difference_ci": paired_bootstrap(is_fake, right_a.astype(float) - right_b, n_boot, seed),
    }


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number, so that any of them is below 0.05 by chance in at most 5 % of cases.

    None stays None and is not counted. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6, 1979; valid however the tests depend on each other.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def match_images(a: ScoreTable, b: ScoreTable) -> tuple[ScoreTable, ScoreTable]:
    """Return both tables with their rows matched by path, dataset and tier, ordered by tier, dataset and path.

    Raises:
        UserError: an image is in one table only, twice in one, or has two labels.
    """
    rows_a, rows_b = _rows_by_image(a), _rows_by_image(b)
    only_a, only_b = len(rows_a.keys() - rows_b.keys()), len(rows_b.keys() - rows_a.keys())
    if only_a or only_b:
        raise UserError(
            f"expected scores of the same images, got {only_a} only in the first ({len(a)}) and {only_b} only in the "
            f"second ({len(b)}); score both on the same data and tiers (path, dataset and tier must agree)"
        )
    tiers, names = (list(dict.fromkeys(column)) for column in (a.tier, a.dataset))
    images = sorted(rows_a, key=lambda image: (tiers.index(image[2]), names.index(image[1]), image[0]))
    first, second = a.take([rows_a[image] for image in images]), b.take([rows_b[image] for image in images])
    differ = np.flatnonzero(first.label != second.label)
    if len(differ):
        raise UserError(
            f"expected the same labels in both scores files, got {len(differ)} images with two, the first is "
            f"{first.path[differ[0]]}; score both again with the same data"
        )
    return first, second


def _rows_by_image(table: ScoreTable) -> dict[tuple[str, str, str], int]:
    images = list(zip(table.path, table.dataset, table.tier, strict=True))
    rows = {image: row for row, image in enumerate(images)}
    if len(rows) != len(images):
        raise UserError(f"expected one row per image, dataset and tier, got {len(images) - len(rows)} repeated")
    return rows


def delong_test(labels: np.ndarray, p_a: np.ndarray, p_b: np.ndarray) -> tuple[dict[str, Any] | None, str | None]:
    """Test whether two paired AUC are equal; returns (None, reason) without two images of each class.

    Keys: ``auc_a``, ``auc_b`` and ``difference``, each with an interval under ``_ci``, z and the two-sided p. Intervals
    of the AUC are cut at 0 and 1. Where the variance is 0, p is 1 if the AUC are equal, and z and p are None if not:
    the normal approximation does not exist.
    """
    is_fake = np.asarray(labels) == 1
    n_real, n_fake = int(np.sum(~is_fake)), int(np.sum(is_fake))
    if min(n_real, n_fake) < 2:
        return None, f"DeLong's test needs two real and two fake images, got {n_real} real and {n_fake} fake"
    (auc_a, auc_b, difference), covariance = delong_covariance(is_fake, p_a, p_b)
    reach_a, reach_b, reach = (Z * np.sqrt(np.maximum(0.0, np.diag(covariance)))).tolist()
    z = Z * difference / reach if reach > 0 else (0.0 if difference == 0 else None)
    return {
        "auc_a": auc_a,
        "auc_a_ci": [max(0.0, auc_a - reach_a), min(1.0, auc_a + reach_a)],
        "auc_b": auc_b,
        "auc_b_ci": [max(0.0, auc_b - reach_b), min(1.0, auc_b + reach_b)],
        "difference": difference,
        "difference_ci": [difference - reach, difference + reach],
        "z": z,
        "p": None if z is None else math.erfc(abs(z) / math.sqrt(2)),
    }, None


def delong_covariance(is_fake: np.ndarray, p_a: np.ndarray, p_b: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Return the AUC of a, the AUC of b and their difference, and the covariance matrix (3, 3) of the three.

    DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating
    Characteristic Curves", Biometrics 44, 1988; in O(n log n) with midranks as in Sun and Xu, "Fast Implementation of
    DeLong's Algorithm", IEEE Signal Processing Letters 21, 2014. A tie counts one half.
    """
    placed = [_placements(np.asarray(p, dtype=np.float64), is_fake) for p in (p_a, p_b)]
    fakes, reals = (np.stack([a, b, a - b]) for a, b in zip(*placed, strict=True))
    n_fake, n_real = fakes.shape[1], reals.shape[1]
    # Sums of whole and half counts are exact: two detectors that rank alike differ by 0 and not by a rounding error.
    aucs = (fakes.sum(1) / (n_real * n_fake)).tolist()
    return aucs, np.cov(fakes) / n_real**2 / n_fake + np.cov(reals) / n_fake**2 / n_real


def _placements(p_fake: np.ndarray, is_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many reals lie below each fake, and how many fakes above each real; a tie counts one half."""
    ranks = _midranks(p_fake)
    below = ranks[is_fake] - _midranks(p_fake[is_fake])
    return below, np.sum(is_fake) - (ranks[~is_fake] - _midranks(p_fake[~is_fake]))


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 in ascending order; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def mcnemar_test(right_a: np.ndarray, right_b: np.ndarray) -> dict[str, Any]:
    """Test whether two accuracies on the same images are equal, from booleans ``(N,)`` of correct verdicts.

    Only images that one of the two gets right count. ``p_exact`` is the two-sided binomial test on them; it is
    conservative. ``p`` is its mid-p version, which counts half of the observed table's own probability. McNemar,
    Psychometrika 12, 1947; mid-p recommended by Fagerland, Lydersen and Laake, "The McNemar test for binary
    matched-pairs data", BMC Medical Research Methodology 13, 2013.
    """
    only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
    n, fewer = only_a + only_b, min(only_a, only_b)
    term = tail = 1  # integers of any length: exact up to the last division
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    return {
        "acc_a": float(np.mean(right_a)),
        "acc_b": float(np.mean(right_b)),
        "difference": (only_a - only_b) / len(right_a),
        "both_right": int(np.sum(right_a & right_b)),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "both_wrong": int(np.sum(~right_a & ~right_b)),
        "p_exact": min(1.0, 2 * tail / 2**n),
        "p": min(1.0, (2 * tail - term) / 2**n),
    }


def paired_bootstrap(is_fake: np.ndarray, gain: np.ndarray, n_boot: int, seed: int) -> list[float] | None:
    """Percentile interval of the mean of ``gain`` (N,), reals and fakes resampled separately.

    ``gain`` is 1 where only a is right, -1 where only b is, else 0. None without two images of each class that is
    present, or with ``n_boot=0``.
    """
    reals, fakes = gain[~is_fake], gain[is_fake]
    if not n_boot or min(len(part) for part in (reals, fakes) if len(part)) < 2:
        return None
    drawn = [n @ reals + m @ fakes for n, m in resample_counts(len(reals), len(fakes), n_boot, seed)]
    return np.percentile(np.concatenate(drawn) / len(gain), [50 * (1 - LEVEL), 50 * (1 + LEVEL)]).tolist()
