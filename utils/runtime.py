"""The machine and the code of a run: device, precision, threads, versions, commit."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from utils.distributed import join_team
from utils.errors import UserError
from utils.files import ROOT

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """Where and how a script computes: device, arithmetic, loader processes."""

    device: torch.device
    dtype: torch.dtype
    workers: int


def set_up(
    device: str = "auto", precision: str = "auto", workers: int | None = None, threads: int | None = None
) -> Machine:
    """Turn the flags of ``utils.args.add_device_group`` into a machine; meet the other processes under torchrun.

    By default a CPU gets no loader processes, because the model keeps its cores busy.

    Raises:
        UserError: this machine has no such device, or the other processes cannot be reached.
    """
    found = pick_device(device)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        join_team(found)
    set_threads(threads)
    if workers is None:
        workers = 0 if found.type == "cpu" else max(2, min(8, (os.cpu_count() or 2) - 1))
    return Machine(found, pick_precision(precision, found, training=False), workers)


def pick_device(name: str = "auto") -> torch.device:
    """Turn the value of --device into a device that exists.

    Raises:
        UserError: the name is unknown or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    available = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if device is None or device.type not in available:  # mps lacks float64, in which logits are added up
        raise UserError(f"expected --device auto, cpu, cuda or cuda:N, got {name!r}")
    if (device.index or 0) >= available[device.type]:
        raise UserError(f"expected a --device of this machine, got {name!r}; found {available}")
    return device


def pick_precision(name: str, device: torch.device, training: bool) -> torch.dtype:
    """Turn the value of --precision into a dtype; ``auto`` scores in float32 so that scores agree everywhere."""
    if name != "auto":
        return PRECISIONS[name]
    if not training:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and has_fast_bf16():
        return torch.bfloat16
    return torch.float32


def has_fast_bf16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text(errors="ignore")


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Return the autocast context of a dtype, which changes nothing for float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def depthwise_in_fp32(model: torch.nn.Module) -> None:
    """Exclude depthwise convolutions from bfloat16 autocast on a CPU.

    oneDNN has no fast bfloat16 gradient for them: on EfficientNet-B0 a training step with all layers in bfloat16
    takes about twice as long as one with these layers in float32 and the others in bfloat16.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.groups == module.in_channels > 1:
            module.__class__ = type("Float32" + type(module).__name__, (_Float32Forward, type(module)), {})


class _Float32Forward:
    """Mixed into a convolution class by :func:`depthwise_in_fp32`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())  # type: ignore[misc]


def set_threads(threads: int | None) -> None:
    """Limit torch's CPU threads; OpenCV gets one, because several images are decoded at a time."""
    import cv2

    cv2.setNumThreads(1)
    if threads:
        torch.set_num_threads(threads)


# The libraries that decide numbers, by the name they are imported under.
LIBRARIES = {
    "torch": "torch",
    "timm": "timm",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface-hub",
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "PIL": "Pillow",
    "pillow_heif": "pillow-heif",
    "albumentations": "albumentations",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "torch_pruning": "torch-pruning",
    "torchattacks": "torchattacks",
}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that decide numbers."""
    found = {library: version for library in LIBRARIES.values() if (version := _version(library))}
    return {"python": platform.python_version(), **found}


@functools.cache  # every cell and every scores file asks
def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the short hash of the commit, followed by ``+`` if files differ from it; None outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


# Vector instructions of x86 processors, which decide how fast int8 and bfloat16 are; the widest first.
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}


def hardware() -> str:
    """Return a line that names the processor and, if there is one, the GPU."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = name_processor(cpuinfo.read_text(errors="ignore") if cpuinfo.exists() else "")
    text = f"{os.cpu_count()} x {processor or platform.processor() or platform.machine()}"
    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def name_processor(cpuinfo: str) -> str:
    """Return the name and the widest vector instructions of a processor: ``AMD EPYC (AVX2)``; empty if unknown."""
    named, flags = (re.search(rf"^{key}\s*: (.*)", cpuinfo, re.MULTILINE) for key in ("model name", "flags"))
    known = set(flags[1].split()) if flags else set()
    widest = next((f" ({name})" for flag, name in INSTRUCTIONS.items() if flag in known), "")
    return named[1].strip() + widest if named else ""


def run_facts(command: str) -> dict[str, Any]:
    """What every results file records about its run: command, hardware, git_commit and versions."""
    return {"command": command, "hardware": hardware(), "git_commit": git_commit(), "versions": versions()}
