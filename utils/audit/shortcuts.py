"""Can the label be predicted from the file? AUCs of container facts and of simple statistics, alone and together.

An AUC here is P(a value of group B is above one of group A), ties counting one half; 0.5 means no difference.
Intervals: DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
characteristic curves", Biometrics 44, 1988.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.audit.image_facts import ImageFacts

WARN_AUC = 0.6
MAX_ROWS = 20_000  # more images do not improve the AUC noticeably
MIN_PER_CLASS = 10
N_FOLDS = 5

NUMBERS = ("width", "height", "aspect", "file_bytes", "bytes_per_pixel", "quality", "exif_tags")
FLAGS = ("progressive", "icc", "alpha", "provenance")
CATEGORIES = ("format", "mode", "subsampling", "software")
STATISTICS = (
    "width",
    "height",
    "file_bytes",
    "bytes_per_pixel",
    "quality",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
)

Rows = Sequence[ImageFacts]


def column(facts: Rows, key: str) -> np.ndarray:
    """One numeric fact of all images, (N,) float64; NaN where a file has none."""
    if key == "aspect":
        return np.array([fact.width / fact.height for fact in facts])
    if key == "bytes_per_pixel":
        return np.array([fact.file_bytes / (fact.width * fact.height) for fact in facts])
    return np.array([getattr(fact, key) for fact in facts], dtype=np.float64)  # None becomes NaN


def auc_with_interval(low: np.ndarray, high: np.ndarray) -> tuple[float, list[float]] | None:
    """P(high > low) + P(tie) / 2 and its 95 % interval; None where a group has fewer than two finite values."""
    low, high = np.sort(low[np.isfinite(low)]), np.sort(high[np.isfinite(high)])
    if len(low) < 2 or len(high) < 2:
        return None
    beaten = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / (2 * len(low))
    beating = 1 - (np.searchsorted(high, low, "left") + np.searchsorted(high, low, "right")) / (2 * len(high))
    value = float(beaten.mean())
    half = 1.96 * float(np.sqrt(beaten.var(ddof=1) / len(high) + beating.var(ddof=1) / len(low)))
    return value, [max(0.0, value - half), min(1.0, value + half)]


def _category(facts: Rows, key: str) -> np.ndarray:
    """A categorical fact as the frequency rank of its value, rare values together: (N,) float64."""
    values = [getattr(fact, key) for fact in facts]
    ranks = {value: rank for rank, (value, _) in enumerate(Counter(values).most_common(10))}
    return np.array([ranks.get(value, 10) for value in values], dtype=np.float64)


def metadata_columns(facts: Rows) -> dict[str, np.ndarray]:
    """Every container fact as a column, except those that are the same for all images."""
    # -1 for missing facts: scikit-learn cannot bin a column that is missing in a whole fold.
    columns = {key: np.nan_to_num(column(facts, key), nan=-1.0) for key in (*NUMBERS, *FLAGS)}
    columns |= {key: _category(facts, key) for key in CATEGORIES}
    return {key: values for key, values in columns.items() if len(np.unique(values)) > 1}


def metadata_classifier(facts: Rows, labels: np.ndarray, seed: int = 0) -> dict[str, Any] | None:
    """Tell real from fake by container facts only: a cross-validated AUC and the most telling columns.

    Gradient boosting (scikit-learn) in five stratified folds. ``columns`` lists the AUC of each column alone, 0.5 to 1
    in whichever direction, the most telling first. None if a class has fewer than ten images.
    """
    labels = np.asarray(labels)
    if min((labels == 0).sum(), (labels == 1).sum()) < MIN_PER_CLASS:
        return None
    if len(labels) > MAX_ROWS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(labels), MAX_ROWS, replace=False))
        facts, labels = [facts[at] for at in chosen], labels[chosen]
    columns = metadata_columns(facts)
    if not columns:
        return {"auc": 0.5, "auc_ci": [0.5, 0.5], "n": len(labels), "columns": []}
    scores = _out_of_fold(np.stack(list(columns.values()), axis=1), labels, seed)
    found = auc_with_interval(scores[labels == 0], scores[labels == 1])
    value, interval = found or (0.5, [0.0, 1.0])
    alone = {key: _own_auc(key, values, labels, seed) for key, values in columns.items()}
    telling = [{"column": key, "auc": alone[key]} for key in sorted(alone, key=lambda key: -alone[key])]
    return {"auc": value, "auc_ci": interval, "n": len(labels), "columns": telling}


def _out_of_fold(features: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold
    from threadpoolctl import threadpool_limits

    scores = np.zeros(len(labels))
    for train, test in StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed).split(features, labels):
        model = HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=4, min_samples_leaf=max(3, min(20, len(train) // 20)), random_state=seed
        )
        with threadpool_limits(1):  # so little work that threads would cost more than they save
            scores[test] = model.fit(features[train], labels[train]).decision_function(features[test])
    return scores


def _own_auc(key: str, values: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """AUC of one column in the better direction; the ranks of categories have no direction and are learnt."""
    if key in CATEGORIES:
        values = _out_of_fold(values[:, None], labels, seed)
    found = auc_with_interval(values[labels == 0], values[labels == 1])
    return max(found[0], 1 - found[0]) if found else 0.5


def shifts(groups: Sequence[tuple[str, str, Rows, Rows]]) -> list[dict[str, Any]]:
    """Rows {dataset, compared, statistic, auc, auc_ci, median_a, median_b} for each (dataset, compared, a, b).

    Statistics that do not exist or do not vary are omitted; the largest difference comes first.
    """
    rows = []
    for dataset, compared, first, second in groups:
        for key in STATISTICS:
            a, b = column(first, key), column(second, key)
            found = auc_with_interval(a, b)
            if found is None or len(np.unique(np.concatenate([a, b]))) < 2:
                continue
            row = {"dataset": dataset, "compared": compared, "statistic": key, "auc": found[0], "auc_ci": found[1]}
            rows.append(row | {"median_a": float(np.nanmedian(a)), "median_b": float(np.nanmedian(b))})
    return sorted(rows, key=lambda row: -abs(row["auc"] - 0.5))
