"""The checkpoint: one self-describing file from which every script rebuilds a detector, loaded without pickle."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.transforms import Geometry
from models.detector import Detector
from models.operating_point import OperatingPoint
from models.registry import create_model
from utils.checkpoint_files import check_checkpoint_file, is_export
from utils.checkpoints.base import assign_bases, describe_bases, with_bases, without_bases
from utils.engines.exported import load_onnx_detector
from utils.errors import UserError
from utils.files import atomic_write_bytes
from utils.runtime import git_commit, versions

FORMAT_VERSION = 1
DESCRIPTION_KEYS = tuple(  # of a checkpoint, without its weights
    "model model_args geometry thresholds calibration fitted_on metrics train_args data seed epoch git_commit "
    "versions".split()
)
REQUIRED_KEYS = ("format_version", "model", "model_args", "state_dict", "geometry", "thresholds", "calibration")
KINDS = {
    **dict.fromkeys(("model_args", "state_dict", "geometry", "calibration", "thresholds", "train_args"), dict),
    **dict.fromkeys(("base", "data", "fitted_on"), list),
    "model": str,
}


def describe_checkpoint(
    detector: Detector, train_args: Mapping[str, Any], data: list[dict], seed: int = 0, epoch: int = 0
) -> dict[str, Any]:
    """Return everything in a new checkpoint except the weights; ``finalize`` fills in operating point and metrics.

    ``train_args`` and ``data`` (see ``TrainingData.describe``) hold plain values only.
    """
    bases = describe_bases(detector)
    return {
        "model": detector.name,
        "model_args": detector.model_args,
        **({"base": bases} if bases else {}),
        "geometry": detector.geometry.to_dict(),
        **OperatingPoint().to_checkpoint(),
        "metrics": {},
        "train_args": dict(train_args),
        "data": data,
        "seed": seed,
        "epoch": epoch,
        "git_commit": git_commit(),
        "versions": versions(),
    }


def save_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: the old file stays whole until the new one is complete on disk.

    Tensors that equal those of its base weights are left out; `load_checkpoint` adds them again.

    The checkpoint is read back with the safe loader first, so that a Namespace, a Path or a numpy scalar in it is
    noticed now and not by whoever loads it.

    Raises:
        UserError: the disk is full or the folder is not writable; the old file is intact.
        TypeError: it holds something other than tensors and plain values.
    """
    # In memory first: on a full disk torch's own writer fails with a message about its archive, not about the disk.
    buffer = io.BytesIO()
    if checkpoint.get("base"):
        checkpoint = without_bases(checkpoint)
    try:
        torch.save({**checkpoint, "format_version": FORMAT_VERSION}, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="meta", weights_only=True)
    except pickle.PickleError as error:
        raise TypeError("expected tensors and plain values only in a checkpoint") from error
    atomic_write_bytes(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU with ``weights_only=True``, check its form and add its base weights.

    Raises:
        UserError: missing, truncated, not a checkpoint, unsafe (it would run code), or of another format version; or
            its base weights are not found.
    """
    path = check_checkpoint_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            archive.infolist()
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loader raises many types; each means that the file is not ours
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        if "Unsupported" in str(error) or "weights_only" in str(error) or "GLOBAL" in str(error):
            reason = "it holds more than tensors and plain values, and loading it could run code"
        raise UserError(f"expected a checkpoint written by train.py at {str(path)!r}, but {reason}") from None
    if not isinstance(checkpoint, dict) or "format_version" not in checkpoint:
        raise UserError(
            f"expected a checkpoint written by train.py at {str(path)!r}, found bare weights; "
            "pass such a file to train.py --weights"
        )
    version = checkpoint["format_version"]
    if not isinstance(version, int) or version != FORMAT_VERSION:
        raise UserError(
            f"expected checkpoint format {FORMAT_VERSION} in {str(path)!r}, found {str(version)[:40]}; "
            "use the version of this project that wrote it, or train again"
        )
    missing = [key for key in REQUIRED_KEYS if key not in checkpoint]
    if missing:
        raise UserError(
            f"expected {', '.join(REQUIRED_KEYS)} in checkpoint {str(path)!r}, found no {', '.join(missing)}"
        )
    odd = [key for key, kind in KINDS.items() if not isinstance(checkpoint.get(key) or kind(), kind)]
    if odd:
        raise UserError(f"expected a {KINDS[odd[0]].__name__} as {odd[0]} of {str(path)!r}, found something else")
    checkpoint["state_dict"] = {key: _as_float(value) for key, value in checkpoint["state_dict"].items()}
    return with_bases(checkpoint, path) if checkpoint.get("base") else checkpoint


def _as_float(value: Any) -> Any:
    """Expand the float16 or scaled int8 tensors of a released file (utils/checkpoints/slimming.py) to float32."""
    if isinstance(value, dict) and value.keys() == {"int8", "scale"} and all(map(torch.is_tensor, value.values())):
        return value["int8"].float() * value["scale"]
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def load_detector(path: str | Path, device: torch.device | str = "cpu") -> tuple[Detector, dict[str, Any]]:
    """Rebuild the detector of a checkpoint in evaluation mode, with its geometry and operating point.

    An export of benchmark.py (``.onnx``) becomes a detector that runs on the CPU, whatever the device.

    Returns:
        The detector, and the checkpoint without its ``state_dict``.

    Raises:
        UserError: as :func:`load_checkpoint`; or the model is no longer registered, or its weights do not fit.
    """
    if is_export(path):
        exported = OnnxModule(path).to(device).eval()
        return exported, exported.exported.description
    checkpoint = load_checkpoint(path)
    try:
        detector = create_model(checkpoint["model"], **checkpoint["model_args"])
        detector.geometry = Geometry(**checkpoint["geometry"])
    except (UserError, TypeError) as error:
        raise UserError(f"cannot rebuild the model of checkpoint {str(path)!r}: {error}") from None
    state_dict = strip_prefixes(checkpoint.pop("state_dict"))
    try:
        detector.load_state_dict(state_dict)
    except RuntimeError as error:
        raise UserError(
            f"expected the weights of {checkpoint['model']} in {str(path)!r}, but {' '.join(str(error).split())[:200]}"
        ) from None
    assign_bases(detector, checkpoint.get("base", []))
    detector.operating_point = OperatingPoint.from_checkpoint(checkpoint)
    return detector.to(device).eval(), checkpoint


class OnnxModule(Detector):
    """An exported detector behind the interface of a Detector; it has neither a gradient nor layers to look into."""

    has_input_gradient = False
    any_size = False

    def __init__(self, file: str | Path) -> None:
        exported = load_onnx_detector(file, threads=torch.get_num_threads())
        super().__init__(exported.geometry.size, mean=(0.0,) * 3, std=(1.0,) * 3, geometry=exported.geometry)
        self.exported = exported
        self.operating_point = exported.operating_point
        self.engine = exported.engine
        self.name = exported.description["model"]
        self.model_args = exported.description.get("model_args") or {}

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, H, W)`` RGB images in [0, 1]; returns logits ``(N,)`` float64 on the images' device."""
        logits = self.exported(images.float().contiguous().cpu().numpy())
        return torch.from_numpy(logits).to(images.device)


def strip_prefixes(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the ``module.`` and ``_orig_mod.`` that DDP and torch.compile put before every key."""
    stripped = dict(state_dict)
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):  # either may be around the other
        if stripped and all(key.startswith(prefix) for key in stripped):
            stripped = {key[len(prefix) :]: value for key, value in stripped.items()}
    return stripped
