"""What is fitted on validation: thresholds, the unsure band, the calibration."""

import numpy as np
import pytest
import torch

from models.ensemble import calibrated_logits
from models.operating_point import OperatingPoint, sigmoid
from tests.conftest import make_logits, make_scores
from utils.errors import UserError
from utils.evaluation.operating_point import fit_isotonic, fit_operating_point, fit_temperature
from utils.metrics import binary as metrics
from utils.metrics.thresholds import fit_thresholds
from utils.scoring.table import ScoreTable


@pytest.mark.parametrize("decimals", [None, 1])
def test_thresholds_are_the_best_that_any_cut_can_do(decimals):
    labels, p_fake = make_scores(300, decimals=decimals, seed=8)
    fitted = fit_thresholds(labels, p_fake)

    def balanced(threshold):
        found = metrics.figures(labels, p_fake, threshold)
        return (found["real_acc"] + found["fake_acc"]) / 2

    cuts = [*np.unique(p_fake), 1.1]
    assert balanced(fitted["balanced"]) == pytest.approx(max(balanced(cut) for cut in cuts))
    for name, target in (("fpr1", 0.01), ("fpr01", 0.001)):
        legal = [cut for cut in cuts if 1 - metrics.figures(labels, p_fake, cut)["real_acc"] <= target + 1e-12]
        assert 1 - metrics.figures(labels, p_fake, fitted[name])["real_acc"] <= target + 1e-12
        assert metrics.figures(labels, p_fake, fitted[name])["fake_acc"] == max(
            metrics.figures(labels, p_fake, cut)["fake_acc"] for cut in legal
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


def rates(labels, p_fake, weights=None):
    """Fit, and return by weight: reals called fake, reals unsure, fakes called real, and the thresholds."""
    labels, p_fake = np.asarray(labels), np.asarray(p_fake)
    fitted = fit_thresholds(labels, p_fake, weights)
    weights = np.ones(len(labels)) if weights is None else weights
    said = np.array(OperatingPoint(None, fitted).verdicts(p_fake))

    def share(label, verdict):
        own = labels == label
        return weights[own & (said == verdict)].sum() / weights[own].sum()

    return share(0, "fake"), share(0, "unsure"), share(1, "real"), fitted


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("slope", [0.3, 1.6, 3.0, 6.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_few_reals_are_called_fake_and_few_are_unsure(seed, slope, weighted):
    """At any skill; and neither limit is moved further than its reason goes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 3000)
    p_fake = sigmoid(rng.normal(size=3000) + slope * (labels - 0.5))
    weights = rng.uniform(0.2, 2, 3000) if weighted else None
    called_fake, unsure, missed, fitted = rates(labels, p_fake, weights)
    low, high, balanced = fitted["unsure_low"], fitted["unsure_high"], fitted["balanced"]
    assert called_fake <= 0.03 and unsure <= 0.2 and low <= high and balanced <= high
    assert called_fake > 0.027 or high == balanced, "no more reals are spared than asked"
    assert missed <= 0.05 or unsure > 0.195, "fakes are missed only where the limit on unsure reals forces it"
    assert unsure == 0 or missed > 0.045, "no band without a reason"


def test_a_detector_that_tells_all_needs_no_band():
    called_fake, unsure, missed, fitted = rates(np.repeat([0, 1], 50), np.linspace(0, 1, 100))
    assert called_fake == unsure == missed == 0
    assert fitted["unsure_low"] == fitted["balanced"] == fitted["unsure_high"]
    assert rates([0, 1], [0.0, 1.0])[3]["unsure_low"] == 0.5


def test_weights_are_worth_repetitions():
    labels, p_fake = make_scores(200, decimals=2, seed=4)
    times = np.random.default_rng(0).integers(1, 5, 200)
    repeated = fit_thresholds(np.repeat(labels, times), np.repeat(p_fake, times))
    assert fit_thresholds(labels, p_fake, times.astype(float)) == repeated
    assert fit_thresholds(labels, p_fake, times / 7) == repeated
    assert fit_thresholds(labels, p_fake) == fit_thresholds(labels, p_fake, np.ones(200)) != repeated
    _, logits = make_logits(200, decimals=1)
    once = fit_isotonic(labels, logits, times.astype(float))
    often = fit_isotonic(np.repeat(labels, times), np.repeat(logits, times))
    inner = slice(2, -2)  # the ends depend on the number of images
    assert once["x"] == often["x"] and once["y"][inner] == pytest.approx(often["y"][inner], abs=0.01)
    assert fit_temperature(labels, logits, times / 3) == pytest.approx(
        fit_temperature(np.repeat(labels, times), np.repeat(logits, times))
    )


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
    [([], []), ([1, 1], [-1.0, 2.0]), ([0, 1], [-3.0, 3.0]), ([0, 1, 0, 1], [1.0, -1.0, 2.0, -3.0])],
)
def test_temperature_is_one_where_there_is_nothing_to_fit(labels, logits):
    assert fit_temperature(labels, logits) == 1.0


FITTED = ("balanced", "fpr1", "fpr01")


@pytest.mark.parametrize("method", ["temperature", "isotonic", "none"])
def test_the_operating_point_is_fitted_with_the_chosen_calibration(method):
    labels, logits = make_logits(300)
    n = len(labels)
    table = ScoreTable(["a"] * n, labels, ["d"] * n, ["g"] * n, ["clean"] * n, logits, sigmoid(logits))
    point = fit_operating_point([table], method)
    assert (point.calibration or {"method": "none"})["method"] == method
    p_fake = point.p_fake(logits)
    fitted = fit_thresholds(labels, p_fake)
    assert {key: point.thresholds[key] for key in FITTED} == {key: fitted[key] for key in FITTED}
    assert fit_operating_point([table]) == fit_operating_point([table], "temperature")
    with pytest.raises(UserError, match="temperature, isotonic, none, got 'platt'"):
        fit_operating_point([table], "platt")


@pytest.mark.parametrize(
    "calibration",
    [
        None,
        {"method": "temperature", "temperature": 1.7},
        {"method": "temperature", "temperature": 0.4, "bias": -0.3},
        {"method": "isotonic", "x": [0.5], "y": [0.3]},
        fit_isotonic(*make_logits(300)),
    ],
)
def test_an_ensemble_calibrates_its_members_as_everything_else_does(calibration):
    logits = torch.linspace(-12, 12, 301, dtype=torch.float64, requires_grad=True)
    found = calibrated_logits(logits, calibration)
    np.testing.assert_allclose(
        sigmoid(found.detach().numpy()), OperatingPoint(calibration).p_fake(logits.detach().numpy()), atol=1e-12
    )
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.all(gradient > 0), "an attack finds a way up everywhere"
