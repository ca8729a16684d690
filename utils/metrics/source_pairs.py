"""AUC over pairs of sources: the fakes of one data set against the reals of another, or of the same one.

A mix of sources may have some with fakes only and some with reals only. Pooling them would measure how far the sources
are apart in format and framing, and the largest would decide. So each pair of sources has a separate AUC, and all
sources have equal weight.
"""

from collections.abc import Sequence

import numpy as np

from utils.metrics.bootstrap import resample_counts
from utils.metrics.ranked import check_scores, leading_sums, win_rate


def pair_aucs(sources: Sequence[tuple[np.ndarray, np.ndarray]], n_boot: int = 0, seed: int = 0) -> np.ndarray:
    """Return the AUC of the fakes of each source against the reals of each source, ``(B, S, S)``.

    Entry [b, f, r] belongs to the fakes of source f and the reals of source r; it is NaN where one of them has none.
    B is 1 for the observed images. With ``n_boot``, B resamples take their place: the reals and the fakes of each
    source are drawn once per resample and count alike in all of its pairs.

    Args:
        sources: labels and p_fake of each source, ``(N,)`` each.

    Raises:
        UserError: invalid labels or p_fake.
    """
    checked = [check_scores(*source) for source in sources]
    reals, fakes = ([np.sort(p_fake[labels == label]) for labels, p_fake in checked] for label in (0, 1))
    counts = [
        tuple(map(np.concatenate, zip(*resample_counts(len(real), len(fake), n_boot, seed + number), strict=True)))
        if n_boot
        else (np.ones((1, len(real))), np.ones((1, len(fake))))
        for number, (real, fake) in enumerate(zip(reals, fakes, strict=True))
    ]
    found = np.full((n_boot or 1, len(sources), len(sources)), np.nan)
    for r, real in enumerate(reals):
        real_below = leading_sums(counts[r][0])
        for f, fake in enumerate(fakes):
            if len(fake) and len(real):
                below, upto = (np.searchsorted(real, fake, side=side) for side in ("left", "right"))
                found[:, f, r] = win_rate(real_below, counts[f][1], below, upto)
    return found


def within(aucs: np.ndarray) -> np.ndarray:
    """Return the mean AUC of the sources with both classes, each against its own reals, ``(B,)``; NaN without any."""
    return _mean(aucs, np.eye(aucs.shape[-1], dtype=bool))


def across(aucs: np.ndarray) -> np.ndarray:
    """Return the mean AUC over all pairs of different sources, ``(B,)``; NaN without any.

    The mean over the fakes of the sources, each against the reals of all others, is the same but for the weight of
    sources with both classes, which have one partner less; so is the mean over the reals of the sources.
    """
    return _mean(aucs, ~np.eye(aucs.shape[-1], dtype=bool))


def mix_auc(aucs: np.ndarray) -> np.ndarray:
    """Return the figure by which epochs, settings and recipes are chosen on a mix of sources, ``(B,)``.

    - Where all sources have both classes: the mean of their own AUCs, :func:`within`. Fakes and reals of one source
      were collected alike, so their AUC is the figure of interest; that of a pair of sources also measures how far
      these are apart. The published detectors were chosen by this figure.
    - Where some have one class only, they can be judged in pairs with others only: the mean of :func:`within` and
      :func:`across`, or the one that exists. Half of the weight is on pairs of one source, however few there are:
      they are the harder ones, since only the manipulation distinguishes their fakes.

    NaN if there is no pair. The figure does not depend on the order of sources or images, nor on the number of images
    of a source.
    """
    exists = ~np.isnan(aucs[0])
    pairs_alone = np.diag(exists).sum()
    in_pairs = (exists.any(axis=0) | exists.any(axis=1)).sum()
    if pairs_alone == in_pairs:
        return within(aucs)
    both = np.stack([within(aucs), across(aucs)])
    return both.mean(axis=0) if pairs_alone else both[1]


def _mean(aucs: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Mean over the pairs in the mask ``(S, S)`` that exist; NaN without any."""
    chosen = wanted & ~np.isnan(aucs[0])
    return aucs[:, chosen].mean(axis=1) if chosen.any() else np.full(len(aucs), np.nan)
