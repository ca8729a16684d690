"""What is fitted on validation: thresholds, the unsure band, the temperature."""

import numpy as np
import pytest

from utils import metrics
from utils.calibration import apply_calibration, fit_temperature, sigmoid
from utils.errors import UserError
from utils.thresholds import fit_thresholds, unsure_band, verdicts


def make_scores(n=400, decimals=None, seed=0, fraction_fake=0.4):
    """Overlapping scores of two classes; ``decimals`` makes ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < fraction_fake).astype(np.int64)
    p_fake = sigmoid(rng.normal(size=n) + 1.6 * labels - 0.8)
    return labels, p_fake if decimals is None else np.round(p_fake, decimals)


@pytest.mark.parametrize("decimals", [None, 1])
def test_thresholds_are_the_best_that_any_cut_can_do(decimals):
    labels, p_fake = make_scores(300, decimals=decimals, seed=8)
    fitted = fit_thresholds(labels, p_fake)

    def balanced(threshold):
        return (metrics.real_acc(labels, p_fake, threshold) + metrics.fake_acc(labels, p_fake, threshold)) / 2

    cuts = [*np.unique(p_fake), 1.1]
    assert balanced(fitted["balanced"]) == pytest.approx(max(balanced(cut) for cut in cuts))
    for name, target in (("fpr1", 0.01), ("fpr01", 0.001)):
        legal = [cut for cut in cuts if 1 - metrics.real_acc(labels, p_fake, cut) <= target + 1e-12]
        assert 1 - metrics.real_acc(labels, p_fake, fitted[name]) <= target + 1e-12
        assert metrics.fake_acc(labels, p_fake, fitted[name]) == max(
            metrics.fake_acc(labels, p_fake, cut) for cut in legal
        )
    assert fitted == fit_thresholds(labels[::-1], p_fake[::-1])
    assert all(type(value) is float for value in fitted.values())


def test_thresholds_at_the_edges():
    assert fit_thresholds([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9])["balanced"] == pytest.approx(0.4)
    # Cutting below or above the tied pair is equally good: the middle one of three equal cuts.
    assert fit_thresholds([0, 0, 1, 0, 1, 1], [0.1, 0.3, 0.3, 0.5, 0.5, 0.9])["balanced"] == pytest.approx(0.4)
    certain = fit_thresholds([0, 1], [1.0, 1.0])["fpr1"]
    assert certain > 1.0 and np.isfinite(certain), "a real at 1.0 can only be spared by a threshold above 1"
    neighbours = [0.5, np.nextafter(0.5, 1)]
    assert fit_thresholds([0, 1], neighbours)["balanced"] == neighbours[1]
    with pytest.raises(UserError, match="2 real and 0 fake"):
        fit_thresholds([0, 0], [0.1, 0.2])


def test_unsure_band_buys_accuracy_and_keeps_coverage():
    labels, p_fake = make_scores(2000, seed=2, fraction_fake=0.5)
    low, high = unsure_band(labels, p_fake, 0.4, target_acc=0.88)
    assert low < 0.4 < high
    kept = (p_fake < low) | (p_fake >= high)
    assert metrics.acc(labels[kept], p_fake[kept], 0.4) >= 0.88
    assert metrics.acc(labels, p_fake, 0.4) < 0.88 and kept.mean() >= 0.5
    logit = np.log([low / (1 - low), 0.4 / 0.6, high / (1 - high)])
    assert logit[1] - logit[0] == pytest.approx(logit[2] - logit[1])
    wide = unsure_band(labels, p_fake, 0.4, target_acc=0.9999)
    kept_wide = (p_fake < wide[0]) | (p_fake >= wide[1])
    assert kept_wide.mean() >= 0.5 and wide[0] < low, "an unreachable target stops at the coverage"


def test_unsure_band_is_empty_where_it_is_not_needed():
    assert unsure_band([0, 1], [0.0, 1.0], 0.5) == (0.5, 0.5)
    assert verdicts([0.2, 0.5, 0.7], 0.5) == ["real", "fake", "fake"]
    assert verdicts([0.2, 0.4, 0.6, 0.7], 0.5, (0.4, 0.7)) == ["real", "unsure", "unsure", "fake"]


def nll(labels, logits, temperature):
    signed = np.where(labels == 1, logits, -logits) / temperature
    return np.mean(np.logaddexp(0, -signed))


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_temperature_is_recovered_and_minimises_the_likelihood_loss(true_temperature):
    rng = np.random.default_rng(0)
    honest = 2 * rng.normal(size=20_000)
    labels = (rng.random(20_000) < sigmoid(honest)).astype(int)
    fitted = fit_temperature(labels, true_temperature * honest)
    assert fitted == pytest.approx(true_temperature, rel=0.05)
    best = nll(labels, true_temperature * honest, fitted)
    assert all(nll(labels, true_temperature * honest, fitted * factor) > best for factor in (0.99, 1.01))


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ([], []),
        ([1, 1], [-1.0, 2.0]),
        ([0, 1], [-3.0, 3.0]),
        ([0, 1, 0, 1], [1.0, -1.0, 2.0, -3.0]),
    ],
)
def test_temperature_is_one_where_there_is_nothing_to_fit(labels, logits):
    assert fit_temperature(labels, logits) == 1.0


def test_calibration_maps_logits_to_p_fake():
    logits = np.array([-1000.0, -2.0, 0.0, 2.0, 1000.0], dtype=np.float32)
    plain = apply_calibration(logits, None)
    assert plain.dtype == np.float64 and plain[[0, 2, 4]].tolist() == [0.0, 0.5, 1.0]
    calibrated = apply_calibration(logits, {"method": "temperature", "temperature": 2.0, "bias": 1.0})
    np.testing.assert_allclose(calibrated, sigmoid(logits / 2 + 1))
    for calibration in ({"method": "isotonic"}, {"method": "temperature", "temperature": 0.0}):
        with pytest.raises(UserError, match="calibration"):
            apply_calibration(logits, calibration)
    with pytest.raises(UserError, match="2 of 3"):
        apply_calibration([np.nan, 0.0, -np.inf], None)
    with pytest.raises(UserError, match="1 of 2"):
        fit_temperature([0, 1], [np.inf, 0.0])
