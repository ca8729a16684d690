"""Classical detectors: a learner on handcrafted features, or on the embedding of a frozen network."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.transforms import Geometry
from models.detector import Detector
from models.estimators import Estimator, LightGBMEstimator, SklearnEstimator, XGBoostEstimator
from models.features.extract import extract_features, feature_names
from models.registry import create_model, register_model
from utils.errors import UserError

HANDCRAFTED = "spectrum,dct,srm,lbp,color"


class ClassicalDetector(Detector):
    """Features of an image, followed by a learner that is fitted in one call.

    The checkpoint holds the fitted learner as bytes of its library's own format, in a uint8 tensor
    (``get_extra_state``). The detector has no gradient with respect to the image.
    """

    has_input_gradient = False
    is_classical = True

    def __init__(self, estimator: Estimator, features: str, embedder: Embedder | None, input_size: int) -> None:
        super().__init__(input_size, geometry=Geometry("crop", input_size))
        self.estimator = estimator
        self.banks = [name for name in features.split(",") if name] if embedder is None else []
        self.embedder = embedder.eval().requires_grad_(False) if embedder is not None else None
        self.any_size = embedder is None or embedder.detector.any_size
        self.is_fitted = False
        if embedder is None:
            feature_names(self.banks)  # reports an unknown bank before any feature is computed

    @torch.no_grad()
    def features(self, images: Tensor) -> np.ndarray:
        """Compute features ``(N, D)`` float32 of ``(N, 3, H, W)`` RGB images in [0, 1]."""
        if self.embedder is None:
            return extract_features(images, self.banks)
        return self.embedder(images.to(self.mean.device)).float().cpu().numpy()

    def fits(self, size: int) -> bool:
        """Check whether the frozen network takes inputs of ``size`` px; handcrafted features take any."""
        return self.embedder is None or self.embedder.detector.fits(size)

    def feature_key(self) -> str:
        """Identify the features for a cache: the text differs whenever the features of the same images would."""
        if self.embedder is None:
            return ",".join(self.banks)
        digest = hashlib.sha256()
        for name, tensor in sorted(self.embedder.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def feature_names(self) -> list[str]:
        """Name every feature; those of an embedding are numbered."""
        if self.embedder is None:
            return feature_names(self.banks)
        return [f"embedding: {i}" for i in range(len(self.estimator.importances()))]

    def fit(self, train: tuple[np.ndarray, np.ndarray], valid: tuple[np.ndarray, np.ndarray], seed: int) -> None:
        """Fit the learner on ``(features, labels)``; the validation part only serves to stop boosting early.

        Raises:
            UserError: a feature is NaN or infinite, a part holds one class, or the learner refuses its settings.
        """
        for part, (x, y) in (("train", train), ("valid", valid)):
            if bad := int((~np.isfinite(x)).any(axis=1).sum()):
                raise UserError(
                    f"expected finite features, got NaN or infinity for {bad} {part} images; audit the data"
                )
            if len(np.unique(y)) < 2:
                raise UserError(f"expected real and fake images in the {part} split, got one class")
        try:
            self.estimator.fit(*train, *valid, seed)
        except ValueError as error:  # a setting is out of range, or there are too few images for it
            raise UserError(
                f"expected --model-args that {len(train[1])} images can be fitted with, got: {error}"
            ) from error
        self.is_fitted = True

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, H, W)`` RGB images in [0, 1]; returns logits ``(N,)`` float64, without gradient."""
        if not self.is_fitted:
            return torch.zeros(len(images), dtype=torch.float64, device=images.device)
        with torch.autocast(images.device.type, enabled=False):  # the learner was fitted on float32 features
            features = self.features(images.float())
        return torch.from_numpy(self.estimator.logits(features)).to(images.device)

    def get_extra_state(self) -> Tensor:
        data = self.estimator.to_bytes() if self.is_fitted else b""
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.is_fitted = len(state) > 0
        if not self.is_fitted:
            return
        try:
            self.estimator.from_bytes(state.cpu().numpy().tobytes())
        except UserError:
            raise
        except Exception as error:  # the errors of the libraries have no other common base class
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"expected a fitted learner in the checkpoint, but its bytes are damaged: {reason}"
            ) from error


class Embedder(nn.Module):
    """The pooled features of a frozen detector: the input of its head."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        captured: list[Tensor] = []
        head = self.detector.get_submodule("head")
        handle = head.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs[0]))
        try:
            self.detector(images)
        finally:
            handle.remove()
        return captured[0]


def build(estimator: Estimator, features: str, input_size: int, embedding: dict[str, Any] | None) -> ClassicalDetector:
    """Combine a learner with handcrafted banks, or with a frozen network if ``features`` is ``embedding:NAME``."""
    if not features.startswith("embedding"):
        return ClassicalDetector(estimator, features, None, input_size)
    if embedding is None:
        raise UserError(
            f"expected --model-args features=embedding:CHECKPOINT or features=embedding:TIMM-NAME, got {features!r}"
        )
    network = create_model(embedding["model"], **embedding["model_args"])
    if not hasattr(network, "head"):
        raise UserError(f"expected a single network for features=embedding:, got {embedding['model']}")
    if "geometry" in embedding:
        network.geometry = Geometry(**embedding["geometry"])
    return ClassicalDetector(estimator, features, Embedder(network), network.geometry.size)


@register_model
def random_forest(
    features: str = HANDCRAFTED, input_size: int = 256, trees: int = 500, depth: int = 0, embedding: dict | None = None
) -> ClassicalDetector:
    """Random forest (Breiman, Machine Learning 2001); ``depth=0`` does not limit the depth of the trees."""

    def learner(seed: int) -> Any:
        from sklearn.ensemble import RandomForestClassifier  # here: it takes a second, and only fitting needs it

        return RandomForestClassifier(
            trees, max_depth=depth or None, min_samples_leaf=2, max_features="sqrt", n_jobs=-1, random_state=seed
        )

    return build(SklearnEstimator(learner), features, input_size, embedding)


@register_model
def gradient_boosting(
    features: str = HANDCRAFTED,
    input_size: int = 256,
    rounds: int = 400,
    learning_rate: float = 0.05,
    embedding: dict | None = None,
) -> ClassicalDetector:
    """Histogram gradient boosting of scikit-learn, which holds out a tenth of the training set to stop early."""

    def learner(seed: int) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier

        stopping = {"early_stopping": True, "n_iter_no_change": 40, "max_iter": rounds}
        trees = {"max_leaf_nodes": 7, "l2_regularization": 5.0, "max_bins": 63, "max_features": 0.05}
        return HistGradientBoostingClassifier(learning_rate=learning_rate, random_state=seed, **stopping, **trees)

    return build(SklearnEstimator(learner), features, input_size, embedding)


@register_model
def xgboost(
    features: str = HANDCRAFTED,
    input_size: int = 256,
    rounds: int = 800,
    depth: int = 2,
    learning_rate: float = 0.05,
    embedding: dict | None = None,
) -> ClassicalDetector:
    """XGBoost (Chen & Guestrin, KDD 2016, arXiv 1603.02754), stopped early on validation."""
    trees = {"max_depth": depth, "subsample": 0.6, "colsample_bytree": 0.05, "reg_lambda": 5, "max_bin": 64}
    estimator = XGBoostEstimator(rounds, patience=100, eta=learning_rate, **trees)
    return build(estimator, features, input_size, embedding)


@register_model
def lightgbm(
    features: str = HANDCRAFTED,
    input_size: int = 256,
    rounds: int = 800,
    leaves: int = 7,
    learning_rate: float = 0.05,
    embedding: dict | None = None,
) -> ClassicalDetector:
    """LightGBM (Ke et al., NeurIPS 2017), stopped early on validation."""
    sampling = {"bagging_fraction": 0.6, "bagging_freq": 1, "feature_fraction": 0.05}
    trees = {"num_leaves": leaves, "lambda_l2": 5.0, "min_data_in_leaf": 10, "max_bin": 63}
    estimator = LightGBMEstimator(rounds, patience=100, learning_rate=learning_rate, **sampling, **trees)
    return build(estimator, features, input_size, embedding)


@register_model
def logistic_regression(
    features: str = HANDCRAFTED, input_size: int = 256, c: float = 1e-2, embedding: dict | None = None
) -> ClassicalDetector:
    """L2-regularised logistic regression on standardised features (histogram banks are square roots already)."""

    def learner(seed: int) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=3000, random_state=seed))

    return build(SklearnEstimator(learner), features, input_size, embedding)
