"""Curves and counts behind the figures: ROC, precision-recall, confusion, reliability, coverage."""

from typing import NamedTuple

import numpy as np

from utils.errors import UserError
from utils.metrics.ranked import N_BINS, RankedScores, bin_of, check_scores


class RocCurve(NamedTuple):
    """ROC points from (0, 0) to (1, 1); thresholds[0] is inf (nothing is called fake)."""

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray


class PrCurve(NamedTuple):
    """Precision-recall points in ascending recall; the first, (0, 1), is a convention and has threshold
    inf."""

    recall: np.ndarray
    precision: np.ndarray
    thresholds: np.ndarray


class Reliability(NamedTuple):
    """Equal-width bins of p_fake over [0, 1]; mean_p_fake and fraction_fake are NaN in an empty bin."""

    mean_p_fake: np.ndarray
    fraction_fake: np.ndarray
    n_images: np.ndarray


class Coverage(NamedTuple):
    """Accuracy of the verdicts against the share of images that get one, share in ascending order up to 1."""

    share: np.ndarray
    acc: np.ndarray


def _counts_above(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds from inf down over the distinct scores, and the reals and fakes called fake at each."""
    ranked = RankedScores(labels, p_fake)
    if not len(ranked.real) or not len(ranked.fake):
        raise UserError(
            f"expected real and fake images for a curve, got {len(ranked.real)} real and "
            f"{len(ranked.fake)} fake; add images of the missing class"
        )
    thresholds = np.append(ranked.distinct, np.inf)[::-1]
    return (thresholds, len(ranked.real) - ranked.real_below_cut[::-1], len(ranked.fake) - ranked.fake_below_cut[::-1])


def roc_curve(labels: np.ndarray, p_fake: np.ndarray) -> RocCurve:
    """The ROC curve without the points that lie on a straight line between their neighbours.

    Raises:
        UserError: one class only.
    """
    thresholds, false_alarms, hits = _counts_above(labels, p_fake)
    step_x, step_y = np.diff(false_alarms), np.diff(hits)
    turns = step_x[1:] * step_y[:-1] != step_x[:-1] * step_y[1:]
    keep = np.concatenate([[True], turns, [True]])
    return RocCurve(false_alarms[keep] / false_alarms[-1], hits[keep] / hits[-1], thresholds[keep])


def pr_curve(labels: np.ndarray, p_fake: np.ndarray) -> PrCurve:
    """The precision-recall curve; average precision is the area under it drawn as steps.

    Raises:
        UserError: one class only.
    """
    thresholds, false_alarms, hits = _counts_above(labels, p_fake)
    flagged = false_alarms + hits
    precision = np.divide(hits, flagged, out=np.ones(len(hits)), where=flagged > 0)
    return PrCurve(hits / hits[-1], precision, thresholds)


def confusion(labels: np.ndarray, p_fake: np.ndarray, threshold: float) -> np.ndarray:
    """Counts as a matrix (2, 2): rows are the truth, columns the call, in the order real, fake."""
    labels, p_fake = check_scores(labels, p_fake)
    called_fake = (p_fake >= threshold).astype(np.int64)
    return np.bincount(2 * labels + called_fake, minlength=4).reshape(2, 2)


def reliability(labels: np.ndarray, p_fake: np.ndarray, n_bins: int = N_BINS) -> Reliability:
    """Mean p_fake, fraction of fakes and number of images in each bin; the bins of ``utils.metrics.binary.ece``."""
    labels, p_fake = check_scores(labels, p_fake)
    bins = bin_of(p_fake, n_bins)
    count = np.bincount(bins, minlength=n_bins)
    empty = np.full(n_bins, np.nan)
    mean = np.divide(np.bincount(bins, p_fake, n_bins), count, out=empty.copy(), where=count > 0)
    fraction = np.divide(np.bincount(bins, labels, n_bins), count, out=empty.copy(), where=count > 0)
    return Reliability(mean, fraction, count)


def coverage(labels: np.ndarray, p_fake: np.ndarray, threshold: float) -> Coverage:
    """Accuracy on the images outside an unsure band that grows around the threshold, symmetrical in logit.

    The band is that of ``utils.metrics.thresholds.unsure_band``, with every width that changes a verdict: at share 1
    there is no band and ``acc`` is the plain accuracy; images at the same distance from the threshold go
    together. Known as the accuracy-rejection curve: Nadeem, Zucker and Hanczar, MLSB 2009 (JMLR W&CP 8).
    """
    labels, p_fake = check_scores(labels, p_fake)
    held = np.clip(np.append(p_fake, threshold), 1e-15, 1 - 1e-15)
    logits = np.log(held) - np.log1p(-held)
    distance = np.abs(logits[:-1] - logits[-1])
    order = np.argsort(-distance, kind="stable")
    right = np.cumsum((p_fake >= threshold)[order] == (labels == 1)[order])
    last_of_ties = np.append(np.flatnonzero(np.diff(distance[order])), len(order) - 1)
    return Coverage((last_of_ties + 1) / len(order), right[last_of_ties] / (last_of_ties + 1))
