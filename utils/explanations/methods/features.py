"""Contributions of the features of a classical detector to the logit of each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.decoding.images import UnreadableImage, check_shape, read_image
from datasets.faces.finder import FaceFinder, face_views
from datasets.transforms import to_tensor
from utils.errors import UserError
from utils.explanations.registry import register_explanation
from utils.explanations.spectra import log_spectrum, radial_profile
from utils.figures import FAKE_COLOUR, GREY, REAL_COLOUR, name_text, new_figure, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = 15  # features shown


@register_explanation("features", "Feature contributions", needs=("features",), makes_maps=False)
def explain_features(
    detector: Any, paths: Sequence[str], stems: Sequence[Path], finder: FaceFinder | None = None
) -> list[dict[str, Any]]:
    """Write ``<stem>__features`` as .pdf and .png for each file; returns its row, or its path and error.

    Files are read twice, once for their features and once for their figure, so memory holds one picture at a time.
    """
    readable, features, rows = [], [], []
    for path, stem in zip(paths, stems, strict=True):
        try:
            views, faces = face_views(check_shape(read_image(path)), detector.geometry, finder)
            features.append(detector.features(to_tensor(views[0])[None])[0])
            framing = {"framed": "face" if faces else "whole", "finder": finder.name} if finder else {}
            readable.append((path, Path(f"{stem}__features"), framing))
        except UnreadableImage as error:
            rows.append({"path": path, "error": str(error)})
    if not readable:
        return rows
    contributions, how = attribute(detector, np.stack(features))
    p_fake = detector.operating_point.p_fake(detector.estimator.logits(np.stack(features)))
    verdicts = detector.operating_point.verdicts(p_fake)
    for (path, stem, framing), added, p, verdict in zip(
        readable, contributions, p_fake.tolist(), verdicts, strict=True
    ):
        title = f"{name_text(Path(path).name)}: {verdict}, p_fake {p:.3f}"
        save_figure(feature_figure(read_image(path), added, detector.feature_names(), how, title), stem)
        facts = {"path": path, "p_fake": p, "verdict": verdict, "target": "both", "method": "features"}
        rows.append({**facts, **framing, "all_zero": "no" if added.any() else "yes", "figure": f"{stem}.png"})
    return rows


def attribute(detector: Any, features: np.ndarray) -> tuple[np.ndarray, str]:
    """Contributions ``(N, D)`` of features ``(N, D)`` to the logits of N images, and the name of the method.

    Boosted trees provide SHAP values (Lundberg et al., "From Local Explanations to Global Understanding with
    Explainable AI for Trees", Nature Machine Intelligence 2020), which are exact for their logit; for a linear model
    the coefficients give them relative to the training mean. Any other learner is scored with one feature at a time
    replaced by its median over the images.

    Raises:
        UserError: the median is needed and there is only one image.
    """
    booster: Any = getattr(detector.estimator, "booster", None)
    model: Any = getattr(detector.estimator, "model", None)
    if booster is not None and hasattr(booster, "inplace_predict"):
        import xgboost

        return booster.predict(xgboost.DMatrix(features), pred_contribs=True)[:, :-1], "SHAP values"
    if booster is not None:
        return np.asarray(booster.predict(features, pred_contrib=True))[:, :-1], "SHAP values"
    if hasattr(model, "steps") and hasattr(model[-1], "coef_"):
        return model[:-1].transform(features) * model[-1].coef_[0], "SHAP values"
    if len(features) < 2:
        raise UserError(
            "expected at least 2 images to explain this learner, got 1; pass a folder, because features are replaced "
            "by their median over the images"
        )
    median = np.median(features, axis=0)
    score, each = detector.estimator.logits, np.eye(len(median), dtype=bool)
    falls = [score(row[None]) - score(np.where(each, median, row)) for row in features]
    return np.stack(falls), "one feature replaced"


@styled
def feature_figure(image: np.ndarray, contributions: np.ndarray, names: Sequence[str], how: str, title: str) -> Figure:
    """Draw an image ``(H, W, 3)``, its spectrum and the features with the largest contributions ``(D,)``, in logits."""
    figure, axes = new_figure(10.5, 8.4, 3, nrows=2, height_ratios=(1, 1.9))
    picture, flat, rings = axes[:3]
    for panel in axes[3:]:
        panel.remove()
    bars = figure.add_subplot(picture.get_gridspec()[1, :])
    spectrum = log_spectrum(image)
    picture.imshow(image)
    picture.set(title="Original", xticks=[], yticks=[])
    picture.grid(visible=False)
    shown = flat.imshow(spectrum, cmap="viridis", extent=(-0.5, 0.5, 0.5, -0.5))
    flat.set(title="Spectrum", xlabel="Cycles per pixel", xticks=(-0.5, 0, 0.5), yticks=(-0.5, 0, 0.5))
    flat.grid(visible=False)
    figure.colorbar(shown, ax=flat, label="Log10 power", shrink=0.8)
    profile = radial_profile(spectrum)
    rings.plot(np.arange(len(profile)) / len(spectrum), profile, color=GREY)
    rings.set(title="Mean over rings", xlabel="Cycles per pixel", ylabel="Log10 power")
    _draw_bars(bars, contributions, names, how)
    figure.suptitle(title)
    return figure


def _draw_bars(axes: Any, contributions: np.ndarray, names: Sequence[str], how: str) -> None:
    top = np.argsort(-np.abs(contributions), kind="stable")[:TOP]
    fake = contributions[top] > 0
    axes.barh(
        range(len(top)),
        contributions[top],
        color=[FAKE_COLOUR if each else REAL_COLOUR for each in fake],
        hatch=["" if each else "///" for each in fake],
        edgecolor="white",
        linewidth=0.5,
    )
    rest = contributions.sum() - contributions[top].sum()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(
        yticks=range(len(top)),
        yticklabels=[names[index] for index in top],
        ylim=(len(top) - 0.4, -0.6),
        xlabel=f"Contribution to the logit: real (left, hatched), fake (right)\nall other features: {rest:+.2f}",
        title=f"Features, {how}",
    )
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", visible=False)
