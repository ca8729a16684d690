"""The classical learners: they learn, stop early, predict with what they kept, and survive as bytes."""

import numpy as np
import pytest

from models.classical import gradient_boosting, lightgbm, logistic_regression, random_forest, xgboost
from models.estimators import LightGBMEstimator, XGBoostEstimator, require, to_logits
from models.operating_point import sigmoid
from utils.errors import UserError
from utils.metrics.binary import auc

FACTORIES = {
    "random_forest": lambda: random_forest(features="color", trees=5),
    "gradient_boosting": lambda: gradient_boosting(features="color", rounds=40),
    "xgboost": lambda: xgboost(features="color", rounds=5),
    "lightgbm": lambda: lightgbm(features="color", rounds=5),
    "logistic_regression": lambda: logistic_regression(features="color"),
}
BOOSTERS = {"xgboost": XGBoostEstimator, "lightgbm": LightGBMEstimator}


def make_data(seed: int, count: int = 120, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Features of which the second alone tells real from fake, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    return x, (x[:, 1] + noise * rng.normal(size=count) > 0).astype(np.float32)


@pytest.fixture(scope="module", params=FACTORIES)
def fitted(request):
    """A fitted learner and a new one of the same kind."""
    estimator, new = (FACTORIES[request.param]().estimator for _ in range(2))
    estimator.fit(*make_data(0), *make_data(1, 60), 0)
    return estimator, new


def test_it_learns(fitted):
    x, y = make_data(2)
    assert auc(y, sigmoid(fitted[0].logits(x))) > 0.75


def test_logits_are_finite_double_precision(fitted):
    x = np.concatenate([make_data(2)[0], 1e6 * np.eye(6, dtype=np.float32), np.zeros((1, 6), np.float32)])
    logits = fitted[0].logits(x)
    assert logits.shape == (127,)
    assert logits.dtype == np.float64
    assert np.isfinite(logits).all()


def test_bytes_give_the_same_learner_back(fitted):
    estimator, new = fitted
    x = make_data(3)[0]
    new.from_bytes(estimator.to_bytes())
    assert np.array_equal(new.logits(x), estimator.logits(x))
    assert np.array_equal(new.importances(), estimator.importances())
    again = type(estimator).__new__(type(estimator))
    again.from_bytes(new.to_bytes())  # what was loaded can be saved
    assert np.array_equal(again.logits(x), estimator.logits(x))


def test_bytes_are_no_pickle(fitted):
    data = fitted[0].to_bytes()
    assert isinstance(data, bytes)
    assert not data.startswith(b"\x80")


def test_importance_points_at_the_feature_that_matters(fitted, request):
    importance = fitted[0].importances()
    if "gradient_boosting" in request.node.name:
        assert len(importance) == 0
        return
    assert importance.shape == (6,)
    assert np.all(importance >= 0)
    assert importance.argmax() == 1


def test_the_seed_decides(fitted, request):
    name = request.node.callspec.params["fitted"]
    x, twins = make_data(3)[0], [FACTORIES[name]().estimator for _ in range(2)]
    for twin in twins:
        twin.fit(*make_data(0), *make_data(1, 60), 0)
    assert np.array_equal(twins[0].logits(x), twins[1].logits(x))


@pytest.mark.parametrize("name", BOOSTERS)
def test_boosting_stops_early_and_keeps_the_best_rounds(name):
    """Labels without noise in training and with much of it in validation: later rounds only fit worse."""
    estimator = BOOSTERS[name](200, patience=5)
    train, valid, x = make_data(0), make_data(1, 40, noise=3.0), make_data(3)[0]
    estimator.fit(*train, *valid, 0)
    booster = estimator.booster
    best = booster.best_iteration + (name == "xgboost")  # xgboost counts from 0
    assert 1 <= best < 100
    if name == "xgboost":
        import xgboost as library

        assert booster.num_boosted_rounds() == best
        wanted = booster.predict(library.DMatrix(x), output_margin=True, iteration_range=(0, best))
    else:
        wanted = booster.predict(x, raw_score=True, num_iteration=best)
    assert np.array_equal(estimator.logits(x), wanted)
    new = BOOSTERS[name](200)
    new.from_bytes(estimator.to_bytes())
    rounds = new.booster.num_boosted_rounds() if name == "xgboost" else new.booster.num_trees()
    assert rounds == best
    assert np.array_equal(new.logits(x), wanted)


@pytest.mark.parametrize("name", BOOSTERS)
def test_boosting_never_exceeds_its_rounds(name):
    estimator = BOOSTERS[name](3)
    estimator.fit(*make_data(0), *make_data(1), 0)
    assert 1 <= estimator.booster.best_iteration + (name == "xgboost") <= 3


@pytest.mark.parametrize("name", FACTORIES)
def test_a_few_constant_features_are_survived(name):
    """Nothing can be learnt: one logit for all, and no importance."""
    estimator = FACTORIES[name]().estimator
    x, y = np.ones((40, 3), np.float32), np.tile([0, 1], 20).astype(np.float32)
    estimator.fit(x, y, x, y, 0)
    logits = estimator.logits(x[:4])
    assert len(set(logits)) == 1
    assert abs(logits[0]) < 1
    assert not estimator.importances().sum()
    new = FACTORIES[name]().estimator
    new.from_bytes(estimator.to_bytes())
    assert np.array_equal(new.logits(x[:4]), logits)


def test_unanimous_votes_have_finite_logits():
    logits = to_logits(np.array([0.0, 0.5, 1.0]))
    assert logits[1] == 0
    assert logits[0] == pytest.approx(np.log(0.001 / 0.999))
    assert logits[2] == pytest.approx(-logits[0])


def test_a_missing_package_is_named():
    message = "expected the package 'no_such_package' for --model xgboost, found none; pip install no_such_package"
    with pytest.raises(UserError, match=message):
        require("no_such_package", "xgboost")
    assert require("json", "xgboost").dumps([]) == "[]"
