"""Figures of merit of p_fake against labels: real = 0, fake = 1, and ``p_fake >= threshold`` means fake.

All take labels (N,) of 0 and 1 and p_fake (N,) in [0, 1], and return a fraction, or None where the figure
cannot exist. With images of one class only, what exists is acc and the rate of that class. ROC and
precision-recall curves are in ``utils.evaluation.curves``, thresholds in ``utils.metrics.thresholds``, calibration in
``models.operating_point``.
"""

import math
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.metrics.bootstrap import all_metrics, bootstrap_intervals
from utils.metrics.ranked import MAX_FPR, N_BINS, RankedScores

IDENTITY_KEYS = ("checkpoint", "model", "dataset", "split", "tier")
METRIC_KEYS = (
    *IDENTITY_KEYS,
    "n_real",
    "n_fake",
    "auc",
    "auc_ci",
    "ap",
    "acc",
    "acc_ci",
    "real_acc",
    "fake_acc",
    "f1",
    "eer",
    "tpr_at_fpr1",
    "ece",
    "brier",
    "threshold",
    "unreadable",
)
EXTRA_CI_KEYS = ("ap_ci", "real_acc_ci", "fake_acc_ci", "f1_ci", "eer_ci", "tpr_at_fpr1_ci", "ece_ci", "brier_ci")


def metrics_row(
    labels: np.ndarray, p_fake: np.ndarray, threshold: float, n_boot: int = 1000, seed: int = 0, **identity: Any
) -> dict[str, Any]:
    """One row of the metrics file: identity, counts, every figure of merit and its 95 % interval.

    ``identity`` takes checkpoint, model, dataset, split, tier (None when left out) and unreadable (a count, 0
    when left out). The keys are METRIC_KEYS in that order, then EXTRA_CI_KEYS; an interval is [low, high] or
    None, from a stratified percentile bootstrap with ``n_boot`` resamples (see ``utils.metrics.bootstrap``); 0 leaves
    all of them None.

    Raises:
        UserError: labels, p_fake or threshold are not what they should be.
        TypeError: an identity key that the row does not have.
    """
    unknown = set(identity) - {*IDENTITY_KEYS, "unreadable"}
    if unknown:
        raise TypeError(f"expected identity keys {IDENTITY_KEYS} and unreadable, got {sorted(unknown)}")
    if not math.isfinite(threshold):
        raise UserError(f"expected a finite threshold, got {threshold}")
    ranked = RankedScores(labels, p_fake)
    row: dict[str, Any] = dict.fromkeys((*METRIC_KEYS, *EXTRA_CI_KEYS))
    row.update(identity)
    row.update(n_real=len(ranked.real), n_fake=len(ranked.fake), threshold=float(threshold))
    row["unreadable"] = int(identity.get("unreadable") or 0)
    row.update({key: _number(value) for key, value in all_metrics(ranked.observed(), threshold).items()})
    intervals = bootstrap_intervals(ranked, threshold, n_boot, seed)
    row.update({f"{key}_ci": interval for key, interval in intervals.items()})
    return row


def _number(values: np.ndarray) -> float | None:
    """The only value of an array (1,), or None for NaN."""
    return None if math.isnan(values[0]) else float(values[0])


def auc(labels: np.ndarray, p_fake: np.ndarray) -> float | None:
    """The area under the ROC curve (Mann-Whitney; a tie counts one half)."""
    return _number(RankedScores(labels, p_fake).observed().auc())


def average_precision(labels: np.ndarray, p_fake: np.ndarray) -> float | None:
    """The area under the precision-recall curve as a step function, fakes being the positives."""
    return _number(RankedScores(labels, p_fake).observed().ap())


def acc(labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5) -> float | None:
    """The fraction of images called correctly; plain accuracy, not balanced."""
    return _number(RankedScores(labels, p_fake).observed().acc(threshold))


def real_acc(labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5) -> float | None:
    """The fraction of reals called real."""
    return _number(RankedScores(labels, p_fake).observed().real_acc(threshold))


def fake_acc(labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5) -> float | None:
    """The fraction of fakes called fake."""
    return _number(RankedScores(labels, p_fake).observed().fake_acc(threshold))


def f1(labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5) -> float | None:
    """The F1 score of the class fake."""
    return _number(RankedScores(labels, p_fake).observed().f1(threshold))


def eer(labels: np.ndarray, p_fake: np.ndarray) -> float | None:
    """The equal error rate: where the ROC curve, with straight lines between its points, has FPR = 1 -
    TPR."""
    return _number(RankedScores(labels, p_fake).observed().eer())


def tpr_at_fpr(labels: np.ndarray, p_fake: np.ndarray, max_fpr: float = MAX_FPR) -> float | None:
    """The highest fraction of fakes found by a threshold that calls at most ``max_fpr`` of the reals fake.

    With fewer than 1 / max_fpr reals this allows no false alarm at all.
    """
    return _number(RankedScores(labels, p_fake).observed().tpr_at_fpr(max_fpr))


def ece(labels: np.ndarray, p_fake: np.ndarray, n_bins: int = N_BINS) -> float | None:
    """The expected calibration error of p_fake over equal-width bins (definition: ``CountedScores.ece``)."""
    return _number(RankedScores(labels, p_fake).observed().ece(n_bins))


def brier(labels: np.ndarray, p_fake: np.ndarray) -> float | None:
    """The Brier score: the mean of (p_fake - label) squared."""
    return _number(RankedScores(labels, p_fake).observed().brier())
