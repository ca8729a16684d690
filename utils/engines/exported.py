"""A detector as one ONNX file: the network, and as metadata all that a checkpoint knows but the weights.

Nothing here imports torch, so `predict.py --checkpoint model.onnx` starts in a fraction of the time.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from utils.engines.registry import ENGINES, missing
from utils.engines.runtimes import Engine, open_session
from utils.errors import UserError

ONNX_FORMAT = 1
PREFIX = "deepfake_image_engine."  # of our keys among the file's metadata_props
REQUIRED_KEYS = ("format", "model", "geometry", "thresholds", "calibration", "source", "engine")


@dataclass
class OnnxDetector:
    """An exported detector: its engine, how to prepare an image, how to read a logit, and its description."""

    run: Engine
    geometry: Geometry
    operating_point: OperatingPoint
    description: dict[str, Any]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Score ``(N, 3, H, W)`` float32 RGB images in [0, 1]; returns logits ``(N,)`` float64."""
        return self.run(images).astype(np.float64).reshape(-1)


def is_onnx(path: str | Path) -> bool:
    """Tell an exported detector from a checkpoint of train.py by its suffix."""
    return Path(path).suffix.lower() == ".onnx"


def read_description(file: Path) -> dict[str, Any]:
    """Read our metadata: what a checkpoint holds beside the weights, and ``source`` and ``engine``.

    Raises:
        UserError: onnxruntime is not installed, or the file is corrupt, of another program or of another version.
    """
    entries = open_session(file, 1, optimize=False).get_modelmeta().custom_metadata_map
    try:
        found = {key.removeprefix(PREFIX): json.loads(entries[key]) for key in entries if key.startswith(PREFIX)}
    except json.JSONDecodeError as error:
        raise UserError(f"expected JSON as metadata of {str(file)!r}, got {error.msg}; export it again") from None
    absent = [key for key in REQUIRED_KEYS if key not in found]
    if absent:
        raise UserError(
            f"expected an ONNX file written by benchmark.py --export at {str(file)!r}, found one without "
            f"{', '.join(absent)} in its metadata; export the checkpoint again"
        )
    if found["format"] != ONNX_FORMAT:
        raise UserError(
            f"expected ONNX export format {ONNX_FORMAT} in {str(file)!r}, found {found['format']}; "
            "export it again with this version"
        )
    return found


def choose_engine(name: str, description: dict[str, Any]) -> str:
    """Turn the value of --engine into an engine that runs this file here.

    ``auto`` is the engine that the file was exported for; where it is not installed, ONNX Runtime.

    Raises:
        UserError: an engine of another kind of file, or one that is not installed.
    """
    source = description["source"]
    if name == "auto":
        wanted = description["engine"]
        reason = missing(wanted, "cpu")
        if reason is None:
            return wanted
        fallback = "onnx" if source == "onnx" else "onnx-int8"
        print(f"{wanted}: {reason}; running in {fallback}", file=sys.stderr)
        return fallback
    fitting = [key for key, kind in ENGINES.items() if kind.source == source]
    if name not in fitting:
        raise UserError(f"expected --engine auto, {', '.join(fitting)} for this ONNX file, got {name}")
    if reason := missing(name, "cpu"):
        raise UserError(f"expected an --engine that can run here, got {name}: {reason}")
    return name


def load_onnx_detector(file: str | Path, engine: str = "auto", threads: int | None = None) -> OnnxDetector:
    """Open an exported detector.

    Raises:
        UserError: as :func:`read_description` and :func:`choose_engine`.
    """
    description = read_description(Path(file))
    name = choose_engine(engine, description)
    run = ENGINES[name].build(Path(file), threads, "cpu")
    point = OperatingPoint.from_checkpoint(description)
    return OnnxDetector(run, Geometry(**description["geometry"]), point, description)
