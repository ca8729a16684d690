"""The subject of a benchmark: a checkpoint with its exports, its test images and its adversarial images."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.faces.boxes import with_faces
from datasets.faces.finder import FaceFinder, open_finder
from datasets.listing.spec import open_limited
from models.operating_point import OperatingPoint
from utils.benchmarking.export import write_int8
from utils.benchmarking.images import adversarial_images, open_calibration, read_images
from utils.checkpoints.file import load_detector
from utils.engines.export import export_onnx
from utils.engines.registry import ENGINES
from utils.errors import UserError
from utils.files import file_digest
from utils.runtime import hardware, versions
from utils.scoring.cache import labelled_digest, listing_digest
from utils.source import code_digest

CODE = ("models/**/*.py", "utils/benchmarking/subject.py", "utils/benchmarking/cells.py")


@dataclass(frozen=True)
class Subject:
    """Everything that engines are measured on.

    Attributes:
        files: the checkpoint and its exports, by kind (pt, onnx, int8).
        images: test images ``(N, 3, S, S)`` uint8, with ``labels`` ``(N,)``.
        adversarial: ``(M, 3, S, S)`` float32 with ``adversarial_labels``; None for a detector without a gradient.
        facts: identifies all of this, by digests.
        n_unreadable: number of test images that could not be read.
    """

    files: dict[str, Path]
    operating_point: OperatingPoint
    images: np.ndarray
    labels: np.ndarray
    adversarial: np.ndarray | None
    adversarial_labels: np.ndarray
    facts: dict[str, Any]
    n_unreadable: int

    def file(self, engine: str) -> Path:
        """File that an engine is built from. Raises UserError: this checkpoint could not be exported to it."""
        source = ENGINES[engine].source
        if source not in self.files:
            raise UserError(f"this detector has no {source} export")
        return self.files[source]

    def key(self, engine: str) -> dict[str, Any]:
        """Everything that decides the figures of an engine; those of another key are measured again."""
        quantised = ENGINES[engine].source == "int8"
        return {key: value for key, value in self.facts.items() if quantised or key != "calibration"}


def open_subject(
    file: Path,
    data: str,
    calibration_data: str,
    limit: int | None,
    n_adversarial: int,
    engines: Sequence[str],
    cache: Path,
    face_detector: str | None = None,
) -> Subject:
    """Decode the test images, write the exports that the engines need, and attack the detector; both are cached.

    Raises:
        UserError: a spec is wrong, or no image can be read.
    """
    detector, _ = load_detector(file)
    finder = open_finder(face_detector, detector.geometry.needs_face)
    listing = with_faces(open_limited(data, limit), finder)
    images, kept, unreadable = read_images(listing.records, detector.geometry)
    labels = np.array([listing.records[index].label for index in kept])
    origin = {"checkpoint": file_digest(file), "code": code_digest(*CODE), "versions": versions()}
    folder = cache / hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]
    test_digest = labelled_digest(listing)
    chosen = np.linspace(0, len(images) - 1, min(n_adversarial, len(images))).astype(int)
    adversarial = None
    if len(chosen) and detector.has_input_gradient:
        attacked = folder / f"pgd-{test_digest[:16]}-{len(chosen)}.npy"
        adversarial = adversarial_images(detector, images[chosen], labels[chosen], attacked)
    sources = {ENGINES[name].source for name in engines}
    exports, calibration = write_exports(file, sources, folder, calibration_data, finder)
    facts = {
        **origin,
        "hardware": hardware(),
        "data": test_digest,
        "n_images": len(images),
        "n_adversarial": len(chosen),
        "calibration": calibration,
    }
    files = {"pt": file, **exports}
    point = detector.operating_point
    return Subject(files, point, images, labels, adversarial, labels[chosen], facts, unreadable)


def write_exports(
    file: Path, sources: set[str], folder: Path, calibration_data: str, finder: FaceFinder | None
) -> tuple[dict[str, Path], str | None]:
    """Write the missing exports; a failure is reported on stderr and leaves its export out.

    Returns:
        The exports by kind, and the digest of the calibration images of int8.
    """
    exports: dict[str, Path] = {}
    digest = None
    float_file = folder / "model.onnx"
    try:
        if sources - {"pt"}:
            if not float_file.is_file():
                export_onnx(file, float_file)
            exports["onnx"] = float_file
        if "int8" in sources:
            calibration = with_faces(open_calibration(calibration_data), finder)
            digest = listing_digest(calibration)
            int8_file = folder / f"model-int8-{digest[:16]}.onnx"
            if not int8_file.is_file():
                write_int8(file, float_file, int8_file, calibration)
            exports["int8"] = int8_file
    except UserError as error:
        print(f"{file}: {error}", file=sys.stderr)
    return exports, digest
