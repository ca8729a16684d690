"""Fitting a classical detector: features once, cached by what they were made of, then one call of ``fit``."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.loading import ImageDataset, make_loader
from datasets.spec import Listing
from datasets.splits import TrainingData
from datasets.transforms import EvalTransform
from models.classical import ClassicalDetector
from utils.errors import UserError
from utils.figures import interval_bar_figure, save_figure
from utils.files import atomic_write_bytes, atomic_write_text

FEATURE_VERSION = 2  # raise it when a bank computes something else: cached features are then made anew


def fit_classical(
    detector: ClassicalDetector, data: TrainingData, folder: Path, seed: int, cache: Path, batch_size: int
) -> dict[str, str]:
    """Fit on the training images, write the table and figure of feature importance, return the unreadable images."""
    unreadable: dict[str, str] = {}
    parts = []
    for listings in (data.train, data.valid):
        columns = [listing_features(detector, listing, cache, batch_size, unreadable) for listing in listings]
        x, y = (np.concatenate(column) for column in zip(*columns, strict=True))
        parts.append((x, y))
    detector.fit(parts[0], parts[1], seed)
    write_importance(detector, folder)
    return unreadable


def listing_features(
    detector: ClassicalDetector, listing: Listing, cache: Path, batch_size: int, unreadable: dict[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(N, D)`` float32 and labels ``(N,)`` of the readable images, from the cache where it has them."""
    from tqdm import tqdm

    identity = (FEATURE_VERSION, file_states(listing), detector.geometry, detector.feature_key())
    file = cache / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:20]}.npz"
    if (cached := _read(file)) is not None:
        return cached
    features, labels, failed = [], [], {}
    loader = make_loader(ImageDataset(listing.records, EvalTransform(detector.geometry)), batch_size)
    for batch in tqdm(loader, desc=f"features {listing.name} {listing.split}", unit="batch", disable=None, leave=False):
        failed.update({listing.records[item.index].path: item.reason for item in batch.unreadable})
        if len(batch.images):
            features.append(detector.features(batch.images))
            labels.append(batch.labels.numpy())
    if not features:
        raise UserError(f"expected images in {listing.name}, but none of {len(listing.records)} could be read")
    x, y = np.concatenate(features), np.concatenate(labels)
    unreadable.update(failed)
    if not failed:  # an incomplete result is not worth keeping: the files may be mended
        buffer = io.BytesIO()
        np.savez(buffer, x=x, y=y)
        atomic_write_bytes(file, buffer.getvalue())
    return x, y


def file_states(listing: Listing) -> list[tuple]:
    """What tells the images of a listing from others; a file rewritten with as many bytes has another time."""
    states = []
    for record in listing.records:
        found = os.stat(record.path) if os.path.exists(record.path) else None
        states.append((record.path, record.label, found and (found.st_size, found.st_mtime_ns)))
    return states


def write_importance(detector: ClassicalDetector, folder: Path, top: int = 25) -> None:
    """Write importance.csv with every feature and a figure of the ``top`` ones; nothing for learners without any."""
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


def resolve_embedding(model_args: Sequence[tuple[str, Any]], device: Any) -> tuple[dict[str, Any], dict | None]:
    """Turn ``features=embedding:NAME`` into arguments that rebuild the network without any outside file.

    Returns:
        The model arguments, and the weights of the embedding network where NAME is a checkpoint (else None).
    """
    arguments = dict(model_args)
    features = str(arguments.get("features", ""))
    source = features.removeprefix("embedding:")
    if source == features:
        return arguments, None
    if not Path(source).exists():
        print(f"note: {source} is used with random weights unless --weights is given", file=sys.stderr)
        return {**arguments, "features": "embedding", "embedding": {"model": source, "model_args": {}}}, None
    from utils.checkpoints.file import load_detector

    network, checkpoint = load_detector(source, device)
    embedding = {key: checkpoint[key] for key in ("model", "model_args", "geometry")}
    return {**arguments, "features": "embedding", "embedding": embedding}, network.state_dict()


def _read(file: Path) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["x"], arrays["y"]
    except (OSError, ValueError, KeyError, EOFError):
        return None  # absent or damaged: it is made again
    except Exception as error:  # zipfile.BadZipFile has no other common parent
        print(f"note: the feature cache {file} cannot be read ({error}); it is made again", file=sys.stderr)
        return None
