"""Engines that run an exported ONNX file without torch: ONNX Runtime and OpenVINO.

An engine maps images ``(N, 3, H, W)`` float32 in [0, 1] to logits ``(N,)`` float32.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from utils.errors import UserError

Engine = Callable[[np.ndarray], np.ndarray]


def require(package: str) -> ModuleType:
    """Import an optional package. Raises UserError: it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"expected the package {package}, which is not installed; pip install {package}") from None


def open_session(file: Path, threads: int | None = None, providers: Sequence[str] = (), optimize: bool = True) -> Any:
    """Open an ONNX Runtime session.

    Raises:
        UserError: onnxruntime is not installed, or the file is no ONNX model.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # its warnings about shapes and layouts are not the user's business
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


def openvino_engine(file: Path, threads: int | None = None, precision: str = "f32") -> Engine:
    """Run an ONNX file, float or QDQ int8, in OpenVINO; layers that are not int8 compute in ``precision``.

    Raises:
        UserError: openvino is not installed, or it cannot read the file.
    """
    openvino = require("openvino")
    core = openvino.Core()
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
