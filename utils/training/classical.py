"""Fitting a classical detector: compute the features of all images, or read them from a cache, and call ``fit``."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from datasets.listing.spec import Listing
from datasets.listing.splits import TrainingData
from datasets.listing.storage import file_state
from datasets.loading import ImageDataset, make_loader
from datasets.transforms import EvalTransform
from models.classical import ClassicalDetector
from models.detector import Detector
from utils.checkpoints.file import load_detector, save_checkpoint
from utils.checkpoints.weights import as_earlier_data
from utils.errors import UserError
from utils.figures import interval_bar_figure, save_figure
from utils.files import atomic_write_bytes, atomic_write_text
from utils.training.log import log
from utils.training.recipe import Recipe
from utils.training.state import describe_run

FEATURE_VERSION = 2  # increase it when a bank changes: cached features are then computed again
FEATURE_CACHE = "data/features"


def fit_classical(
    recipe: Recipe, detector: ClassicalDetector, data: TrainingData, folder: Path, cache: Path, workers: int = 0
) -> dict[str, str]:
    """Fit on the training images; write best.pt and the feature importance. Returns the unreadable images.

    Raises:
        UserError: no image can be read.
    """
    unreadable: dict[str, str] = {}

    def features(listings: Sequence[Listing]) -> tuple[np.ndarray, np.ndarray]:
        parts = [listing_features(detector, part, cache, unreadable, recipe.batch_size, workers) for part in listings]
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    detector.fit(features(data.train), features(data.valid), recipe.seed)
    write_importance(detector, folder)
    description = describe_run(recipe, detector, data.describe(), epoch=1)
    save_checkpoint(folder / "best.pt", {**description, "state_dict": detector.state_dict()})
    return unreadable


def listing_features(
    detector: ClassicalDetector,
    listing: Listing,
    cache: Path,
    unreadable: dict[str, str],
    batch_size: int,
    workers: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return features ``(N, D)`` float32 and labels ``(N,)`` of the readable images, from the cache if possible."""
    files = [(record.path, record.label, file_state(record.path), *(record.faces or ())) for record in listing.records]
    identity = (FEATURE_VERSION, files, detector.geometry, detector.feature_key())
    file = cache / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:20]}.npz"
    if (cached := read_features(file)) is not None:
        return cached
    features, labels, failed = [], [], {}
    loader = make_loader(ImageDataset(listing.records, EvalTransform(detector.geometry)), batch_size, workers=workers)
    for batch in tqdm(loader, desc=f"features {listing.name} {listing.split}", unit="batch", disable=None, leave=False):
        failed.update({listing.records[item.index].path: item.reason for item in batch.unreadable})
        if len(batch.images):
            features.append(detector.features(batch.images))
            labels.append(batch.labels.numpy())
    if not features:
        raise UserError(f"expected images in {listing.name}, but none of {len(listing.records)} could be read")
    x, y = np.concatenate(features), np.concatenate(labels)
    unreadable.update(failed)
    if not failed:  # an incomplete result is not cached, since the files may be repaired
        buffer = io.BytesIO()
        np.savez(buffer, x=x, y=y)
        atomic_write_bytes(file, buffer.getvalue())
    return x, y


def write_importance(detector: ClassicalDetector, folder: Path, top: int = 25) -> None:
    """Write importance.csv with every feature and a figure of the ``top`` ones, if the learner reports importances."""
    importance = np.asarray(detector.estimator.importances(), dtype=np.float64)
    if not len(importance) or not importance.sum():
        return
    order = np.argsort(-importance, kind="stable").tolist()
    share = (importance / importance.sum()).tolist()
    names = detector.feature_names()
    rows = "".join(f'"{names[i]}",{share[i]!r}\n' for i in order)
    atomic_write_text(folder / "importance.csv", "feature,share\n" + rows)
    shown = order[:top]
    figure = interval_bar_figure(
        [names[i] for i in shown], [share[i] for i in shown], [None] * len(shown), x_label="Share of importance"
    )
    save_figure(figure, folder / "importance")


def resolve_embedding(model_args: Mapping[str, Any], device: torch.device) -> tuple[dict[str, Any], Detector | None]:
    """Turn ``features=embedding:NAME`` into arguments that rebuild the network without another file.

    Returns:
        The model arguments, and the embedding network if NAME is a checkpoint.
    """
    arguments = dict(model_args)
    features = str(arguments.get("features", ""))
    source = features.removeprefix("embedding:")
    if source in (features, ""):  # no embedding, or one without a name, which create_model refuses
        return arguments, None
    if not Path(source).exists():
        log(f"note: {source} has random weights unless you pass --weights")
        return {**arguments, "features": "embedding", "embedding": {"model": source, "model_args": {}}}, None
    network, checkpoint = load_detector(source, device)
    network.earlier_data = as_earlier_data(checkpoint)
    embedding = {key: checkpoint[key] for key in ("model", "model_args", "geometry")}
    return {**arguments, "features": "embedding", "embedding": embedding}, network


def read_features(file: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read cached features; None if the file is absent or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["x"], arrays["y"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log(f"note: cannot read the feature cache {file} ({error}); computing the features again")
        return None
