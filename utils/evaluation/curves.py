"""Curves and counts behind the figures: ROC, precision-recall, confusion, reliability, coverage."""

from typing import NamedTuple

import numpy as np

from utils.errors import UserError
from utils.metrics.ranked import N_BINS, RankedScores, bin_of, check_scores, logit


class RocCurve(NamedTuple):
    """ROC points from (0, 0) to (1, 1); thresholds[0] is inf (nothing is called fake)."""

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray


class Reliability(NamedTuple):
    """Equal-width bins of p_fake over [0, 1]; the mean and the fraction of an empty bin are NaN."""

    mean_p_fake: np.ndarray
    fraction_fake: np.ndarray
    n_images: np.ndarray


def _counts_above(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct scores from inf down, and the reals and fakes called fake at each."""
    ranked = RankedScores(labels, p_fake)
    n_real, n_fake = len(ranked.real), len(ranked.fake)
    if not n_real or not n_fake:
        raise UserError(f"expected real and fake images for a curve, got {n_real} real and {n_fake} fake")
    thresholds = np.append(ranked.distinct, np.inf)[::-1]
    return thresholds, n_real - ranked.real_below_cut[::-1], n_fake - ranked.fake_below_cut[::-1]


def roc_curve(labels: np.ndarray, p_fake: np.ndarray) -> RocCurve:
    """Return the ROC curve without points on a straight line between their neighbours. Raises UserError: one class."""
    thresholds, false_alarms, hits = _counts_above(labels, p_fake)
    step_x, step_y = np.diff(false_alarms), np.diff(hits)
    turns = step_x[1:] * step_y[:-1] != step_x[:-1] * step_y[1:]
    keep = np.concatenate([[True], turns, [True]])
    return RocCurve(false_alarms[keep] / false_alarms[-1], hits[keep] / hits[-1], thresholds[keep])


def pr_curve(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall, in ascending order from 0, and precision; average precision is the area under it as steps.

    The first point, (0, 1), is a convention. Raises UserError: one class.
    """
    _, false_alarms, hits = _counts_above(labels, p_fake)
    flagged = false_alarms + hits
    return hits / hits[-1], np.divide(hits, flagged, out=np.ones(len(hits)), where=flagged > 0)


def confusion(labels: np.ndarray, p_fake: np.ndarray, threshold: float) -> np.ndarray:
    """Return counts (2, 2): rows are the truth, columns the verdict, in the order real, fake."""
    labels, p_fake = check_scores(labels, p_fake)
    called_fake = (p_fake >= threshold).astype(np.int64)
    return np.bincount(2 * labels + called_fake, minlength=4).reshape(2, 2)


def reliability(labels: np.ndarray, p_fake: np.ndarray, n_bins: int = N_BINS) -> Reliability:
    """Return mean p_fake, fraction of fakes and number of images in each bin of the expected calibration error."""
    labels, p_fake = check_scores(labels, p_fake)
    bins = bin_of(p_fake, n_bins)
    count = np.bincount(bins, minlength=n_bins)
    known = np.where(count > 0, count, np.nan)
    return Reliability(np.bincount(bins, p_fake, n_bins) / known, np.bincount(bins, labels, n_bins) / known, count)


def coverage(labels: np.ndarray, p_fake: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of images outside a band around the threshold, ascending up to 1, and their accuracy.

    The band is symmetrical in logit and takes every width that changes a verdict; images at the same distance from the
    threshold are answered together. Known as the accuracy-rejection curve: Nadeem, Zucker and Hanczar, MLSB 2009 (JMLR
    W&CP 8).
    """
    labels, p_fake = check_scores(labels, p_fake)
    distance = np.abs(logit(p_fake) - logit(np.array(threshold)))
    order = np.argsort(-distance, kind="stable")
    right = np.cumsum((p_fake >= threshold)[order] == (labels == 1)[order])
    last_of_ties = np.append(np.flatnonzero(np.diff(distance[order])), len(order) - 1)
    return (last_of_ties + 1) / len(order), right[last_of_ties] / (last_of_ties + 1)
