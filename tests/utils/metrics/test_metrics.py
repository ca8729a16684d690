"""Figures of merit against scikit-learn, and the fast bootstrap against a plain loop."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from tests.conftest import make_scores
from utils.errors import UserError
from utils.evaluation.curves import confusion, pr_curve, reliability, roc_curve
from utils.metrics import binary as metrics
from utils.metrics.bootstrap import FIGURES, bootstrap_intervals, bootstrap_values, resample_counts
from utils.metrics.ranked import RankedScores


def naive_ece(labels, p_fake, n_bins=15):
    total = 0.0
    for k in range(n_bins):
        low, high = k / n_bins, (k + 1) / n_bins
        inside = (p_fake >= low) & ((p_fake < high) | (k == n_bins - 1))
        if inside.any():
            total += inside.sum() * abs(p_fake[inside].mean() - labels[inside].mean())
    return total / len(labels)


def naive_eer(labels, p_fake):
    fpr, tpr, _ = sk.roc_curve(labels, p_fake, drop_intermediate=False)
    gap = fpr + tpr - 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return fpr[after - 1] + share * (fpr[after] - fpr[after - 1])


def naive_metrics(labels, p_fake, threshold):
    called = (p_fake >= threshold).astype(int)
    fpr, tpr, _ = sk.roc_curve(labels, p_fake, drop_intermediate=False)
    return {
        "auc": sk.roc_auc_score(labels, p_fake),
        "ap": sk.average_precision_score(labels, p_fake),
        "acc": sk.accuracy_score(labels, called),
        "real_acc": np.mean(called[labels == 0] == 0),
        "fake_acc": np.mean(called[labels == 1] == 1),
        "f1": sk.f1_score(labels, called),
        "eer": naive_eer(labels, p_fake),
        "tpr_at_fpr1": tpr[fpr <= 0.01].max(),
        "ece": naive_ece(labels, p_fake),
        "brier": sk.brier_score_loss(labels, p_fake),
    }


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_point_metrics_match_sklearn(decimals, seed):
    labels, p_fake = make_scores(decimals=decimals, seed=seed)
    row = metrics.metrics_row(labels, p_fake, 0.45, n_boot=0)
    for key, expected in naive_metrics(labels, p_fake, 0.45).items():
        assert row[key] == pytest.approx(expected, abs=1e-12), key


def test_figures_agree_with_the_row():
    labels, p_fake = make_scores(decimals=2)
    row = metrics.metrics_row(labels, p_fake, 0.3, n_boot=0)
    assert metrics.auc(labels, p_fake) == row["auc"]
    found = metrics.figures(labels, p_fake, 0.3)
    assert found == {key: row[key] for key in FIGURES}
    assert RankedScores(labels, p_fake).observed().tpr_at_fpr(max_fpr=1.0) == 1.0


def test_known_values_by_hand():
    labels, p_fake = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.8])
    assert metrics.auc(labels, p_fake) == 0.875
    found = metrics.figures(labels, p_fake, 0.4)
    assert found["acc"] == 0.75, "a score at the threshold is called fake"
    assert found["tpr_at_fpr1"] == 0.5
    assert found["brier"] == pytest.approx((0.01 + 0.16 + 0.36 + 0.04) / 4)
    tied, right = metrics.figures(labels, np.full(4, 0.7)), metrics.figures(labels, labels.astype(float))
    assert (tied["auc"], tied["eer"], right["eer"], right["ece"]) == (0.5, 0.5, 0, 0)
    assert metrics.figures(labels, 1.0 - labels)["eer"] == 1.0


def test_the_row_has_the_keys_of_the_metrics_file_and_is_json():
    labels, p_fake = make_scores(60)
    row = metrics.metrics_row(labels, p_fake, np.float64(0.5), n_boot=20, dataset="demo", tier="web", unreadable=2)
    contract = (
        "checkpoint model dataset split tier n_real n_fake auc auc_ci ap acc acc_ci real_acc fake_acc f1 eer "
        "tpr_at_fpr1 ece brier threshold unreadable"
    ).split()
    assert list(row)[: len(contract)] == contract
    assert set(row) - set(contract) == {f"{key}_ci" for key in FIGURES} - {"auc_ci", "acc_ci"}
    assert (row["dataset"], row["tier"], row["split"], row["unreadable"]) == ("demo", "web", None, 2)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    with pytest.raises(TypeError, match="datset"):
        metrics.metrics_row(labels, p_fake, 0.5, n_boot=0, datset="demo")


@pytest.mark.parametrize(("label", "rate", "absent"), [(0, "real_acc", "fake_acc"), (1, "fake_acc", "real_acc")])
def test_one_class_has_its_rate_and_nothing_else(label, rate, absent):
    row = metrics.metrics_row(np.full(8, label), np.linspace(0, 1, 8), 0.4, n_boot=50)
    expected = 5 / 8 if label else 3 / 8
    assert row["acc"] == row[rate] == expected
    assert row["acc_ci"] == row[f"{rate}_ci"] and row["acc_ci"][0] < expected < row["acc_ci"][1]
    for key in ("auc", "ap", "f1", "eer", "tpr_at_fpr1", "ece", "brier", absent):
        assert row[key] is None and row[f"{key}_ci"] is None, key


@pytest.mark.parametrize("labels", [[], [0], [1], [0, 1]])
def test_tiny_sets_do_not_crash_and_have_no_interval(labels):
    row = metrics.metrics_row(np.array(labels), np.array([0.2, 0.9][: len(labels)]), 0.5, n_boot=30)
    assert row["n_real"] + row["n_fake"] == len(labels)
    assert (row["acc"] is None) == (not labels)
    assert all(row[key] is None for key in row if key.endswith("_ci"))


@pytest.mark.parametrize(
    ("labels", "p_fake", "message"),
    [
        ([0, 1], [0.1, np.nan], "1 of 2"),
        ([0, 1, 1], [0.1, np.inf, 1.5], "2 of 3"),
        ([0, 2], [0.1, 0.2], "labels 0"),
        ([0, 1], [0.1], "2 labels and 1 p_fake"),
    ],
)
def test_bad_scores_are_refused(labels, p_fake, message):
    with pytest.raises(UserError, match=message):
        metrics.metrics_row(labels, p_fake, 0.5, n_boot=0)


@pytest.mark.parametrize("decimals", [None, 1])
def test_bootstrap_equals_a_loop_over_the_same_resamples(decimals):
    labels, p_fake = make_scores(90, decimals=decimals, seed=3)
    ranked = RankedScores(labels, p_fake)
    fast = bootstrap_values(ranked, 0.45, n_boot=40, seed=7)
    loop = []
    for real_counts, fake_counts in resample_counts(len(ranked.real), len(ranked.fake), 40, seed=7):
        for real, fake in zip(real_counts.astype(int), fake_counts.astype(int), strict=True):
            scores = np.concatenate([np.repeat(ranked.real, real), np.repeat(ranked.fake, fake)])
            loop.append(naive_metrics(np.repeat([0, 1], [real.sum(), fake.sum()]), scores, 0.45))
    for key, values in fast.items():
        np.testing.assert_allclose(values, [row[key] for row in loop], atol=1e-12, err_msg=key)


@pytest.mark.parametrize("n", [4, 12, 30, 200])
def test_an_interval_holds_its_figure(n):
    """Resampling inflates AP and ECE of few images: percentiles alone gave AP 0.347 [0.354, 0.417] on 12 images."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels, p_fake = np.arange(n) % 2, np.round(rng.random(n), 1 + seed % 3)
        for fake_scores in (p_fake, np.where(labels == 1, p_fake / 2, p_fake)):
            row = metrics.metrics_row(labels, fake_scores, 0.5, n_boot=100, seed=seed)
            for key in FIGURES:
                assert row[f"{key}_ci"][0] <= row[key] <= row[f"{key}_ci"][1], (key, seed)


def test_resamples_are_stratified_reproducible_and_do_not_depend_on_the_block(monkeypatch):
    def draw(seed):
        blocks = list(resample_counts(30, 12, 25, seed))
        return np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])

    real, fake = draw(5)
    assert real.shape == (25, 30) and np.all(real.sum(1) == 30) and np.all(fake.sum(1) == 12)
    monkeypatch.setattr("utils.metrics.bootstrap.BLOCK_CELLS", 200)
    np.testing.assert_array_equal(draw(5)[0], real)
    np.testing.assert_array_equal(draw(5)[1], fake)
    assert not np.array_equal(draw(6)[0], real)


def test_intervals_ignore_row_order_and_have_the_textbook_width():
    labels, p_fake = make_scores(1000, seed=4)
    row = metrics.metrics_row(labels, p_fake, 0.5, n_boot=600, seed=1)
    order = np.random.default_rng(0).permutation(1000)
    assert metrics.metrics_row(labels[order], p_fake[order], 0.5, n_boot=600, seed=1) == row
    low, high = row["fake_acc_ci"]
    binomial = 2 * 1.96 * np.sqrt(row["fake_acc"] * (1 - row["fake_acc"]) / row["n_fake"])
    assert high - low == pytest.approx(binomial, rel=0.15)
    narrow = bootstrap_intervals(RankedScores(labels, p_fake), 0.5, 600, 1, level=0.5)["auc"]
    assert row["auc_ci"][0] < narrow[0] < row["auc"] < narrow[1] < row["auc_ci"][1]


@pytest.mark.parametrize("decimals", [None, 1])
def test_curves_match_sklearn_and_the_area_under_them(decimals):
    labels, p_fake = make_scores(decimals=decimals)
    roc, pr = roc_curve(labels, p_fake), pr_curve(labels, p_fake)
    fpr, tpr, thresholds = sk.roc_curve(labels, p_fake, drop_intermediate=False)
    kept = np.isin(thresholds, roc.thresholds)
    np.testing.assert_allclose(roc.fpr, fpr[kept])
    np.testing.assert_allclose(roc.tpr, tpr[kept])
    assert (roc.fpr[0], roc.tpr[0], roc.fpr[-1], roc.tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(roc.tpr, roc.fpr) == pytest.approx(metrics.auc(labels, p_fake))
    area = np.sum(np.diff(pr[0]) * pr[1][1:])
    assert area == pytest.approx(metrics.figures(labels, p_fake)["ap"])
    with pytest.raises(UserError, match="0 fake"):
        roc_curve([0, 0], [0.1, 0.2])


def test_confusion_and_reliability_count_every_image():
    labels, p_fake = make_scores()
    np.testing.assert_array_equal(confusion(labels, p_fake, 0.3), sk.confusion_matrix(labels, p_fake >= 0.3))
    bins = reliability(labels, p_fake)
    assert bins.n_images.sum() == len(labels)
    filled = bins.n_images > 0
    gap = np.abs(bins.mean_p_fake - bins.fraction_fake)[filled] @ bins.n_images[filled] / len(labels)
    assert gap == pytest.approx(metrics.figures(labels, p_fake)["ece"])


def test_wilson_interval():
    assert metrics.wilson(0, 10) == pytest.approx([0.0, 0.2775], abs=1e-3)
    assert metrics.wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=1e-3)  # Newcombe 1998, table I
    assert metrics.wilson(0, 0) is None
