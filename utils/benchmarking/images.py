"""Images of a benchmark: test, calibration and adversarial ones, decoded once for all engines."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from datasets.decoding.images import UnreadableImage, read_record
from datasets.listing.records import Listing, Record
from datasets.listing.spec import open_limited
from datasets.transforms import Geometry
from models.detector import Detector
from utils.attacks.gradient import DecisionLogit, attackable, pgd
from utils.benchmarking.worker import as_floats
from utils.errors import UserError
from utils.files import atomic_write_bytes

MIN_CALIBRATION, MAX_CALIBRATION = 16, 128  # images; fewer do not show the ranges of the activations
ATTACK_EPS, ATTACK_STEPS, ATTACK_BATCH = 1 / 255, 10, 4


def read_images(records: Sequence[Record], geometry: Geometry) -> tuple[np.ndarray, np.ndarray, int]:
    """Decode records: pixels ``(N, 3, S, S)`` uint8, their indices ``(N,)``, and the number of unreadable ones.

    These are listed on stderr.

    Raises:
        UserError: no image can be read.
    """

    def read(record: Record) -> np.ndarray | str:
        try:
            return geometry(read_record(record), record.face_for(geometry)).transpose(2, 0, 1)
        except UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(read, records))
    kept = [index for index, result in enumerate(results) if isinstance(result, np.ndarray)]
    if not kept:
        raise UserError(f"expected readable images, but none of {len(records)} could be read")
    for record, result in zip(records, results, strict=True):
        if isinstance(result, str):
            print(f"unreadable: {record.path}: {result}", file=sys.stderr)
    return np.stack([results[index] for index in kept]), np.array(kept), len(records) - len(kept)


def open_calibration(text: str) -> Listing:
    """Open the training images on which int8 ranges are fitted. Raises UserError: there is no training split."""
    try:
        return open_limited(text, MAX_CALIBRATION, "train")
    except UserError as error:
        raise UserError(f"expected a training split to calibrate int8 on, but {error}") from None


def calibration_images(listing: Listing, geometry: Geometry) -> np.ndarray:
    """Decode calibration images ``(N, 3, S, S)`` float32 in [0, 1]. Raises UserError: fewer than MIN_CALIBRATION."""
    pixels = read_images(listing.records, geometry)[0]
    if len(pixels) < MIN_CALIBRATION:
        raise UserError(
            f"expected at least {MIN_CALIBRATION} training images to calibrate int8, got {len(pixels)} in "
            f"{listing.name}; name a larger set with --calibration-data"
        )
    return as_floats(pixels)


def adversarial_images(detector: Detector, images: np.ndarray, labels: np.ndarray, cache: Path) -> np.ndarray:
    """Attack a detector in float32 with PGD (Linf, ATTACK_EPS) and keep the images, float32 in [0, 1], in a file."""
    if cache.is_file():
        return np.load(cache)
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
