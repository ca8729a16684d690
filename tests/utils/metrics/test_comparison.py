"""Tests for paired scores, against slow textbook formulas and scipy."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from models.operating_point import sigmoid
from utils.errors import UserError
from utils.evaluation.comparison import comparison_figure, comparison_markdown, write_comparison
from utils.metrics import binary as metrics
from utils.metrics.comparison import compare_scores, delong_test, match_images, mcnemar_test
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
    assert result["auc_a"] == pytest.approx(metrics.auc(labels, p_a), abs=1e-12)
    found = [result["variance_a"], result["covariance"], result["variance_b"]]
    assert found == pytest.approx([covariance[0, 0], covariance[0, 1], covariance[1, 1]], rel=1e-9)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    z = (auc[0] - auc[1]) / np.sqrt(variance)
    assert result["variance"] == pytest.approx(variance, rel=1e-9)
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
    assert (same["difference"], same["variance"], same["z"], same["p"]) == (0, 0, 0, 1)
    opposite = delong_test(labels, np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.9, 0.8, 0.2, 0.1]))[0]
    assert (opposite["difference"], opposite["variance"], opposite["z"], opposite["p"]) == (1, 0, None, None)
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
    assert result["p_mid"] == pytest.approx(p_mid, rel=1e-9)
    counts = [result[key] for key in ("both_right", "only_a_right", "only_b_right", "both_wrong")]
    assert counts == [7, only_a, only_b, 2]
    assert result["difference"] == pytest.approx(result["acc_a"] - result["acc_b"])


def test_the_comparison_agrees_with_the_metrics_and_ignores_the_row_order():
    a, b = make_pair(200)
    result = compare_scores(a, b, 0.5, 0.4, n_boot=400)
    assert result == compare_scores(shuffled(a), shuffled(b, 2), 0.5, 0.4, n_boot=400)
    assert result["mcnemar"]["acc_a"] == metrics.acc(a.label, a.p_fake, 0.5)
    assert result["mcnemar"]["acc_b"] == metrics.acc(b.label, b.p_fake, 0.4)
    differ = (a.p_fake >= 0.5) != (b.p_fake >= 0.4)
    assert {item["path"] for item in result["disagreements"]} == {a.path[row] for row in np.flatnonzero(differ)}
    gaps = [abs(item["p_fake_a"] - item["p_fake_b"]) for item in result["disagreements"]]
    assert gaps == sorted(gaps, reverse=True)
    turned = compare_scores(b, a, 0.4, 0.5, n_boot=0)
    assert turned["delong"]["z"] == pytest.approx(-result["delong"]["z"])
    assert turned["mcnemar"]["p_exact"] == result["mcnemar"]["p_exact"]
    assert turned["bootstrap"]["auc_difference_ci"] is None
    json.dumps(result, allow_nan=False)


def test_the_bootstrap_is_paired():
    """Resampled as pairs by hand, the differences spread alike; resampled apart they would spread further."""
    a, b = make_pair(300, noise=(0.3, 0.5))
    drawn = compare_scores(a, b, 0.5, 0.5, n_boot=1500)["bootstrap"]
    rng = np.random.default_rng(5)
    by_hand = {"auc": [], "acc": []}
    for _ in range(500):
        rows = np.concatenate([rng.choice(np.flatnonzero(a.label == label), 150) for label in (0, 1)])
        labels, p_a, p_b = a.label[rows], a.p_fake[rows], b.p_fake[rows]
        by_hand["auc"].append(metrics.auc(labels, p_a) - metrics.auc(labels, p_b))
        by_hand["acc"].append(metrics.acc(labels, p_a) - metrics.acc(labels, p_b))
    for key, values in by_hand.items():
        assert drawn[f"{key}_difference_ci"] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.012)
    same = compare_scores(a, a, 0.5, 0.5, n_boot=100)
    assert same["bootstrap"]["auc_difference_ci"] == same["bootstrap"]["acc_difference_ci"] == [0, 0]
    assert same["delong"]["p"] == same["mcnemar"]["p_exact"] == 1 and not same["disagreements"]


def test_one_class_has_accuracies_and_a_reason_for_no_auc():
    a, b = (table.select(table.label == 1) for table in make_pair(60))
    result = compare_scores(a, b, 0.5, 0.5, n_boot=100)
    assert result["delong"] is None and "0 real and 30 fake" in result["delong_reason"]
    assert result["bootstrap"]["auc_difference_ci"] is None
    low, high = result["bootstrap"]["acc_difference_ci"]
    assert low <= result["mcnemar"]["difference"] <= high
    text = comparison_markdown(result)
    assert "0 real and 30 fake" in text and "\N{EN DASH}" in text
    single = compare_scores(a.select(np.arange(30) == 0), b.select(np.arange(30) == 0), 0.5, 0.5, n_boot=10)
    assert single["bootstrap"]["acc_difference_ci"] is None and single["mcnemar"]["p_exact"] == 1


def test_scores_of_different_images_are_refused():
    a, b = make_pair(20)
    with pytest.raises(UserError, match=r"got 3 only in the first \(20\) and 0 only in the second \(17\)"):
        compare_scores(a, b.select(np.arange(20) >= 3), 0.5, 0.5)
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


def test_the_report_holds_every_number_and_every_disagreement(tmp_path):
    a, b = make_pair(150, paths=[f"dir, with comma/{i}.png" for i in range(150)])
    result = compare_scores(a, b, 0.5, 0.5, n_boot=100)
    names = ("big_model", "small|model")
    paths = write_comparison(result, a, b, tmp_path / "new", names)
    assert all(path.stat().st_size for path in paths)
    saved = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert saved == {"name_a": names[0], "name_b": names[1], **result}
    with open(tmp_path / "new" / "disagreements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [item["path"] for item in result["disagreements"]]
    assert {row["label"] for row in rows} == {"real", "fake"}
    lines = comparison_markdown(result, names).splitlines()
    row = next(line for line in lines if "DeLong" in line and line.startswith("| AUC"))
    for key in ("auc_a", "auc_b", "difference"):
        low, high = result["delong"][f"{key}_ci"]
        assert f"{result['delong'][key]:.3f} [{low:.3f}, {high:.3f}]" in row
    assert f"{result['mcnemar']['p_exact']:.2g}" in next(line for line in lines if "exact" in line)


def test_the_figure_marks_the_disagreements():
    a, b = make_pair(150)
    axes = comparison_figure(a, shuffled(b), 0.6, 0.3).axes[0]
    drawn = {part.get_label(): part.get_offsets() for part in axes.collections}
    assert len(drawn) == 4 and sum(map(len, drawn.values())) == 150
    for name, points in drawn.items():
        differ = (points[:, 0] >= 0.6) != (points[:, 1] >= 0.3)
        assert np.all(differ == ("differ" in name)), name
