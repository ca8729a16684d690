"""The engines that can run a detector, by name: one table, and one interface for all of them.

An engine maps images ``(N, 3, H, W)`` float32 in [0, 1] to logits ``(N,)``. It is built from a file: the checkpoint
itself, its ONNX export or its int8 ONNX export. This module imports neither torch nor a runtime.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.engines.runtimes import Engine, onnx_engine, openvino_engine

BASELINE = "eager"


@dataclass(frozen=True)
class EngineKind:
    """How to build an engine: from which file (pt, onnx or int8), with which packages, on which device."""

    source: str
    build: Callable[[Path, int | None, str], Engine]
    what: str
    packages: tuple[str, ...] = ()
    needs_cuda: bool = False


def _torch_kind(what: str, needs_cuda: bool = False, **options) -> EngineKind:
    """An engine of ``utils.engines.pytorch``, which is imported when it is built."""

    def build(file: Path, threads: int | None, device: str) -> Engine:
        from utils.engines.pytorch import torch_engine

        return torch_engine(file, threads, device, **options)

    return EngineKind("pt", build, what, ("torch",), needs_cuda)


def _onnx_kind(source: str, what: str, needs_cuda: bool = False, **options) -> EngineKind:
    def build(file: Path, threads: int | None, device: str) -> Engine:
        return onnx_engine(file, threads, **options)

    return EngineKind(source, build, what, ("onnxruntime",), needs_cuda)


def _openvino_kind(source: str, what: str, precision: str) -> EngineKind:
    def build(file: Path, threads: int | None, device: str) -> Engine:
        return openvino_engine(file, threads, precision)

    return EngineKind(source, build, what, ("openvino",))


ENGINES: dict[str, EngineKind] = {
    BASELINE: _torch_kind("torch as most people run it: float32, default memory layout"),
    "channels-last": _torch_kind("torch, channels last", channels_last=True),
    "bf16": _torch_kind("torch, channels last, bfloat16 autocast", channels_last=True, precision="bf16"),
    "fp16": _torch_kind("torch, channels last, float16 autocast", channels_last=True, precision="fp16"),
    "compile": _torch_kind("torch.compile with frozen weights", channels_last=True, compiled=True),
    "compile-bf16": _torch_kind("the same in bfloat16", channels_last=True, compiled=True, precision="bf16"),
    "dynamic-int8": _torch_kind("torch, int8 weights of Linear and LSTM layers only", transform="dynamic_int8"),
    "sparse": _torch_kind("torch, the smallest 70 % of all weights set to zero", transform="sparse"),
    "cuda-graph": _torch_kind("torch, half precision, captured CUDA graph", needs_cuda=True, cuda_graph=True),
    "onnx": _onnx_kind("onnx", "ONNX Runtime, float32"),
    "onnx-int8": _onnx_kind("int8", "ONNX Runtime, static int8 (QDQ, per channel)"),
    "tensorrt": _onnx_kind("onnx", "ONNX Runtime through TensorRT", True, providers=("TensorrtExecutionProvider",)),
    "openvino": _openvino_kind("onnx", "OpenVINO, float32", "f32"),
    "openvino-bf16": _openvino_kind("onnx", "OpenVINO, bfloat16", "bf16"),
    "openvino-int8": _openvino_kind("int8", "OpenVINO, static int8, the rest in bfloat16", "bf16"),
}


def missing(name: str, device: str) -> str | None:
    """Why an engine cannot run here; None where it can."""
    kind = ENGINES[name]
    absent = [package for package in kind.packages if importlib.util.find_spec(package) is None]
    if absent:
        return f"{', '.join(absent)} is not installed"
    if kind.needs_cuda and not device.startswith("cuda"):
        return "needs --device cuda"
    if kind.source != "pt" and not kind.needs_cuda and device.startswith("cuda"):
        return "runs on the CPU only"
    if name == "tensorrt":
        import onnxruntime

        if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
            return "this onnxruntime has no TensorRT"
    return None
