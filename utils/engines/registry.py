"""The engines that can run a detector, by name.

An engine maps images ``(N, 3, H, W)`` float32 in [0, 1] to logits ``(N,)``. It runs a file: a checkpoint
(``utils.engines.pytorch``), its ONNX export or its int8 ONNX export (``utils.engines.exported``).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

BASELINE = "eager"
TENSORRT = "TensorrtExecutionProvider"


@dataclass(frozen=True)
class EngineKind:
    """An engine: the package that runs it, its kind of file (pt, onnx or int8), and the options of its function."""

    package: str
    source: str
    what: str
    options: dict[str, Any] = field(default_factory=dict)
    needs_cuda: bool = False


def _torch(what: str, needs_cuda: bool = False, **options: Any) -> EngineKind:
    return EngineKind("torch", "pt", what, options, needs_cuda)


ENGINES: dict[str, EngineKind] = {
    BASELINE: _torch("torch with its defaults: float32, contiguous memory layout"),
    "channels-last": _torch("torch, channels last", channels_last=True),
    "bf16": _torch("torch, channels last, bfloat16 autocast", channels_last=True, precision="bf16"),
    "fp16": _torch("torch, channels last, float16 autocast", channels_last=True, precision="fp16"),
    "compile": _torch("torch.compile with frozen weights", channels_last=True, compiled=True),
    "compile-bf16": _torch("the same in bfloat16", channels_last=True, compiled=True, precision="bf16"),
    "dynamic-int8": _torch("torch, int8 weights in Linear and LSTM layers only", transform="dynamic_int8"),
    "sparse": _torch("torch, the smallest 70 % of all weights set to zero", transform="sparse"),
    "cuda-graph": _torch("torch, half precision, captured CUDA graph", needs_cuda=True, cuda_graph=True),
    "onnx": EngineKind("onnxruntime", "onnx", "ONNX Runtime, float32"),
    "onnx-int8": EngineKind("onnxruntime", "int8", "ONNX Runtime, static int8 (transformers: int8 weights only)"),
    "tensorrt": EngineKind(
        "onnxruntime", "onnx", "ONNX Runtime through TensorRT", {"providers": (TENSORRT,)}, needs_cuda=True
    ),
    "openvino": EngineKind("openvino", "onnx", "OpenVINO, float32", {"precision": "f32"}),
    "openvino-bf16": EngineKind("openvino", "onnx", "OpenVINO, bfloat16", {"precision": "bf16"}),
    "openvino-int8": EngineKind(
        "openvino", "int8", "OpenVINO, the same file, the rest bfloat16", {"precision": "bf16"}
    ),
}


def missing(name: str, device: str) -> str | None:
    """Return the reason why an engine cannot run on this machine, None if it can."""
    kind = ENGINES[name]
    if importlib.util.find_spec(kind.package) is None:
        return f"{kind.package} is not installed"
    if kind.needs_cuda and not device.startswith("cuda"):
        return "needs --device cuda"
    if kind.source != "pt" and not kind.needs_cuda and device.startswith("cuda"):
        return "runs on the CPU only"
    if name == "tensorrt":
        import onnxruntime

        if TENSORRT not in onnxruntime.get_available_providers():
            return "this onnxruntime lacks TensorRT"
    return None
