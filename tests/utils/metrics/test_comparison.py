"""Tests for paired scores, against slow textbook formulas and scipy."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from models.operating_point import sigmoid
from tests.conftest import make_scored
from utils.errors import UserError
from utils.evaluation.comparison import comparison_figure, disagreements, write_pair
from utils.metrics import binary as metrics
from utils.metrics.comparison import (
    compare_scores,
    compare_sets,
    delong_covariance,
    delong_test,
    holm,
    match_images,
    mcnemar_test,
)
from utils.scoring.table import ScoreTable


def make_pair(n=120, seed=0, decimals=None, noise=(0.6, 1.5), paths=None):
    """Two detectors on the same n images that share most of what they see; the second one is noisier."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    seen = rng.normal(size=n) + 1.2 * label - 0.6
    tables = []
    for scale in noise:
        logit = seen + scale * rng.normal(size=n)
        p_fake = sigmoid(logit) if decimals is None else np.round(sigmoid(logit), decimals)
        path = paths or [f"img/{i:04}.png" for i in range(n)]
        generator = ["gan" if fake else "real" for fake in label]
        tables.append(ScoreTable(path, label, ["faces"] * n, generator, ["clean"] * n, logit, p_fake))
    return tables


def shuffled(table, seed=1):
    order = np.random.default_rng(seed).permutation(len(table))
    return ScoreTable.join([table.select(np.arange(len(table)) == row) for row in order])


def textbook_delong(labels, p_a, p_b):
    """DeLong et al. 1988, equations 3 to 6, by the kernel over all pairs: both AUC and their covariance matrix."""
    kernels = []
    for p in (p_a, p_b):
        fake, real = p[labels == 1][:, None], p[labels == 0][None, :]
        kernels.append((fake > real) + 0.5 * (fake == real))
    m, n = kernels[0].shape
    auc = np.array([kernel.mean() for kernel in kernels])
    covariance = np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            for i in range(m):
                term = (kernels[r][i].mean() - auc[r]) * (kernels[s][i].mean() - auc[s])
                covariance[r, s] += term / (m - 1) / m
            for j in range(n):
                term = (kernels[r][:, j].mean() - auc[r]) * (kernels[s][:, j].mean() - auc[s])
                covariance[r, s] += term / (n - 1) / n
    return auc, covariance


@pytest.mark.parametrize("decimals", [None, 1])
def test_delong_is_the_textbook_formula(decimals):
    a, b = make_pair(90, decimals=decimals)
    keep = np.arange(90) % 6 != 1  # uneven classes: m and n must not be mixed up
    labels, p_a, p_b = a.label[keep], a.p_fake[keep], b.p_fake[keep]
    result, reason = delong_test(labels, p_a, p_b)
    auc, covariance = textbook_delong(labels, p_a, p_b)
    assert reason is None
    assert [result["auc_a"], result["auc_b"]] == pytest.approx(auc, abs=1e-12)
    _, found = delong_covariance(labels == 1, p_a, p_b)
    assert found[:2, :2] == pytest.approx(covariance, rel=1e-9)
    assert result["auc_a"] == pytest.approx(metrics.auc(labels, p_a), abs=1e-12)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    z = (auc[0] - auc[1]) / np.sqrt(variance)
    assert found[2, 2] == pytest.approx(variance, rel=1e-9)
    assert result["z"] == pytest.approx(z, rel=1e-9)
    assert result["p"] == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
    reach = stats.norm.ppf(0.975) * np.sqrt(variance)
    assert result["difference_ci"] == pytest.approx([auc[0] - auc[1] - reach, auc[0] - auc[1] + reach], abs=1e-9)


def test_delong_keeps_its_level_where_both_detectors_are_equally_good():
    p_values = []
    for seed in range(400):
        a, b = make_pair(80, seed, noise=(1.0, 1.0))
        p_values.append(delong_test(a.label, a.p_fake, b.p_fake)[0]["p"])
    rejected = np.mean(np.array(p_values) < 0.05)
    assert 0.02 <= rejected <= 0.085  # 0.05 give or take three standard errors


def test_delong_where_the_variance_is_zero():
    labels = np.array([0, 0, 1, 1])
    same = delong_test(labels, np.array([0.1, 0.6, 0.5, 0.9]), np.array([0.2, 0.7, 0.65, 0.8]))[0]
    assert (same["difference"], same["difference_ci"], same["z"], same["p"]) == (0, [0, 0], 0, 1)
    opposite = delong_test(labels, np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.9, 0.8, 0.2, 0.1]))[0]
    assert (opposite["difference"], opposite["z"], opposite["p"]) == (1, None, None)
    assert opposite["difference_ci"] == [1, 1]
    for labels, counts in (([1, 1, 1], "0 real and 3 fake"), ([0, 1, 1], "1 real and 2 fake")):
        result, reason = delong_test(np.array(labels), np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1]))
        assert result is None and counts in reason


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (3, 11), (40, 21), (900, 1100), (0, 2000)])
def test_mcnemar_is_the_binomial_test(only_a, only_b):
    right_a = np.array([True] * only_a + [False] * only_b + [True] * 7 + [False] * 2)
    right_b = np.array([False] * only_a + [True] * only_b + [True] * 7 + [False] * 2)
    result = mcnemar_test(right_a, right_b)
    n = only_a + only_b
    p_exact = stats.binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert result["p_exact"] == pytest.approx(p_exact, rel=1e-9)
    p_mid = 1.0 if n == 0 else p_exact - stats.binom.pmf(only_a, n, 0.5) if only_a != only_b else 1.0
    assert result["p"] == pytest.approx(p_mid, rel=1e-9)
    counts = [result[key] for key in ("both_right", "only_a_right", "only_b_right", "both_wrong")]
    assert counts == [7, only_a, only_b, 2]
    assert result["difference"] == pytest.approx(result["acc_a"] - result["acc_b"])


def test_the_comparison_agrees_with_the_metrics_and_ignores_the_row_order():
    a, b = make_pair(200)
    results = compare_sets(a, b, 0.5, 0.4, n_boot=400)
    assert results == compare_sets(shuffled(a), shuffled(b, 2), 0.5, 0.4, n_boot=400)
    (result,) = results
    assert result["mcnemar"]["acc_a"] == metrics.figures(a.label, a.p_fake, 0.5)["acc"]
    assert result["mcnemar"]["acc_b"] == metrics.figures(b.label, b.p_fake, 0.4)["acc"]
    differ = (a.p_fake >= 0.5) != (b.p_fake >= 0.4)
    images = disagreements(a, b, 0.5, 0.4)
    assert {item["path"] for item in images} == {a.path[row] for row in np.flatnonzero(differ)}
    gaps = [abs(item["p_fake_a"] - item["p_fake_b"]) for item in images]
    assert gaps == sorted(gaps, reverse=True)
    turned = compare_scores(b, a, 0.4, 0.5, n_boot=0)
    assert turned["delong"]["z"] == pytest.approx(-result["delong"]["z"])
    assert turned["mcnemar"]["p_exact"] == result["mcnemar"]["p_exact"]
    assert turned["acc_difference_ci"] is None
    json.dumps(results, allow_nan=False)


def test_the_bootstrap_is_paired():
    """Resampled as pairs by hand, the differences spread alike; resampled apart they would spread further."""
    a, b = make_pair(300, noise=(0.3, 0.5))
    drawn = compare_scores(a, b, 0.5, 0.5, n_boot=1500)["acc_difference_ci"]
    rng = np.random.default_rng(5)
    gain = ((a.p_fake >= 0.5) == a.label) * 1.0 - ((b.p_fake >= 0.5) == b.label)
    by_hand = []
    for _ in range(500):
        rows = np.concatenate([rng.choice(np.flatnonzero(a.label == label), 150) for label in (0, 1)])
        by_hand.append(gain[rows].mean())
    assert drawn == pytest.approx(np.percentile(by_hand, [2.5, 97.5]), abs=0.012)
    same = compare_scores(a, a, 0.5, 0.5, n_boot=100)
    assert same["acc_difference_ci"] == [0, 0] and same["delong"]["p"] == same["mcnemar"]["p_exact"] == 1
    assert not disagreements(a, a, 0.5, 0.5)


def test_one_class_has_accuracies_and_a_reason_for_no_auc(tmp_path):
    a, b = (table.select(table.label == 1) for table in make_pair(60))
    result = compare_scores(a, b, 0.5, 0.5, n_boot=100)
    assert result["delong"] is None and "0 real and 30 fake" in result["delong_reason"]
    low, high = result["acc_difference_ci"]
    assert low <= result["mcnemar"]["difference"] <= high
    text = write_pair(as_sets(a, b), tmp_path, 100)
    assert "0 real and 30 fake" in text and "\N{EN DASH}" in text
    single = compare_scores(a.take([0]), b.take([0]), 0.5, 0.5, n_boot=10)
    assert single["acc_difference_ci"] is None and single["mcnemar"]["p_exact"] == 1


def with_tiers(table, n_tiers, seed):
    """Copies of the scores in each tier, nearly alike, as lightly degraded copies of an image score."""
    rng = np.random.default_rng(seed)
    parts = []
    for tier in range(n_tiers):
        p_fake = sigmoid(table.logit + 0.05 * rng.normal(size=len(table)))
        parts.append(ScoreTable(**{**vars(table), "tier": [f"tier{tier}"] * len(table), "p_fake": p_fake}))
    return ScoreTable.join(parts)


@pytest.mark.parametrize("n_tiers", [3, pytest.param(29, marks=pytest.mark.slow)])
def test_more_tiers_of_the_same_images_are_no_more_evidence(n_tiers):
    """Two detectors of equal skill: pooled tiers find a difference far too often, single tiers with Holm do not."""
    runs, pooled, found = 150 if n_tiers == 3 else 40, 0, 0
    for seed in range(runs):
        a, b = (with_tiers(table, n_tiers, seed) for table in make_pair(80, seed, noise=(1.0, 1.0)))
        pooled += delong_test(a.label, a.p_fake, b.p_fake)[0]["p"] < 0.05
        found += any(result["delong"]["p_holm"] < 0.05 for result in compare_sets(a, b, 0.5, 0.5, n_boot=0))
    assert pooled / runs > 0.2 and found / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_a_real_difference_is_found_in_each_tier():
    a, b = (with_tiers(table, 3, 0) for table in make_pair(400, noise=(0.2, 2.5)))
    results = compare_sets(a, b, 0.5, 0.5, n_boot=50)
    assert [result["tier"] for result in results] == ["tier0", "tier1", "tier2"]
    assert all(result["n_real"] == result["n_fake"] == 200 for result in results)
    assert all(
        result[test]["p"] <= result[test]["p_holm"] < 0.01 for result in results for test in ("delong", "mcnemar")
    )


def test_sets_with_scores_at_different_levels_are_not_pooled():
    """a ranks better within each data set; over both, the level of a data set would decide."""
    pairs = []
    for dataset, shift in (("one", 0), ("two", 5)):
        a, b = make_pair(300, seed=shift, noise=(0.1, 1.5))
        logit = a.logit + shift
        a = ScoreTable(**{**vars(a), "logit": logit, "p_fake": sigmoid(logit), "dataset": [dataset] * 300})
        pairs.append((a, ScoreTable(**{**vars(b), "dataset": [dataset] * 300})))
    a, b = (ScoreTable.join(list(side)) for side in zip(*pairs, strict=True))
    assert metrics.auc(a.label, a.p_fake) < metrics.auc(b.label, b.p_fake)
    results = compare_sets(a, b, 0.5, 0.5, n_boot=0)
    assert [(result["dataset"], result["tier"]) for result in results] == [("one", "clean"), ("two", "clean")]
    for result, (own_a, own_b) in zip(results, pairs, strict=True):
        delong = result["delong"]
        assert delong["difference"] > 0.02 and delong["p"] <= delong["p_holm"] < 0.01
        assert delong["auc_a"] == pytest.approx(metrics.auc(own_a.label, own_a.p_fake))
        assert delong["auc_b"] == pytest.approx(metrics.auc(own_b.label, own_b.p_fake))


def test_scores_of_different_images_are_refused():
    a, b = make_pair(20)
    with pytest.raises(UserError, match=r"got 3 only in the first \(20\) and 0 only in the second \(17\)"):
        compare_sets(a, b.select(np.arange(20) >= 3), 0.5, 0.5)
    web = ScoreTable(**{**vars(b), "tier": ["web"] * 20})
    with pytest.raises(UserError, match=r"got 20 only in the first.* and 20 only in the second"):
        match_images(a, web)
    relabelled = ScoreTable(**{**vars(b), "label": 1 - b.label})
    with pytest.raises(UserError, match=r"20 images with two, the first is img/0000\.png") as error:
        match_images(a, relabelled)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="1 repeated"):
        match_images(a, ScoreTable.join([b, b.select(np.arange(20) == 4)]))
    with pytest.raises(UserError, match="finite thresholds"):
        compare_scores(a, b, 0.5, float("nan"))


def as_sets(*tables, names=("a", "b")):
    return [make_scored(table, checkpoint=name) for name, table in zip(names, tables, strict=True)]


def test_the_report_holds_every_number_and_every_disagreement(tmp_path):
    a, b = make_pair(150, paths=[f"dir, with comma/{i}.png" for i in range(150)])
    names = ("big_model", "small|model")
    text = write_pair(as_sets(a, b, names=names), tmp_path / "new", 100)
    made = {file.name for file in (tmp_path / "new").iterdir()}
    assert made == {f"comparison.{kind}" for kind in ("json", "csv", "md", "tex", "pdf", "png")} | {"disagreements.csv"}
    saved = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert (saved["name_a"], saved["name_b"]) == names
    assert saved["sets"] == compare_sets(a, b, 0.5, 0.5, n_boot=100)
    with open(tmp_path / "new" / "disagreements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [item["path"] for item in saved["images"]]
    assert {row["label"] for row in rows} == {"real", "fake"}
    (result,) = saved["sets"]
    row = next(line for line in text.splitlines() if "DeLong" in line and line.startswith("| faces | clean"))
    for key in ("auc_a", "auc_b", "difference"):
        low, high = result["delong"][f"{key}_ci"]
        assert f"{result['delong'][key]:.3f} [{low:.3f}, {high:.3f}]" in row
    assert f"{result['mcnemar']['p']:.2g}" in next(line for line in text.splitlines() if "mid-p |" in line)


def test_the_figure_marks_the_disagreements():
    a, b = make_pair(150)
    axes = comparison_figure(a, b, (0.6, 0.3)).axes[0]
    drawn = {part.get_label(): part.get_offsets() for part in axes.collections}
    assert len(drawn) == 4 and sum(map(len, drawn.values())) == 150
    for name, points in drawn.items():
        differ = (points[:, 0] >= 0.6) != (points[:, 1] >= 0.3)
        assert np.all(differ == ("differ" in name)), name
