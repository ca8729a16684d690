"""The subject of a benchmark: a checkpoint with its exports, its test images and its adversarial images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.records import Listing
from datasets.spec import open_records, parse_spec
from models.operating_point import OperatingPoint
from utils.benchmarking.export import write_int8
from utils.benchmarking.images import adversarial_images, open_calibration, read_images
from utils.checkpoints.file import load_detector
from utils.engines.export import export_onnx
from utils.engines.registry import ENGINES
from utils.errors import UserError
from utils.scoring.cache import file_digest


@dataclass
class Subject:
    """Everything that engines are measured on.

    Attributes:
        files: the checkpoint and its exports, by kind (pt, onnx, int8).
        images: test images ``(N, 3, S, S)`` uint8, with ``labels`` ``(N,)``.
        adversarial: ``(M, 3, S, S)`` float32 with ``adversarial_labels``; None for a detector without a gradient.
        key: identifies all of this; a cell with another key is measured again.
        n_unreadable: number of test images that could not be read.
    """

    files: dict[str, Path]
    operating_point: OperatingPoint
    images: np.ndarray
    labels: np.ndarray
    adversarial: np.ndarray | None
    adversarial_labels: np.ndarray | None
    key: dict[str, Any]
    n_unreadable: int

    def file(self, engine: str) -> Path:
        """File that an engine is built from. Raises UserError: this checkpoint could not be exported to it."""
        source = ENGINES[engine].source
        if source not in self.files:
            raise UserError(f"this detector has no {source} export")
        return self.files[source]


def open_subject(
    file: Path,
    data: str,
    calibration_data: str,
    limit: int | None,
    n_adversarial: int,
    engines: Sequence[str],
    cache: Path,
) -> Subject:
    """Decode the test images, write the exports that the engines need, and attack the detector; both are cached.

    Raises:
        UserError: a spec is wrong, an image has no label, or no image can be read.
    """
    detector, _ = load_detector(file)
    listing = open_records(parse_spec(data).limited(limit))
    images, kept, unreadable = read_images(listing.records, detector.geometry)
    for path, reason in unreadable:
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    labels = np.array([listing.records[index].label for index in kept])
    digest = file_digest(file)
    folder = cache / digest[:16]
    chosen = np.linspace(0, len(images) - 1, min(n_adversarial, len(images))).astype(int)
    adversarial = None
    if len(chosen) and detector.has_input_gradient:
        attacked = folder / f"pgd-{listing.fingerprint}-{len(chosen)}.npy"
        adversarial = adversarial_images(detector, images[chosen], labels[chosen], attacked)
    sources = {ENGINES[name].source for name in engines}
    calibration = open_calibration(calibration_data) if "int8" in sources else None
    key = {
        "checkpoint": digest,
        "data": listing.fingerprint,
        "n_images": len(images),
        "n_adversarial": len(chosen),
        "calibration": calibration and calibration.fingerprint,
    }
    files = {"pt": file, **write_exports(file, sources, folder, calibration)}
    return Subject(files, detector.operating_point, images, labels, adversarial, labels[chosen], key, len(unreadable))


def write_exports(file: Path, sources: set[str], folder: Path, calibration: Listing | None) -> dict[str, Path]:
    """Write the missing exports; a failure is reported on stderr and leaves its export out."""
    exported: dict[str, Path] = {}
    float_file = folder / "model.onnx"
    try:
        if sources - {"pt"}:
            if not float_file.is_file():
                export_onnx(file, float_file)
            exported["onnx"] = float_file
        if calibration:
            int8_file = folder / f"model-int8-{calibration.fingerprint}.onnx"
            if not int8_file.is_file():
                write_int8(file, float_file, int8_file, calibration)
            exported["int8"] = int8_file
    except UserError as error:
        print(f"{file}: {error}", file=sys.stderr)
    return exported
