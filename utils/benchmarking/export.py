"""Exports a checkpoint as float32 or int8 ONNX and measures how far its answers are from the checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.faces.boxes import with_faces
from datasets.faces.finder import FaceFinder
from datasets.listing.records import Listing
from datasets.listing.spec import open_limited
from utils.benchmarking.images import calibration_images, read_images
from utils.benchmarking.worker import as_floats
from utils.checkpoint_files import SOURCES_SUFFIX
from utils.checkpoints.file import load_detector
from utils.engines.export import export_onnx, quantize_onnx
from utils.engines.exported import load_onnx_detector
from utils.files import atomic_write_bytes

N_IMAGES = 64
BATCH = 8


def write_int8(file: Path, float_file: Path, output: Path, calibration: Listing) -> None:
    """Quantise the float export of a checkpoint on calibration images; write the float export if it is missing."""
    detector, _ = load_detector(file)
    images = calibration_images(calibration, detector.geometry)  # first, so that a bad set is reported at once
    if not float_file.is_file():
        export_onnx(file, float_file)
    quantize_onnx(float_file, output, images, {name for name, _ in detector.named_buffers()})


def copy_sources(checkpoint_file: Path, exported_file: Path) -> None:
    """Copy the test results by source that lie beside a checkpoint, which serve.py shows, to its export."""
    sources = checkpoint_file.with_suffix(SOURCES_SUFFIX)
    if sources.is_file():
        atomic_write_bytes(exported_file.with_suffix(SOURCES_SUFFIX), sources.read_bytes())


def parity_report(
    checkpoint_file: Path, exported_file: Path, data: str | None, finder: FaceFinder | None = None
) -> dict[str, Any]:
    """Compare logits and verdicts on test images of ``data``, or on noise if it is None."""
    detector, _ = load_detector(checkpoint_file)
    exported = load_onnx_detector(exported_file)
    unreadable = 0
    if data:
        records = with_faces(open_limited(data, N_IMAGES), finder).records
        pixels, _, unreadable = read_images(records, detector.geometry)
    else:
        side = detector.geometry.size
        pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, side, side), dtype=np.uint8)
    images = as_floats(pixels)
    batches = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
    with torch.no_grad():
        expected = np.concatenate([detector(torch.from_numpy(batch)).double().numpy() for batch in batches])
    found = np.concatenate([exported(batch) for batch in batches])
    point = detector.operating_point
    verdicts = [point.p_fake(logits) >= point.threshold() for logits in (expected, found)]
    return {
        "engine": exported.description["engine"],
        "images": f"{len(images)} test images of {data}" if data else f"{len(images)} images of noise",
        "unreadable": unreadable,
        "max_logit_difference": float(np.max(np.abs(found - expected))),
        "mean_logit_difference": float(np.mean(np.abs(found - expected))),
        "logit_deviation": float(np.std(expected)),
        "agreement": float(np.mean(verdicts[0] == verdicts[1])),
        "file_bytes": exported_file.stat().st_size,
    }
