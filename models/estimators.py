"""Classical learners behind one small interface, saved in their libraries' own formats and never as pickles."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from utils.errors import UserError

# The only types beyond the plain ones of scikit-learn and numpy that skops may rebuild from a saved learner.
TRUSTED = ["sklearn.tree._tree.Tree", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]


class Estimator(Protocol):
    """Learns from features ``(N, D)`` float32 and labels ``(N,)`` 0 or 1, and returns logits ``(N,)`` float64."""

    def fit(self, x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray, seed: int) -> None: ...
    def logits(self, x: np.ndarray) -> np.ndarray: ...
    def importances(self) -> np.ndarray: ...
    def to_bytes(self) -> bytes: ...
    def from_bytes(self, data: bytes) -> None: ...


def require(package: str, model: str) -> Any:
    """Import an optional library. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"expected the package {package!r} for --model {model}, found none; pip install {package}"
        ) from None


def to_logits(p_fake: np.ndarray) -> np.ndarray:
    """Convert probabilities to logits; the unanimous votes of a forest are clipped to [0.001, 0.999]."""
    p_fake = np.clip(p_fake, 1e-3, 1 - 1e-3)
    return np.log(p_fake / (1 - p_fake))


class SklearnEstimator:
    """A scikit-learn classifier, saved by skops, which checks every type against a list before it rebuilds one."""

    def __init__(self, build: Callable[[int], Any]) -> None:
        require("skops", "random_forest, gradient_boosting or logistic_regression")
        self.build = build
        self.model: Any = None

    def fit(self, x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray, seed: int) -> None:
        self.model = self.build(seed).fit(x, y)
        if hasattr(self.model, "n_jobs"):
            self.model.n_jobs = None  # threads sum the votes of the trees in any order, which changes the last bit

    def logits(self, x: np.ndarray) -> np.ndarray:
        if hasattr(self.model, "decision_function"):
            return self.model.decision_function(x).astype(np.float64)
        return to_logits(self.model.predict_proba(x)[:, 1])

    def importances(self) -> np.ndarray:
        last = self.model[-1] if hasattr(self.model, "steps") else self.model
        if hasattr(last, "feature_importances_"):
            return last.feature_importances_
        return np.abs(last.coef_[0]) if hasattr(last, "coef_") else np.zeros(0)  # histogram boosting has neither

    def to_bytes(self) -> bytes:
        return importlib.import_module("skops.io").dumps(self.model)

    def from_bytes(self, data: bytes) -> None:
        io = importlib.import_module("skops.io")
        if unknown := set(io.get_untrusted_types(data=data)) - set(TRUSTED):
            raise UserError(
                f"expected a forest or a linear model in the checkpoint, found {', '.join(sorted(unknown))}"
            )
        self.model = io.loads(data, trusted=TRUSTED)


class XGBoostEstimator:
    """An XGBoost booster, stopped early on validation and saved as UBJSON."""

    def __init__(self, rounds: int, patience: int = 50, **params: Any) -> None:
        require("xgboost", "xgboost")
        self.rounds, self.patience, self.params = rounds, patience, params
        self.booster: Any = None

    def fit(self, x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray, seed: int) -> None:
        import xgboost

        params = {"objective": "binary:logistic", "eval_metric": "auc", "seed": seed, "verbosity": 0, **self.params}
        stop = xgboost.callback.EarlyStopping(rounds=self.patience, save_best=True, maximize=True)
        train, valid = xgboost.DMatrix(x, y), xgboost.DMatrix(x_valid, y_valid)
        self.booster = xgboost.train(
            params, train, self.rounds, evals=[(valid, "valid")], callbacks=[stop], verbose_eval=False
        )

    def logits(self, x: np.ndarray) -> np.ndarray:
        import xgboost

        return self.booster.predict(xgboost.DMatrix(x), output_margin=True).astype(np.float64)

    def importances(self) -> np.ndarray:
        gains = np.zeros(self.booster.num_features())
        for name, gain in self.booster.get_score(importance_type="total_gain").items():
            gains[int(name[1:])] = gain
        return gains

    def to_bytes(self) -> bytes:
        return bytes(self.booster.save_raw("ubj"))

    def from_bytes(self, data: bytes) -> None:
        import xgboost

        self.booster = xgboost.Booster()
        self.booster.load_model(bytearray(data))


class LightGBMEstimator:
    """A LightGBM booster, stopped early on validation and saved in LightGBM's text format."""

    def __init__(self, rounds: int, patience: int = 50, **params: Any) -> None:
        require("lightgbm", "lightgbm")
        self.rounds, self.patience, self.params = rounds, patience, params
        self.booster: Any = None

    def fit(self, x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray, seed: int) -> None:
        import lightgbm

        fixed = {"objective": "binary", "metric": "auc", "deterministic": True, "verbosity": -1, "num_threads": 0}
        train = lightgbm.Dataset(x, y)
        valid = lightgbm.Dataset(x_valid, y_valid, reference=train)
        stop = lightgbm.early_stopping(self.patience, verbose=False)
        try:
            self.booster = lightgbm.train(
                {**fixed, "seed": seed, **self.params}, train, self.rounds, valid_sets=[valid], callbacks=[stop]
            )
        except lightgbm.basic.LightGBMError as error:  # the other libraries raise ValueError for a bad setting
            raise ValueError(str(error)) from error

    def logits(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.booster.predict(x, raw_score=True), dtype=np.float64)

    def importances(self) -> np.ndarray:
        return self.booster.feature_importance("gain")

    def to_bytes(self) -> bytes:
        return self.booster.model_to_string(num_iteration=self.booster.best_iteration).encode()

    def from_bytes(self, data: bytes) -> None:
        import lightgbm

        self.booster = lightgbm.Booster(model_str=data.decode())
