"""Thresholds and the unsure band, fitted on validation; ``p_fake >= threshold`` means fake."""

import numpy as np

from utils.errors import UserError
from utils.metrics.ranked import RankedScores

FPR_TARGETS = {"fpr1": 0.01, "fpr01": 0.001}
MAX_CALLED_FAKE = 0.03  # of the reals, by the verdict
MAX_UNSURE = 0.2  # of the reals
MAX_MISSED = 0.05  # of the fakes, called real by the verdict, if MAX_UNSURE allows
ROUNDING = 1e-9  # of sums of weights


class Cuts:
    """The images of each class on both sides of each cut, weighted.

    Cut k calls fake every image with ``p_fake >= distinct[k]``; the last one, k = K, calls nothing fake.

    Attributes:
        distinct: ``(K,)``, ascending.
        right_reals, right_fakes: weight of the reals below and the fakes above each cut, ``(K + 1,)``, ascending and
            descending.
    """

    def __init__(self, labels: np.ndarray, p_fake: np.ndarray, weights: np.ndarray | None = None) -> None:
        ranked = RankedScores(labels, p_fake)
        labels, p_fake = np.asarray(labels), np.asarray(p_fake, dtype=np.float64)
        weights = np.ones(len(labels)) if weights is None else weights
        reals, fakes = (
            np.append(0.0, np.cumsum(weights[labels == label][np.argsort(p_fake[labels == label], kind="stable")]))
            for label in (0, 1)
        )
        self.distinct = ranked.distinct
        self.n_real, self.n_fake = len(ranked.real), len(ranked.fake)
        self.right_reals = reals[ranked.real_below_cut]
        self.right_fakes = fakes[-1] - fakes[ranked.fake_below_cut]
        self.reals, self.fakes = float(reals[-1]), float(fakes[-1])

    def first_with(self, called_fake: float) -> int:
        """Return the lowest cut that calls at most this share of the reals fake."""
        return int(np.flatnonzero(self.reals - self.right_reals <= called_fake * self.reals + ROUNDING)[0])

    def last_with(self, called_real: float) -> int:
        """Return the highest cut that calls at most this share of the fakes real."""
        return int(np.flatnonzero(self.fakes - self.right_fakes <= called_real * self.fakes + ROUNDING)[-1])

    def threshold(self, cut: int) -> float:
        """Return a threshold that makes this cut, as far from the scores on both sides as there is room."""
        below = float(self.distinct[cut - 1]) if cut > 0 else 0.0
        above = float(self.distinct[cut]) if cut < len(self.distinct) else 1.0
        if cut == len(self.distinct) and below >= 1.0:
            return float(np.nextafter(1.0, 2.0))
        middle = (below + above) / 2
        # Two neighbouring floats have no number between them: the middle rounds to one of the two.
        return middle if middle > below or cut == 0 else above


def fit_thresholds(labels: np.ndarray, p_fake: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return the thresholds on p_fake by name, and the limits of the unsure band.

    ``balanced`` maximises (real_acc + fake_acc) / 2; if several cuts do, it is the middle one of them.
    ``fpr1`` and ``fpr01`` are the most sensitive cuts whose FPR on these images is at most 0.01 and 0.001;
    with fewer than 100 or 1,000 reals that means no false alarm. A cut lies midway between two neighbouring
    distinct scores, or between an extreme score and 0 or 1. A threshold may be just above 1 where even a
    score of 1.0 must be called real.

    The verdict is for use where most photographs are real: fake from ``unsure_high`` on, unsure from
    ``unsure_low`` on, else real.

    - ``unsure_high`` is ``balanced``, or higher where that calls more than MAX_CALLED_FAKE of the reals fake.
    - ``unsure_low`` is ``balanced``, or lower where that calls more than MAX_MISSED of the fakes real. It is raised
      until at most MAX_UNSURE of the reals are unsure, if need be above ``balanced``.

    Shares and rates count each image by its weight ``(N,)``, above 0, by default equally.

    Raises:
        UserError: one class only.
    """
    cuts = Cuts(labels, p_fake, weights)
    if not cuts.n_real or not cuts.n_fake:
        raise UserError(
            f"expected real and fake images to fit thresholds, got {cuts.n_real} real and {cuts.n_fake} fake; "
            "add images of the missing class to the validation split"
        )
    # Balanced accuracy times the weights of both classes: whole numbers without weights, so equal cuts are equal.
    merit = cuts.right_reals * cuts.fakes + cuts.right_fakes * cuts.reals
    best = np.flatnonzero(merit >= merit.max() - ROUNDING)
    middle = int(best[(len(best) - 1) // 2])
    high = max(middle, cuts.first_with(MAX_CALLED_FAKE))
    enough = cuts.first_with(MAX_UNSURE + 1 - cuts.right_reals[high] / cuts.reals)
    low = max(enough, min(middle, cuts.last_with(MAX_MISSED)))
    chosen = {"balanced": middle, **{name: cuts.first_with(target) for name, target in FPR_TARGETS.items()}}
    return {name: cuts.threshold(cut) for name, cut in {**chosen, "unsure_low": low, "unsure_high": high}.items()}
