"""Is one detector better than another on the same images, or was it luck? Tests for paired scores.

Two detectors that score the same images make related errors, so their separate intervals say little about the
difference: each test here works on the pairs. Every difference is a minus b: positive means that a is better.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.metrics.bootstrap import LEVEL, resample_counts
from utils.metrics.ranked import CountedScores, RankedScores
from utils.scoring.table import ScoreTable

Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def compare_scores(
    a: ScoreTable, b: ScoreTable, threshold_a: float, threshold_b: float, n_boot: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Compare two detectors on the same images, each at its own threshold; the row order does not matter.

    Returns plain values: ``n_real``, ``n_fake``, both thresholds, ``delong`` (None with ``delong_reason`` where it
    cannot exist), ``mcnemar``, ``bootstrap`` (stratified and paired: both detectors are measured on the same drawn
    images) and ``disagreements``, the images on which the verdicts differ, the widest gap in p_fake first.

    Raises:
        UserError: the tables do not hold the same images with the same labels, or a threshold is not finite.
    """
    for threshold in (threshold_a, threshold_b):
        if not math.isfinite(threshold):
            raise UserError(f"expected finite thresholds, got {threshold}")
    a, b = match_images(a, b)
    fake_a, fake_b = a.p_fake >= threshold_a, b.p_fake >= threshold_b
    delong, reason = delong_test(a.label, a.p_fake, b.p_fake)
    differ = np.flatnonzero(fake_a != fake_b)
    gap = np.abs(a.p_fake - b.p_fake)[differ]
    return {
        "n_real": int(np.sum(a.label == 0)),
        "n_fake": int(np.sum(a.label == 1)),
        "threshold_a": float(threshold_a),
        "threshold_b": float(threshold_b),
        "delong": delong,
        "delong_reason": reason,
        "mcnemar": mcnemar_test(fake_a == (a.label == 1), fake_b == (a.label == 1)),
        "bootstrap": paired_bootstrap(a.label, a.p_fake, b.p_fake, (threshold_a, threshold_b), n_boot, seed),
        "disagreements": [
            {
                "path": a.path[row],
                "dataset": a.dataset[row],
                "tier": a.tier[row],
                "label": int(a.label[row]),
                "p_fake_a": float(a.p_fake[row]),
                "p_fake_b": float(b.p_fake[row]),
            }
            for row in differ[np.argsort(-gap, kind="stable")]
        ],
    }


def match_images(a: ScoreTable, b: ScoreTable) -> tuple[ScoreTable, ScoreTable]:
    """Both tables with their rows in one order, matched by path, dataset and tier.

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
    images = sorted(rows_a)
    first, second = _in_order(a, [rows_a[image] for image in images]), _in_order(b, [rows_b[image] for image in images])
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


def _in_order(table: ScoreTable, rows: Sequence[int]) -> ScoreTable:
    columns: dict[str, Any] = {
        name: column[list(rows)] if isinstance(column, np.ndarray) else [column[row] for row in rows]
        for name, column in vars(table).items()
    }
    return ScoreTable(**columns)


def delong_test(labels: np.ndarray, p_a: np.ndarray, p_b: np.ndarray) -> tuple[dict[str, Any] | None, str | None]:
    """DeLong's test that two paired AUC are equal; (None, reason) without two images of each class.

    Keys: auc_a, auc_b, difference, each with an interval under ``_ci``; variance_a, variance_b, covariance,
    variance (of the difference), z and the two-sided p. Intervals of the AUC are cut at 0 and 1. Where the variance
    is 0, p is 1 if the AUC are equal (z 0), and z and p are None if not: the normal approximation ends there.

    DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating
    Characteristic Curves", Biometrics 44, 1988; in O(n log n) with midranks as in Sun and Xu, "Fast Implementation of
    DeLong's Algorithm", IEEE Signal Processing Letters 21, 2014. A tie counts one half.
    """
    is_fake = np.asarray(labels) == 1
    n_real, n_fake = int(np.sum(~is_fake)), int(np.sum(is_fake))
    if min(n_real, n_fake) < 2:
        return None, f"DeLong's test needs two real and two fake images, got {n_real} real and {n_fake} fake"
    placed = [_placements(np.asarray(p, dtype=np.float64), is_fake) for p in (p_a, p_b)]
    # Sums of whole and half counts, so exact: two detectors that rank alike differ by 0 and not by rounding.
    auc_a, auc_b = (float(fakes.sum() / (n_real * n_fake)) for fakes, _ in placed)
    (fakes_a, reals_a), (fakes_b, reals_b) = placed

    def covariance(fakes: np.ndarray, reals: np.ndarray, fakes_too: np.ndarray, reals_too: np.ndarray) -> float:
        of_fakes = np.cov(fakes, fakes_too)[0, 1] / n_real**2 / n_fake
        return float(of_fakes + np.cov(reals, reals_too)[0, 1] / n_fake**2 / n_real)

    var_a, var_b = covariance(*placed[0], *placed[0]), covariance(*placed[1], *placed[1])
    gap = (fakes_a - fakes_b, reals_a - reals_b)
    variance, difference = covariance(*gap, *gap), auc_a - auc_b
    z = difference / math.sqrt(variance) if variance > 0 else (0.0 if difference == 0 else None)
    reach_a, reach_b, reach = (Z * math.sqrt(max(0.0, value)) for value in (var_a, var_b, variance))
    return {
        "auc_a": auc_a,
        "auc_a_ci": [max(0.0, auc_a - reach_a), min(1.0, auc_a + reach_a)],
        "auc_b": auc_b,
        "auc_b_ci": [max(0.0, auc_b - reach_b), min(1.0, auc_b + reach_b)],
        "difference": difference,
        "difference_ci": [difference - reach, difference + reach],
        "variance_a": var_a,
        "variance_b": var_b,
        "covariance": covariance(*placed[0], *placed[1]),
        "variance": variance,
        "z": z,
        "p": None if z is None else math.erfc(abs(z) / math.sqrt(2)),
    }, None


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
    """McNemar's test that two accuracies on the same images are equal, from booleans (N,) of right verdicts.

    Only images that one of the two gets right speak about the difference. ``p_exact`` is the two-sided binomial test
    on them; it is conservative, and ``p_mid`` counts half of the observed table's own probability (Fagerland, Lydersen
    and Laake, "The McNemar test for binary matched-pairs data", BMC Medical Research Methodology 13, 2013, who
    recommend it). McNemar, Psychometrika 12, 1947.
    """
    only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
    n, fewer = only_a + only_b, min(only_a, only_b)
    # Whole numbers of any length: no logarithm, no rounding before the last division.
    term = tail = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    p_exact = min(1.0, 2 * tail / 2**n)
    return {
        "acc_a": float(np.mean(right_a)),
        "acc_b": float(np.mean(right_b)),
        "difference": (only_a - only_b) / len(right_a),
        "both_right": int(np.sum(right_a & right_b)),
        "only_a_right": only_a,
        "only_b_right": only_b,
        "both_wrong": int(np.sum(~right_a & ~right_b)),
        "p_exact": p_exact,
        "p_mid": min(1.0, (2 * tail - term) / 2**n),
    }


def paired_bootstrap(
    labels: np.ndarray, p_a: np.ndarray, p_b: np.ndarray, thresholds: tuple[float, float], n_boot: int, seed: int
) -> dict[str, Any]:
    """Percentile intervals of the difference in AUC and in accuracy, both detectors on the same drawn images.

    Keys: n_boot, auc_difference_ci, acc_difference_ci; None where the figure cannot exist, without two images of each
    class that is there, or with n_boot 0.
    """
    ranked = [RankedScores(labels, p) for p in (p_a, p_b)]
    n_real, n_fake = len(ranked[0].real), len(ranked[0].fake)
    # RankedScores sorts each class: the columns of the counts follow, for each detector in its own order.
    orders = [[np.argsort(p[labels == label], kind="stable") for label in (0, 1)] for p in (p_a, p_b)]
    drawn: dict[str, list[np.ndarray]] = {"auc": [], "acc": []}
    for reals, fakes in resample_counts(n_real, n_fake, n_boot, seed):
        one, two = (CountedScores(r, reals[:, o[0]], fakes[:, o[1]]) for r, o in zip(ranked, orders, strict=True))
        drawn["auc"].append(one.auc() - two.auc())
        drawn["acc"].append(one.acc(thresholds[0]) - two.acc(thresholds[1]))
    result: dict[str, Any] = {"n_boot": n_boot}
    enough = min(size for size in (n_real, n_fake) if size) >= 2
    for key, blocks in drawn.items():
        values = np.concatenate(blocks) if blocks else np.array([np.nan])
        limits = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
        known = enough and bool(np.all(np.isfinite(values)))
        result[f"{key}_difference_ci"] = [float(v) for v in np.percentile(values, limits)] if known else None
    return result
