"""Thresholds and the unsure band, fitted on validation; ``p_fake >= threshold`` means fake."""

import numpy as np

from models.operating_point import sigmoid
from utils.errors import UserError
from utils.metrics.ranked import RankedScores, check_scores, logit

FPR_TARGETS = {"fpr1": 0.01, "fpr01": 0.001}


def fit_thresholds(labels: np.ndarray, p_fake: np.ndarray) -> dict[str, float]:
    """Three thresholds on p_fake: the best balanced accuracy, and at most 1 % and 0.1 % false alarms.

    ``balanced`` maximises (real_acc + fake_acc) / 2; if several cuts do, it is the middle one of them.
    ``fpr1`` and ``fpr01`` are the most sensitive cuts whose FPR on these images is at most 0.01 and 0.001;
    with fewer than 100 or 1,000 reals that means no false alarm. A cut lies midway between two neighbouring
    distinct scores, or between an extreme score and 0 or 1. A threshold may be just above 1 where even a
    score of 1.0 must be called real.

    Raises:
        UserError: one class only.
    """
    ranked = RankedScores(labels, p_fake)
    n_real, n_fake = len(ranked.real), len(ranked.fake)
    if not n_real or not n_fake:
        raise UserError(
            f"expected real and fake images to fit thresholds, got {n_real} real and {n_fake} fake; "
            "add images of the missing class to the validation split"
        )
    right_reals, right_fakes = ranked.real_below_cut, n_fake - ranked.fake_below_cut
    # Balanced accuracy times 2 n_real n_fake: whole numbers, so equal cuts are equal to the last bit.
    merit = right_reals * n_fake + right_fakes * n_real
    best = np.flatnonzero(merit == merit.max())
    thresholds = {"balanced": _place_cut(ranked.distinct, int(best[(len(best) - 1) // 2]))}
    for name, target in FPR_TARGETS.items():
        allowed = np.flatnonzero(n_real - right_reals <= np.floor(target * n_real + 1e-9))
        thresholds[name] = _place_cut(ranked.distinct, int(allowed[0]))
    return thresholds


def _place_cut(distinct: np.ndarray, cut: int) -> float:
    """A threshold that calls fake distinct[cut:] and nothing else, as far from both neighbours as there is
    room."""
    below = float(distinct[cut - 1]) if cut > 0 else 0.0
    above = float(distinct[cut]) if cut < len(distinct) else 1.0
    if cut == len(distinct) and below >= 1.0:
        return float(np.nextafter(1.0, 2.0))
    middle = (below + above) / 2
    # Two neighbouring floats have no number between them: the middle rounds to one of the two.
    return middle if middle > below or cut == 0 else above


def unsure_band(
    labels: np.ndarray, p_fake: np.ndarray, threshold: float, target_acc: float = 0.95, min_coverage: float = 0.5
) -> tuple[float, float]:
    """The band (low, high) around the threshold in which the verdict is unsure: ``low <= p_fake < high``.

    It is the narrowest band, symmetrical around the threshold in logit space (equal steps of evidence both
    ways), for which the accuracy outside of it is at least ``target_acc`` on these images. If no band reaches
    that while at least ``min_coverage`` of the images lie outside, it is the most accurate of the bands that
    leave that many (the narrowest one of equals). A threshold that needs no band gives (threshold,
    threshold).

    Raises:
        UserError: no images, or scores that are not what they should be.
    """
    labels, p_fake = check_scores(labels, p_fake)
    if not len(labels):
        raise UserError("expected labelled images to fit the unsure band, got none")
    centre = float(logit(np.array(threshold)))
    distance = np.abs(logit(p_fake) - centre)
    right = ((p_fake >= threshold) == (labels == 1)).astype(np.int64)
    edges, group = np.unique(distance, return_inverse=True)
    n_kept = np.cumsum(np.bincount(group)[::-1])[::-1]
    acc_kept = np.cumsum(np.bincount(group, right)[::-1])[::-1] / n_kept
    eligible = n_kept >= min_coverage * len(labels)
    good = np.flatnonzero(eligible & (acc_kept >= target_acc))
    index = int(good[0]) if len(good) else int(np.argmax(np.where(eligible, acc_kept, -1.0)))
    if index == 0:
        return float(threshold), float(threshold)
    width = (edges[index - 1] + edges[index]) / 2
    return float(sigmoid(np.array(centre - width))), float(sigmoid(np.array(centre + width)))
