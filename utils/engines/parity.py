"""How far an exported file's answers are from its checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.benchmarking.data import open_part, read_images
from utils.checkpoints.file import load_detector
from utils.engines.exported import load_onnx_detector

N_IMAGES = 64
BATCH = 8


def parity_report(checkpoint_file: Path, exported_file: Path, data: str | None) -> dict[str, Any]:
    """Compare logits and verdicts on test images of ``data``, or on generated noise without it."""
    detector, _ = load_detector(checkpoint_file)
    exported = load_onnx_detector(exported_file)
    if data:
        listing = open_part(data, N_IMAGES)
        pixels = read_images(listing.records, detector.geometry)[0]
    else:
        side = detector.geometry.size
        pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, side, side), dtype=np.uint8)
    images = np.divide(pixels, np.float32(255), dtype=np.float32)
    batches = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
    with torch.no_grad():
        expected = np.concatenate([detector(torch.from_numpy(batch)).double().numpy() for batch in batches])
    found = np.concatenate([exported(batch) for batch in batches])
    point = detector.operating_point
    verdicts = [point.p_fake(logits) >= point.threshold() for logits in (expected, found)]
    return {
        "engine": exported.description["engine"],
        "images": f"{len(images)} test images of {data}" if data else f"{len(images)} images of noise",
        "max_logit_difference": float(np.max(np.abs(found - expected))),
        "mean_logit_difference": float(np.mean(np.abs(found - expected))),
        "logit_deviation": float(np.std(expected)),
        "agreement": float(np.mean(verdicts[0] == verdicts[1])),
        "file_bytes": exported_file.stat().st_size,
        "size_ratio": exported_file.stat().st_size / checkpoint_file.stat().st_size,
    }
