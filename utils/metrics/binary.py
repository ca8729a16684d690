"""Figures of merit of p_fake against labels: real = 0, fake = 1; ``p_fake >= threshold`` means fake.

Labels ``(N,)`` are 0 or 1, p_fake ``(N,)`` lies in [0, 1]. Each figure is a fraction, or None where it does not exist:
with images of one class there are only acc and the rate of that class. Definitions: ``utils.metrics.ranked``.
"""

import math
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.metrics.bootstrap import FIGURES, all_metrics, bootstrap_intervals
from utils.metrics.ranked import RankedScores


def metrics_row(
    labels: np.ndarray,
    p_fake: np.ndarray,
    threshold: float,
    n_boot: int = 1000,
    seed: int = 0,
    *,
    checkpoint: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    tier: str | None = None,
    unreadable: int = 0,
) -> dict[str, Any]:
    """Return one row of the metrics file: identity, counts, every figure of merit and its 95 % interval.

    An interval ``<figure>_ci`` is [low, high] from a stratified percentile bootstrap with ``n_boot`` resamples (see
    ``utils.metrics.bootstrap``), or None; ``n_boot=0`` computes none.

    Raises:
        UserError: invalid labels, p_fake or threshold.
    """
    if not math.isfinite(threshold):
        raise UserError(f"expected a finite threshold, got {threshold}")
    ranked = RankedScores(labels, p_fake)
    found = figures(labels, p_fake, threshold)
    intervals = bootstrap_intervals(ranked, threshold, n_boot, seed)
    row: dict[str, Any] = {"checkpoint": checkpoint, "model": model, "dataset": dataset, "split": split, "tier": tier}
    row |= {"n_real": len(ranked.real), "n_fake": len(ranked.fake)}
    row |= {"auc": found["auc"], "auc_ci": intervals["auc"], "ap": found["ap"]}
    row |= {"acc": found["acc"], "acc_ci": intervals["acc"]}
    row |= {key: found[key] for key in FIGURES if key not in row}
    row |= {"threshold": float(threshold), "unreadable": unreadable}
    return row | {f"{key}_ci": intervals[key] for key in FIGURES if f"{key}_ci" not in row}


def figures(labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5) -> dict[str, float | None]:
    """Return every figure of merit by name."""
    observed = all_metrics(RankedScores(labels, p_fake).observed(), threshold)
    return {key: _number(values) for key, values in observed.items()}


def auc(labels: np.ndarray, p_fake: np.ndarray) -> float | None:
    """Return the area under the ROC curve (Mann-Whitney; a tie counts one half)."""
    return _number(RankedScores(labels, p_fake).observed().auc())


def wilson(successes: int, n: int, z: float = 1.959964) -> list[float] | None:
    """The 95 % interval of a share (Wilson, Journal of the American Statistical Association 22, 1927)."""
    if not n:
        return None
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def _number(values: np.ndarray) -> float | None:
    """Return the only value of an array (1,), None for NaN."""
    return None if math.isnan(values[0]) else float(values[0])
