"""The record of an operating point: verdicts, and curves from logits to p_fake."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from models.operating_point import SIGMOID_SHARE, OperatingPoint, sigmoid
from tests.conftest import make_logits
from utils.errors import UserError
from utils.evaluation.operating_point import fit_isotonic, fit_temperature
from utils.metrics import binary as metrics


def test_verdicts_and_thresholds_of_an_operating_point():
    plain = OperatingPoint()
    assert plain.verdicts([0.2, 0.5, 0.7]) == ["real", "fake", "fake"]
    assert plain.threshold() == 0.5 and plain.threshold(0.3) == 0.3
    fitted = {"balanced": 0.5, "fpr1": 0.65, "unsure_low": 0.4, "unsure_high": 0.7}
    point = OperatingPoint(None, fitted, ("demo",))
    assert point.verdicts([0.2, 0.4, 0.6, 0.7]) == ["real", "unsure", "unsure", "fake"]
    assert point.verdicts([0.2, 0.4, 0.6, 0.7], "balanced") == ["real", "real", "fake", "fake"]
    assert point.verdicts([0.2, 0.4, 0.6, 0.7], "fpr1") == ["real", "real", "real", "fake"]
    assert point.verdicts([0.2, 0.4, 0.6, 0.7], 0.3) == ["real", "fake", "fake", "fake"]
    assert OperatingPoint.from_checkpoint(point.to_checkpoint()) == point
    assert OperatingPoint.from_checkpoint({"calibration": None, "thresholds": None}) == plain
    with pytest.raises(UserError, match=r"threshold fpr01, found balanced, fpr1.*train.py --resume"):
        point.threshold("fpr01")


def test_calibration_maps_logits_to_p_fake():
    logits = np.array([-1000.0, -2.0, 0.0, 2.0, 1000.0], dtype=np.float32)
    plain = OperatingPoint(None).p_fake(logits)
    assert plain.dtype == np.float64 and plain[[0, 2, 4]].tolist() == [0.0, 0.5, 1.0]
    calibrated = OperatingPoint({"method": "temperature", "temperature": 2.0, "bias": 1.0}).p_fake(logits)
    np.testing.assert_allclose(calibrated, sigmoid(logits / 2 + 1))
    for calibration in ({"method": "platt"}, {"method": "temperature", "temperature": 0.0}):
        with pytest.raises(UserError, match="calibration"):
            OperatingPoint(calibration).p_fake(logits)
    with pytest.raises(UserError, match="2 of 3"):
        OperatingPoint(None).p_fake([np.nan, 0.0, -np.inf])
    with pytest.raises(UserError, match="1 of 2"):
        fit_temperature([0, 1], [np.inf, 0.0])


@pytest.mark.parametrize("decimals", [None, 0])
def test_the_isotonic_curve_is_that_of_scikit_learn(decimals):
    labels, logits = make_logits(decimals=decimals)
    curve = fit_isotonic(labels, logits)
    assert curve["method"] == "isotonic" and set(curve) == {"method", "x", "y"}
    assert all(type(value) is float for value in curve["x"] + curve["y"])
    assert np.all(np.diff(curve["x"]) > 0) and np.all(np.diff(curve["y"]) >= 0)
    margin = 1 / (len(labels) + 2)
    reference = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip").fit(logits, labels)
    grid = np.linspace(logits.min() - 5, logits.max() + 5, 2001)
    np.testing.assert_allclose(np.interp(grid, curve["x"], curve["y"]), reference.predict(grid), atol=1e-12)
    assert np.abs(OperatingPoint(curve).p_fake(grid) - reference.predict(grid)).max() <= SIGMOID_SHARE


def test_the_isotonic_curve_calibrates_and_keeps_the_ranking():
    curve = fit_isotonic(*make_logits(4000, seed=1))
    labels, logits = make_logits(4000, seed=2)
    p_fake = OperatingPoint(curve).p_fake(logits)
    assert metrics.figures(labels, p_fake)["ece"] < 0.03 < 0.1 < metrics.figures(labels, sigmoid(logits))["ece"]
    assert metrics.auc(labels, p_fake) == metrics.auc(labels, sigmoid(logits))
    near = np.sort(logits[np.abs(logits) < 25])
    assert np.all(np.diff(OperatingPoint(curve).p_fake(near)) > 0), "no two images are tied by a level stretch"
    far = OperatingPoint(curve).p_fake(np.array([-1e6, 1e6]))
    assert 0 < far[0] < 0.01 and 0.99 < far[1] < 1, "never certain"
    bare = np.interp(logits, curve["x"], curve["y"])
    assert metrics.auc(labels, bare) != metrics.auc(labels, p_fake)  # what the share of the sigmoid is for


def test_the_isotonic_curve_at_the_edges():
    separated = fit_isotonic([0, 0, 1, 1], [-2.0, -1.0, 1.0, 3.0])
    assert separated == {"method": "isotonic", "x": [-2.0, -1.0, 1.0, 3.0], "y": [1 / 6, 1 / 6, 5 / 6, 5 / 6]}
    backwards = fit_isotonic([1, 0], [-1.0, 1.0])
    assert backwards["y"] == [0.5, 0.5] and np.diff(OperatingPoint(backwards).p_fake([-1.0, 1.0])) > 0
    tied = fit_isotonic([0, 1, 1], [2.0, 2.0, 2.0])
    assert tied == {"method": "isotonic", "x": [2.0], "y": [pytest.approx(2 / 3)]}
    assert OperatingPoint(tied).p_fake([-3.0, 9.0]) == pytest.approx(2 / 3, abs=2 * SIGMOID_SHARE)
    for labels in ([1, 1], [0, 0]):
        with pytest.raises(UserError, match="real and fake images to fit an isotonic"):
            fit_isotonic(labels, [0.0, 1.0])
    with pytest.raises(UserError, match="1 of 2"):
        fit_isotonic([0, 1], [np.nan, 0.0])
    with pytest.raises(UserError, match="3 labels and 2 logits"):
        fit_isotonic([0, 1, 1], [1.0, 0.0])


@pytest.mark.parametrize("value", ["0.5", float("nan"), float("inf"), None])
def test_thresholds_are_numbers(value):
    with pytest.raises(UserError, match="expected numbers as thresholds of a checkpoint, got fpr1"):
        OperatingPoint.from_checkpoint({"thresholds": {"balanced": 0.5, "fpr1": value}})


@pytest.mark.parametrize(
    "points",
    [
        {},
        {"x": [], "y": []},
        {"x": [0.0, 1.0], "y": [0.5]},
        {"x": [1.0, 0.0], "y": [0.2, 0.5]},
        {"x": [0.0, 1.0], "y": [0.6, 0.5]},
        {"x": [0.0, 1.0], "y": [0.6, 1.5]},
        {"x": [0.0, float("nan")], "y": [0.1, 0.5]},
    ],
)
def test_a_damaged_isotonic_curve_is_refused(points):
    with pytest.raises(UserError, match="rising curve"):
        OperatingPoint({"method": "isotonic", **points}).p_fake([0.0])


@pytest.mark.parametrize("balanced", [0.3, 0.5, 0.8])
def test_what_leans_to_fake_agrees_with_the_verdict(balanced):
    point = OperatingPoint(None, {"balanced": balanced, "unsure_low": 0.4, "unsure_high": 0.7})
    p_fake = np.linspace(0, 1, 41)
    for p, verdict, leans in zip(p_fake, point.verdicts(p_fake), point.leans_to_fake(p_fake), strict=True):
        assert leans == (verdict == "fake" or (verdict == "unsure" and p >= balanced))
    assert OperatingPoint().leans_to_fake(np.array([0.4, 0.6])).tolist() == [False, True]
