"""What is benchmarked: a checkpoint with its test images, its exports and its adversarial images, kept in a cache."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.benchmarking.cells import Subject, TestSet
from utils.benchmarking.data import adversarial_images, calibration_images, open_part, read_images
from utils.checkpoints.file import load_detector
from utils.engines.export import INT8_RECIPE, export_onnx, quantize_onnx
from utils.engines.registry import ENGINES
from utils.errors import UserError
from utils.scoring.cache import file_digest


@dataclass
class Sources:
    """Where exports are kept, and on what int8 is calibrated."""

    cache: Path
    calibration_data: str
    calibration_images: int


def open_subject(
    file: Path, data: str, limit: int | None, n_adversarial: int, engines: Sequence[str], sources: Sources
) -> tuple[Subject, dict[str, Any], int]:
    """Decode the test images, export what the engines need, and attack eager.

    Returns:
        The subject, what its cells depend on beside the settings, and the number of unreadable images.
    """
    detector, _ = load_detector(file)
    listing = open_part(data, limit)
    images, kept, unreadable = read_images(listing.records, detector.geometry)
    for path, reason in unreadable:
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    test = TestSet(images, np.array([listing.records[index].label for index in kept]))
    digest = file_digest(file)
    cache = sources.cache / digest[:16]
    if n_adversarial:
        chosen = np.linspace(0, len(images) - 1, min(n_adversarial, len(images))).astype(int)
        attacked = cache / f"pgd-{listing.fingerprint}-{len(chosen)}.npy"
        test.adversarial = adversarial_images(file, images[chosen], test.labels[chosen], attacked)
        test.adversarial_labels = test.labels[chosen]
    files = {"pt": file, **export_sources(file, engines, cache, sources)}
    key = {
        "checkpoint": digest,
        "data": listing.fingerprint,
        "n_images": len(images),
        "n_adversarial": n_adversarial,
        "calibration": [sources.calibration_data, sources.calibration_images],
    }
    return Subject(files, detector.operating_point, test), key, len(unreadable)


def export_sources(file: Path, engines: Sequence[str], cache: Path, sources: Sources) -> dict[str, Path]:
    """Export what the chosen engines run; what cannot be exported is said on stderr and left out."""
    wanted = {ENGINES[name].source for name in engines} - {"pt"}
    exported: dict[str, Path] = {}
    try:
        if wanted:
            float_file = cache / "model.onnx"
            if not float_file.is_file():
                export_onnx(file, float_file)
            exported["onnx"] = float_file
        if "int8" in wanted:
            recipe = repr((sources.calibration_data, sources.calibration_images, INT8_RECIPE))
            int8_file = cache / f"model-int8-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.onnx"
            if not int8_file.is_file():
                write_int8(file, float_file, int8_file, sources.calibration_data, sources.calibration_images)
            exported["int8"] = int8_file
    except UserError as error:
        print(f"{file}: {error}", file=sys.stderr)
    return exported


def write_int8(file: Path, float_file: Path, output: Path, data: str, count: int) -> None:
    """Quantise the float export of a checkpoint, made if need be, on ``count`` training images of ``data``."""
    detector = load_detector(file)[0]
    images = calibration_images(data, detector.geometry, count)  # first: what is wrong with them shows at once
    if not float_file.is_file():
        export_onnx(file, float_file)
    quantize_onnx(float_file, output, images, {name for name, _ in detector.named_buffers()})
