"""The images of a benchmark: test, calibration and adversarial ones, decoded once for all engines."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from datasets.images import UnreadableImage, read_image
from datasets.spec import DatasetSpec, Listing, Record, open_records, parse_spec
from datasets.transforms import Geometry
from utils.errors import UserError
from utils.files import atomic_write_bytes

MIN_CALIBRATION = 16  # images; fewer do not show the ranges of the activations
ATTACK_EPS, ATTACK_STEPS, ATTACK_BATCH = 1 / 255, 10, 4


def open_part(text: str, limit: int | None, split: str | None = None) -> Listing:
    """Open a spec with at most ``limit`` images, balanced over the classes.

    Raises:
        UserError: the spec is wrong or has no such split.
    """
    spec = parse_spec(text)
    options = dict(spec.options)
    if split:
        options["split"] = split
    if limit:
        options["limit"] = str(min(limit, int(options.get("limit", limit))))
    return open_records(DatasetSpec(spec.kind, spec.location, options))


def read_images(records: Sequence[Record], geometry: Geometry) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """Decode records; returns pixels ``(N, 3, S, S)`` uint8, the indices ``(N,)`` of the readable ones, and the others.

    The others are ``(path, reason)``.
    """

    def read(record: Record) -> np.ndarray | str:
        try:
            return geometry(read_image(record.path)).transpose(2, 0, 1)
        except UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(read, records))
    kept = [index for index, result in enumerate(results) if isinstance(result, np.ndarray)]
    unreadable = [(records[index].path, result) for index, result in enumerate(results) if isinstance(result, str)]
    if not kept:
        raise UserError(f"expected images that can be read, but none of {len(records)} could be")
    return np.stack([results[index] for index in kept]), np.array(kept), unreadable


def calibration_images(text: str, geometry: Geometry, count: int) -> np.ndarray:
    """Training images ``(N, 3, S, S)`` float32 in [0, 1] on which int8 ranges are fitted.

    Raises:
        UserError: fewer than MIN_CALIBRATION, or no training split: the test images are not for calibration.
    """
    try:
        listing = open_part(text, count, "train")
    except UserError as error:
        raise UserError(f"expected a training split to calibrate int8 on, but {error}") from None
    pixels = read_images(listing.records, geometry)[0]
    if len(pixels) < MIN_CALIBRATION:
        raise UserError(
            f"expected at least {MIN_CALIBRATION} training images to calibrate int8, got {len(pixels)} in {text}; "
            "name a larger set with --calibration-data"
        )
    return np.divide(pixels, np.float32(255), dtype=np.float32)


def adversarial_images(checkpoint_file: Path, images: np.ndarray, labels: np.ndarray, cache: Path) -> np.ndarray | None:
    """Attack float32 eager with PGD (Linf, ATTACK_EPS); the images, float32 in [0, 1], are then shown to every engine.

    Returns None for detectors without a gradient. They are kept in the file ``cache``.
    """
    import torch

    from utils.attacks.gradient import DecisionLogit, attackable, pgd
    from utils.checkpoints.file import load_detector

    if cache.is_file():
        return np.load(cache)
    detector = load_detector(checkpoint_file)[0]
    if not detector.has_input_gradient:
        return None
    detector.to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    attacked = []
    with attackable(detector):
        for first in range(0, len(images), ATTACK_BATCH):
            part = slice(first, first + ATTACK_BATCH)
            x = torch.from_numpy(images[part]).float().div_(255).contiguous(memory_format=torch.channels_last)
            y = torch.from_numpy(labels[part]).float()
            attacked.append(pgd(DecisionLogit(detector), x, y, ATTACK_EPS, steps=ATTACK_STEPS).contiguous().numpy())
    result = np.concatenate(attacked)
    buffer = io.BytesIO()
    np.save(buffer, result)
    atomic_write_bytes(cache, buffer.getvalue())
    return result
