"""Every figure of merit as a function of how often each image was drawn: sort once, then only sums.

One bootstrap resample is a vector of counts. With the scores of each class sorted once, all figures are cumulative sums
and dot products of these counts, so a block of resamples takes a few matrix operations. The observed set is the
resample in which every count is 1: a point estimate and its interval share this code.
"""

from collections.abc import Callable

import numpy as np

from utils.errors import UserError

N_BINS = 15
MAX_FPR = 0.01


def check_scores(labels: np.ndarray, p_fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as int64 and p_fake as float64, both ``(N,)``.

    Raises:
        UserError: lengths differ, a label is not 0 or 1, or p_fake is NaN, infinite or outside [0, 1].
    """
    labels = np.asarray(labels).reshape(-1)
    p_fake = np.asarray(p_fake, dtype=np.float64).reshape(-1)
    if len(labels) != len(p_fake):
        raise UserError(f"expected one p_fake per label, got {len(labels)} labels and {len(p_fake)} p_fake")
    bad_labels = int(np.sum((labels != 0) & (labels != 1)))
    if bad_labels:
        raise UserError(f"expected labels 0 (real) or 1 (fake), got {bad_labels} of {len(labels)} others")
    bad = int(np.sum(~((p_fake >= 0) & (p_fake <= 1))))
    if bad:
        raise UserError(
            f"expected p_fake in [0, 1], got {bad} of {len(p_fake)} outside of it or NaN; "
            "check the checkpoint that made the scores"
        )
    return labels.astype(np.int64), p_fake


def logit(p_fake: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), held at about +-35 where p_fake is 0 or 1."""
    p_fake = np.clip(p_fake, 1e-15, 1 - 1e-15)
    return np.log(p_fake) - np.log1p(-p_fake)


class RankedScores:
    """The scores of one labelled set, sorted once, with the indices that the figures of merit need.

    Cut k calls fake every image with ``p_fake >= distinct[k]``; the last cut, k = K, calls nothing fake.
    """

    def __init__(self, labels: np.ndarray, p_fake: np.ndarray) -> None:
        labels, p_fake = check_scores(labels, p_fake)
        self.real = np.sort(p_fake[labels == 0])
        self.fake = np.sort(p_fake[labels == 1])
        self.distinct = np.unique(p_fake)
        self.real_below_cut = np.append(np.searchsorted(self.real, self.distinct), len(self.real))
        self.fake_below_cut = np.append(np.searchsorted(self.fake, self.distinct), len(self.fake))
        # For each fake: how many reals are below it, how many below or level, and where its own ties start.
        self.real_below_fake = np.searchsorted(self.real, self.fake, side="left")
        self.real_upto_fake = np.searchsorted(self.real, self.fake, side="right")
        self.fake_below_fake = np.searchsorted(self.fake, self.fake, side="left")

    @property
    def has_both(self) -> bool:
        """Whether there are images of both classes."""
        return len(self.real) > 0 and len(self.fake) > 0

    def observed(self) -> "CountedScores":
        """Return the set itself: every image counted once."""
        return CountedScores(self, np.ones((1, len(self.real))), np.ones((1, len(self.fake))))


class CountedScores:
    """B resamples of one set; each method returns B values, NaN where the figure does not exist.

    real_counts (B, n_real) and fake_counts (B, n_fake) say how often each image was drawn, in the order of
    ``ranked.real`` and ``ranked.fake`` (ascending p_fake).
    """

    def __init__(self, ranked: RankedScores, real_counts: np.ndarray, fake_counts: np.ndarray) -> None:
        self.ranked = ranked
        self.real_counts = real_counts
        self.fake_counts = fake_counts
        self.real_below = leading_sums(real_counts)
        self.fake_below = leading_sums(fake_counts)
        self.n_real = self.real_below[:, -1]
        self.n_fake = self.fake_below[:, -1]

    def auc(self) -> np.ndarray:
        """P(a fake scores above a real) + P(a tie) / 2: the Mann-Whitney statistic, exact under ties."""
        return win_rate(self.real_below, self.fake_counts, self.ranked.real_below_fake, self.ranked.real_upto_fake)

    def ap(self) -> np.ndarray:
        """Average precision: the precision at each fake's own score, averaged over the fakes (no interpolation)."""
        hits = self.n_fake[:, None] - self.fake_below[:, self.ranked.fake_below_fake]
        flagged = self.n_real[:, None] - self.real_below[:, self.ranked.real_below_fake]
        flagged += hits
        np.maximum(flagged, 1, out=flagged)  # an image above all drawn ones has count 0: it adds 0, not 0/0
        hits /= flagged
        return self._of_both(_ratio(np.einsum("bi,bi->b", self.fake_counts, hits), self.n_fake))

    def eer(self) -> np.ndarray:
        """Equal error rate: where FPR = 1 - TPR on the ROC curve with straight lines between its points."""
        if not self.ranked.has_both:
            return np.full(len(self.n_real), np.nan)
        # FPR + TPR - 1 falls from 1 (cut 0) to -1 (cut K): it crosses 0 after the last cut where it is >= 0.
        cut = self._last_cut(lambda k: np.add(*self._rates(k)) >= 1)
        fpr, tpr = self._rates(cut)
        next_fpr, next_tpr = self._rates(cut + 1)
        above, below = fpr + tpr - 1, next_fpr + next_tpr - 1
        return fpr + above / (above - below) * (next_fpr - fpr)

    def tpr_at_fpr(self, max_fpr: float = MAX_FPR) -> np.ndarray:
        """Highest TPR of any threshold whose FPR is at most ``max_fpr`` (no interpolation).

        With fewer than 1 / max_fpr reals this allows no false alarm.
        """
        if not self.ranked.has_both:
            return np.full(len(self.n_real), np.nan)
        # 1e-9: a product such as 0.01 * 700 must not fall below the whole number that it stands for.
        # The half keeps the comparison of two rounded fractions away from equality.
        limit = (np.floor(max_fpr * self.n_real + 1e-9) + 0.5) / self.n_real
        last_bad = self._last_cut(lambda k: self._rates(k)[0] > limit)
        # A limit above 1 excludes nothing: the cut that calls everything fake is then the best one.
        return self._rates(np.where(limit > 1, 0, last_bad + 1))[1]

    def calls(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Correctly called reals and fakes, where ``p_fake >= threshold`` means fake."""
        right_reals = self.real_below[:, np.searchsorted(self.ranked.real, threshold)]
        right_fakes = self.n_fake - self.fake_below[:, np.searchsorted(self.ranked.fake, threshold)]
        return right_reals, right_fakes

    def acc(self, threshold: float) -> np.ndarray:
        """Fraction of images called correctly (plain, not balanced)."""
        return _ratio(np.add(*self.calls(threshold)), self.n_real + self.n_fake)

    def real_acc(self, threshold: float) -> np.ndarray:
        """Fraction of reals called real: 1 - FPR."""
        return _ratio(self.calls(threshold)[0], self.n_real)

    def fake_acc(self, threshold: float) -> np.ndarray:
        """Fraction of fakes called fake: TPR, recall."""
        return _ratio(self.calls(threshold)[1], self.n_fake)

    def f1(self, threshold: float) -> np.ndarray:
        """F1 score of the class fake."""
        right_reals, right_fakes = self.calls(threshold)
        return self._of_both(_ratio(2 * right_fakes, right_fakes + self.n_fake + self.n_real - right_reals))

    def ece(self, n_bins: int = N_BINS) -> np.ndarray:
        """Expected calibration error of p_fake: sum over bins of n_bin / n * |mean p_fake - fraction of fakes|.

        Equal-width bins of p_fake over [0, 1], lower edge included (the last bin holds 1.0 too): whether "p_fake = 0.8"
        is fake eight times in ten. The other common definition bins the confidence of the predicted class and misses an
        error of one class that the other class offsets.
        """
        gap = self.real_counts @ _per_bin(self.ranked.real, self.ranked.real, n_bins)
        gap += self.fake_counts @ _per_bin(self.ranked.fake, self.ranked.fake - 1, n_bins)
        return self._of_both(_ratio(np.abs(gap).sum(axis=1), self.n_real + self.n_fake))

    def brier(self) -> np.ndarray:
        """Mean of (p_fake - label) squared."""
        total = self.real_counts @ self.ranked.real**2 + self.fake_counts @ (self.ranked.fake - 1) ** 2
        return self._of_both(_ratio(total, self.n_real + self.n_fake))

    def _of_both(self, values: np.ndarray) -> np.ndarray:
        """Return NaN without images of both classes."""
        return values if self.ranked.has_both else np.full(len(values), np.nan)

    def _rates(self, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """FPR and TPR of each resample at its own cut (B,)."""
        rows = np.arange(len(cut))
        fpr = 1 - self.real_below[rows, self.ranked.real_below_cut[cut]] / self.n_real
        tpr = 1 - self.fake_below[rows, self.ranked.fake_below_cut[cut]] / self.n_fake
        return fpr, tpr

    def _last_cut(self, holds: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The last cut at which ``holds`` is true, by bisection: it is true up to some cut and false after it.

        Cut 0 is taken as true and cut K as false; ``holds`` maps cuts (B,) to booleans (B,).
        """
        low = np.zeros(len(self.n_real), dtype=np.int64)
        high = np.full(len(self.n_real), len(self.ranked.distinct), dtype=np.int64)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            true = holds(middle)
            low, high = np.where(true, middle, low), np.where(true, high, middle)
        return low


def leading_sums(counts: np.ndarray) -> np.ndarray:
    """Cumulative sums along the last axis with a leading 0: (B, n) -> (B, n + 1)."""
    sums = np.zeros((len(counts), counts.shape[1] + 1))
    np.cumsum(counts, axis=1, out=sums[:, 1:])
    return sums


def win_rate(real_below: np.ndarray, fake_counts: np.ndarray, below: np.ndarray, upto: np.ndarray) -> np.ndarray:
    """Return the AUC of B resamples, ``(B,)``: how often a fake scores above a real; a tie counts half.

    Args:
        real_below: how many of the lowest 0, 1, ... reals were drawn, ``(B, n_real + 1)``, from :func:`leading_sums`.
        fake_counts: how often each fake was drawn, ``(B, n_fake)``.
        below: how many reals are below each fake, ``(n_fake,)``; ``upto`` also counts those level with it.
    """
    beaten = real_below[:, below]
    if not np.array_equal(below, upto):
        beaten = 0.5 * (beaten + real_below[:, upto])
    return _ratio(np.einsum("bi,bi->b", fake_counts, beaten), real_below[:, -1] * fake_counts.sum(axis=1))


def _per_bin(p_fake: np.ndarray, values: np.ndarray, n_bins: int) -> np.ndarray:
    """A matrix (n, n_bins) with each value in the column of its bin and 0 elsewhere."""
    return np.eye(n_bins)[bin_of(p_fake, n_bins)] * values[:, None]


def bin_of(p_fake: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """Index of the equal-width bin of [0, 1] that holds each p_fake; 1.0 belongs to the last one."""
    return np.minimum((p_fake * n_bins).astype(np.int64), n_bins - 1)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the bottom is 0."""
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)
