"""Why a classical detector decides as it does: what each feature adds to the logit of one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from datasets.images import UnreadableImage, read_image
from datasets.transforms import to_tensor
from models.operating_point import OperatingPoint
from utils.errors import UserError
from utils.explanations.spectra import log_spectrum, radial_profile
from utils.figures import FAKE_COLOUR, GREY, REAL_COLOUR, new_figure, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = 15  # features shown
CHUNK = 4096  # rows scored at once


def attribute(detector: Any, features: np.ndarray) -> tuple[np.ndarray, str]:
    """Contributions ``(N, D)`` of the features ``(N, D)`` to the logits of images, and how they were found.

    Boosted trees give their own SHAP values (Lundberg et al., "From Local Explanations to Global Understanding with
    Explainable AI for Trees", Nature Machine Intelligence 2020), exact for their logit, and so does a linear model
    about the training mean. Any other learner is scored with one feature at a time replaced by its median over the
    given images, which is permutation importance for one image.

    Raises:
        UserError: that median is needed and there is one image only.
    """
    estimator = detector.estimator
    booster: Any = getattr(estimator, "booster", None)
    model: Any = getattr(estimator, "model", None)
    if booster is not None and hasattr(booster, "inplace_predict"):
        import xgboost

        return booster.predict(xgboost.DMatrix(features), pred_contribs=True)[:, :-1], "SHAP values"
    if booster is not None:
        return np.asarray(booster.predict(features, pred_contrib=True))[:, :-1], "SHAP values"
    if hasattr(model, "steps") and hasattr(model[-1], "coef_"):
        return model[:-1].transform(features) * model[-1].coef_[0], "SHAP values"
    if len(features) < 2:
        raise UserError(
            "expected at least 2 images to explain this learner, got 1: features are replaced by their "
            "median over the images; name a folder"
        )
    median = np.median(features, axis=0)
    return np.stack([_replaced_one_by_one(estimator, row, median) for row in features]), "one feature replaced"


def _replaced_one_by_one(estimator: Any, row: np.ndarray, median: np.ndarray) -> np.ndarray:
    whole, falls = estimator.logits(row[None])[0], []
    for start in range(0, len(row), CHUNK):
        places = np.arange(start, min(start + CHUNK, len(row)))
        changed = np.repeat(row[None], len(places), axis=0)
        changed[np.arange(len(places)), places] = median[places]
        falls.append(whole - estimator.logits(changed))
    return np.concatenate(falls)


@styled
def feature_figure(image: np.ndarray, contributions: np.ndarray, names: Sequence[str], how: str, title: str) -> Figure:
    """A picture, its spectrum in two and in one dimension, and the features that add most to its logit.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        contributions: ``(D,)`` in logits; above 0 speaks for fake.
    """
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
    for row, index in enumerate(top):
        fake = contributions[index] > 0
        axes.barh(
            row,
            contributions[index],
            color=FAKE_COLOUR if fake else REAL_COLOUR,
            hatch="" if fake else "///",
            edgecolor="white",
            linewidth=0.5,
        )
    rest = contributions.sum() - contributions[top].sum()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(
        yticks=range(len(top)),
        yticklabels=[names[index] for index in top],
        ylim=(len(top) - 0.4, -0.6),
        xlabel=f"Adds to the logit: for real (left, hatched), for fake (right)\nall other features: {rest:+.2f}",
        title=f"Features, {how}",
    )
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="y", visible=False)


def explain_feature_files(
    detector: Any, point: OperatingPoint, paths: Sequence[str], stems: Sequence[Path]
) -> list[dict[str, Any]]:
    """Write ``<stem>__features`` as .pdf and .png for each file; returns its row, or path and error."""
    images, rows = {}, []
    for path in paths:
        try:
            images[path] = read_image(path)
        except UnreadableImage as error:
            rows.append({"path": path, "error": str(error)})
    if not images:
        return rows
    inputs = torch.stack([to_tensor(detector.geometry(image)) for image in images.values()])
    features = detector.features(inputs)
    contributions, how = attribute(detector, features)
    logits = torch.from_numpy(detector.estimator.logits(features))
    names = detector.feature_names()
    scores = point.p_fake(logits.numpy())
    p_fake, verdicts = scores.tolist(), point.verdicts(scores)
    for index, (path, image) in enumerate(images.items()):
        stem = Path(f"{stems[list(paths).index(path)]}__features")
        title = f"{Path(path).name}: {verdicts[index]}, p_fake {p_fake[index]:.3f}"
        save_figure(feature_figure(image, contributions[index], names, how, title), stem)
        rows.append(
            {
                "path": path,
                "p_fake": p_fake[index],
                "verdict": verdicts[index],
                "target": "fake",
                "method": "features",
                "all_zero": "no" if contributions[index].any() else "yes",
                "figure": f"{stem}.png",
            }
        )
    return rows
