"""Bootstrap intervals for every figure of merit at once."""

from collections.abc import Iterator

import numpy as np

from utils.metrics.ranked import CountedScores, RankedScores

FIGURES = ("auc", "ap", "acc", "real_acc", "fake_acc", "f1", "eer", "tpr_at_fpr1", "ece", "brier")
LEVEL = 0.95
BLOCK_CELLS = 1 << 18  # counts per block: the matrices of a block fit into the processor's cache


def resample_counts(n_real: int, n_fake: int, n_boot: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of resamples as counts ``(b, n_real)`` and ``(b, n_fake)``, float64.

    Reals are drawn with replacement from the reals and fakes from the fakes: each resample has both classes, and the
    class balance, which is a choice of the set's authors, is not treated as random. The same arguments give the same
    counts.
    """
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2)]
    block = max(1, BLOCK_CELLS // max(1, n_real + n_fake))
    for start in range(0, n_boot, block):
        rows = min(block, n_boot - start)
        yield _draw(streams[0], rows, n_real), _draw(streams[1], rows, n_fake)


def _draw(stream: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """Draw n of n images with replacement, ``rows`` times, and count them: (rows, n)."""
    if n == 0:
        return np.zeros((rows, 0))
    drawn = stream.integers(0, n, size=(rows, n))
    drawn += np.arange(rows)[:, None] * n
    return np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n).astype(np.float64)


def all_metrics(scores: CountedScores, threshold: float) -> dict[str, np.ndarray]:
    """Return the FIGURES of B resamples, each ``(B,)``, NaN where it does not exist."""
    return {
        "auc": scores.auc(),
        "ap": scores.ap(),
        "acc": scores.acc(threshold),
        "real_acc": scores.real_acc(threshold),
        "fake_acc": scores.fake_acc(threshold),
        "f1": scores.f1(threshold),
        "eer": scores.eer(),
        "tpr_at_fpr1": scores.tpr_at_fpr(),
        "ece": scores.ece(),
        "brier": scores.brier(),
    }


def bootstrap_values(ranked: RankedScores, threshold: float, n_boot: int, seed: int) -> dict[str, np.ndarray]:
    """Return every figure of merit of every resample as ``(n_boot,)``."""
    counts = resample_counts(len(ranked.real), len(ranked.fake), n_boot, seed)
    blocks = [all_metrics(CountedScores(ranked, reals, fakes), threshold) for reals, fakes in counts]
    return {key: np.concatenate([np.empty(0), *(block[key] for block in blocks)]) for key in FIGURES}


def bootstrap_intervals(
    ranked: RankedScores, threshold: float, n_boot: int = 1000, seed: int = 0, level: float = LEVEL
) -> dict[str, list[float] | None]:
    """Return stratified percentile bootstrap intervals [low, high], one per figure of merit.

    They do not depend on the order of the images. None where the figure does not exist, where ``n_boot`` is 0, or
    where a class that the figure rests on has fewer than two images. Resampling inflates ECE and, on small sets, AP:
    an interval that misses its figure is extended to it. The percentile method cannot look beyond the data: a figure of
    exactly 1 gets the interval [1, 1] however small the set. Efron, "Bootstrap methods: another look at the jackknife",
    Annals of Statistics 7, 1979.
    """
    sizes = {"real_acc": [len(ranked.real)], "fake_acc": [len(ranked.fake)]}
    both = [size for size in (len(ranked.real), len(ranked.fake)) if size > 0]
    intervals: dict[str, list[float] | None] = dict.fromkeys(FIGURES)
    observed = all_metrics(ranked.observed(), threshold)
    for key, drawn in bootstrap_values(ranked, threshold, n_boot, seed).items():
        if len(drawn) and min(sizes.get(key, both), default=0) >= 2 and np.all(np.isfinite(drawn)):
            low, high = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)])
            intervals[key] = [float(min(low, observed[key][0])), float(max(high, observed[key][0]))]
    return intervals
