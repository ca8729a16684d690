"""Run exported detectors without torch: one ONNX file holds the network and, as metadata, the rest of a checkpoint.

``predict.py --checkpoint model.onnx`` starts in a fraction of the time because nothing here imports torch.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from utils.engines.registry import ENGINES, missing
from utils.errors import UserError

ONNX_FORMAT = 1
PREFIX = "deepfake_image_engine."  # of our keys among the file's metadata_props
REQUIRED_KEYS = ("format", "model", "geometry", "thresholds", "calibration", "source", "engine")

Engine = Callable[[np.ndarray], np.ndarray]


@dataclass
class OnnxDetector:
    """An exported detector: name and function of its engine, geometry, operating point, description."""

    engine: str
    run: Engine
    geometry: Geometry
    operating_point: OperatingPoint
    description: dict[str, Any]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Score ``(N, 3, H, W)`` float32 RGB images in [0, 1]; returns logits ``(N,)`` float64."""
        return self.run(images).astype(np.float64).reshape(-1)


def load_onnx_detector(file: str | Path, engine: str = "auto", threads: int | None = None) -> OnnxDetector:
    """Open an exported detector. Raises UserError as :func:`read_description` and :func:`choose_engine`."""
    description = read_description(Path(file))
    name = choose_engine(engine, description)
    run = exported_engine(name, Path(file), threads)
    point = OperatingPoint.from_checkpoint(description)
    return OnnxDetector(name, run, Geometry(**description["geometry"]), point, description)


def read_description(file: Path) -> dict[str, Any]:
    """Read our metadata: the entries of a checkpoint without its weights, ``source`` and ``engine``.

    Raises:
        UserError: onnxruntime is not installed, or the file is corrupt or not written by this version of benchmark.py.
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
    """Turn the value of --engine into an engine that runs this file on this machine.

    ``auto`` is the engine that the file was exported for; if that is not installed, ONNX Runtime.

    Raises:
        UserError: the engine runs other kinds of files, or is not installed.
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


def exported_engine(name: str, file: Path, threads: int | None = None) -> Engine:
    """Build an engine of ONNX Runtime or OpenVINO from its ONNX file."""
    kind = ENGINES[name]
    build = onnx_engine if kind.package == "onnxruntime" else openvino_engine
    return build(file, threads, **kind.options)


def require(package: str) -> ModuleType:
    """Import an optional package. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"expected the package {package}, which is not installed; pip install {package}") from None


def open_session(file: Path, threads: int | None = None, providers: Sequence[str] = (), optimize: bool = True) -> Any:
    """Open an ONNX Runtime session.

    Raises:
        UserError: onnxruntime is not installed, or the file is not an ONNX model.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # its warnings about shapes and layouts do not concern the user
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    # Idle threads that spin would take the cores away from those that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(file), options, providers=list(providers) or ["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions share no base class
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"expected an ONNX file that can be run at {str(file)!r}, but {reason}; export it again"
        ) from None


def onnx_engine(file: Path, threads: int | None = None, providers: Sequence[str] = ()) -> Engine:
    """Run an ONNX file, float or QDQ int8, in ONNX Runtime."""
    session = open_session(file, threads, providers)
    return lambda images: session.run(["logits"], {"images": images})[0]


@functools.cache
def openvino_core() -> Any:
    """Return the OpenVINO core of this process, which is never closed.

    The CPU plugin of each core installs an alternate signal stack. If cores are closed in another order than last in,
    first out, that of the thread is left dangling, and the next handled signal kills the process.

    Raises:
        UserError: openvino is not installed.
    """
    return require("openvino").Core()


def openvino_engine(file: Path, threads: int | None = None, precision: str = "f32") -> Engine:
    """Run an ONNX file, float or QDQ int8, in OpenVINO; layers that are not int8 compute in ``precision``.

    Raises:
        UserError: openvino is not installed, or cannot read the file.
    """
    core = openvino_core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or os.cpu_count() or 1,
    }
    try:
        compiled = core.compile_model(core.read_model(str(file)), "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:120]
        raise UserError(
            f"expected an ONNX file that OpenVINO can run at {str(file)!r}, but {reason}; export it again"
        ) from None
    request = compiled.create_infer_request()
    return lambda images: request.infer([images])[0].copy()
