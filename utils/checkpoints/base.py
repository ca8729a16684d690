"""Base weights: the checkpoint of an adapted model names the public weights it started from and holds what differs.

An entry of the checkpoint's list ``base`` describes one backbone: ``source``, timm's name of the architecture and, if
known, of its weights; ``sha256``, which identifies them in any file and precision; ``prefix``, where they are in the
state dict; ``tensors``, the hash of each tensor that the detector takes from them; ``file``, where they were found. An
ensemble has an entry for each adapted member. Base tensors are rounded to half precision and converted to float32
whenever they are read, so that all files of the same weights give the same detector to the last bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.detector import Detector
from utils.args import BASE_WEIGHTS_VARIABLE
from utils.checkpoints.sources import hub_config, hub_tensors, prefixes, read_tensors
from utils.errors import UserError
from utils.files import BASE_WEIGHTS, user_cache

CLASSIFIERS = ("head", "head_dist")  # of timm's transformers; files of the same weights have different ones, or none
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# How to get weights that timm's hub has only without their rounding.
COMMANDS = {"3d918f9ddfe92cb3120da3d464590508e5baed0314b91d8c258d7558f0d23332": "python -m datasets.download clip"}
Base = dict[str, Any]


# ----------------------------------------------------------------------------------------- detectors and their bases


def make_base(
    detector: Detector, state_dict: Mapping[str, Tensor], source: str, file: str | None
) -> tuple[Base, dict[str, Tensor]]:
    """Make the weights in a file the base of a detector.

    Returns:
        The entry for ``detector.base``, and the tensors to load into the detector, float32.

    Raises:
        UserError: a tensor of the detector's backbone is not in the file, or has another shape.
    """
    prefix = detector.base_prefix
    own = {key[len(prefix) :]: value for key, value in detector.state_dict().items() if key.startswith(prefix)}
    base = bare_tensors(state_dict, own)
    fitting = [name for name in own if name in base and base[name].shape == own[name].shape]
    if len(fitting) < len(own):
        lacking = next(name for name in own if name not in fitting)
        raise UserError(
            f"expected the {len(own)} tensors of {source} in {file or 'the hub'}, found {len(fitting)} that fit and no "
            f"{lacking} {tuple(own[lacking].shape)}; check --weights and --model-args backbone"
        )
    digest, hashes = base_digest(base)
    used = {name: hashes[name] for name in own}
    entry = {"source": source, "sha256": digest, "prefix": prefix, "file": file, "tensors": used}
    return entry, {prefix + name: as_single(base[name]) for name in own}


def named_bases(detector: Detector) -> Iterator[tuple[str, Detector]]:
    """Yield the detector and the detectors inside it that can have a base, each with its prefix in the state dict."""
    for path, module in detector.named_modules():
        if isinstance(module, Detector) and module.base_prefix:
            yield f"{path}.{module.base_prefix}".lstrip("."), module


def describe_bases(detector: Detector) -> list[Base]:
    """Return the entries for the checkpoint of a detector."""
    return [{**module.base, "prefix": prefix} for prefix, module in named_bases(detector) if module.base]


def assign_bases(detector: Detector, entries: list[Base]) -> None:
    """Tell a detector which of its tensors are those of a base: the reverse of `describe_bases`."""
    by_prefix = {entry["prefix"]: entry for entry in entries}
    for prefix, module in named_bases(detector):
        if entry := by_prefix.get(prefix):
            own = {key.removeprefix(module.base_prefix) for key in module.state_dict()}
            kept = {name: digest for name, digest in entry["tensors"].items() if name in own}
            module.base = {**entry, "prefix": module.base_prefix, "tensors": kept}


# ------------------------------------------------------------------------------------------------ saving and loading


def without_bases(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint without the tensors that equal those of its bases."""
    known = {
        entry["prefix"] + name: digest for entry in checkpoint["base"] for name, digest in entry["tensors"].items()
    }

    def differs(key: str, value: Any) -> bool:
        if key not in known or not isinstance(value, Tensor):
            return True
        rounded = as_half(value)
        return not torch.equal(rounded.to(value.dtype), value.cpu()) or tensor_digest(rounded) != known[key]

    return _changed(checkpoint, lambda tensors: {key: value for key, value in tensors.items() if differs(key, value)})


def with_bases(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the checkpoint of the file ``path`` with the tensors of its bases. Raises UserError as `find_base`."""
    added: dict[str, Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for entry in checkpoint["base"]:
        if entry["sha256"] not in found:
            found[entry["sha256"]] = find_base(entry, path)
        base = found[entry["sha256"]]
        added |= {entry["prefix"] + name: as_single(base[name]) for name in entry["tensors"]}
    return _changed(checkpoint, lambda tensors: {**added, **tensors})


def _changed(checkpoint: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """Apply a change to the weights in a checkpoint, and to their moving average in last.pt."""
    changed = {**checkpoint, "state_dict": change(checkpoint["state_dict"])}
    if (training := checkpoint.get("training")) and training["ema"]:
        changed["training"] = {**training, "ema": change(training["ema"])}
    return changed


# ------------------------------------------------------------------------------------------------------- finding one


def find_base(entry: Base, checkpoint_file: str | Path) -> dict[str, Tensor]:
    """Find the weights of an entry: at --base-weights, at their path in training, in the user's cache or on timm's hub.

    Returns:
        All tensors by their bare names, rounded to half precision.

    Raises:
        UserError: they are not found; the message says what was found instead, and how to get them.
    """
    given = os.environ.get(BASE_WEIGHTS_VARIABLE)
    found = "none"
    for place in filter(None, (given, entry.get("file"), user_cache() / BASE_WEIGHTS)):
        for file in weight_files(Path(place)):
            base = read_base(file, entry)
            digest = base_digest(base)[0] if base else None
            if digest == entry["sha256"]:
                return base
            if place == given:
                found = f"weights with sha256 {digest[:12]}..." if digest else "no weights of this architecture"
                found += f" in {file}"
    command = COMMANDS.get(entry["sha256"])
    # Without a tag, the source can be any weights of the architecture.
    config = hub_config(entry["source"]) if "." in entry["source"] and not command else None
    if config and found == "none":
        with contextlib.suppress(UserError):  # no network
            base = bare_tensors(hub_tensors(entry["source"]), entry["tensors"])
            if base_digest(base)[0] == entry["sha256"]:
                return base
            found = "others on timm's hub"
    where = f" with {config.hf_hub_id or config.url}" if config else ""
    raise UserError(
        f"expected the base weights {entry['source']} with sha256 {entry['sha256'][:12]}... for {checkpoint_file}, "
        f"found {found}; " + (f"get them with: {command}" if command else f"pass --base-weights FILE or DIR{where}")
    )


def weight_files(place: Path) -> list[Path]:
    """Return a file, or the files of weights in a folder; none if there is nothing."""
    if place.is_dir():
        return sorted(file for file in place.iterdir() if file.suffix in SUFFIXES)
    return [place] if place.is_file() else []


def read_base(file: Path, entry: Base) -> dict[str, Tensor]:
    """Read the tensors of a file by their bare names; none if it lacks one that the entry needs, or cannot be read."""
    try:
        base = bare_tensors(read_tensors(file), entry["tensors"])
    except UserError:
        return {}
    return base if base.keys() >= entry["tensors"].keys() else {}


# ------------------------------------------------------------------------------------------------- names and hashes


def bare_tensors(state_dict: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors under the prefix that fits the ``wanted`` names best, without it and without the classifier.

    They are rounded to half precision.
    """

    def under(cut: str) -> dict[str, Any]:
        return {key[len(cut) :]: value for key, value in state_dict.items() if key.startswith(cut)}

    best = max((under(cut) for cut in prefixes(state_dict)), key=lambda names: len(names.keys() & wanted.keys()))
    return {
        name: as_half(value)
        for name, value in best.items()
        if isinstance(value, Tensor) and name.split(".")[0] not in CLASSIFIERS
    }


def base_digest(base: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
    """Return the sha256 over names, shapes and hashes of the tensors, in half precision, and these hashes by name."""
    hashes = {name: tensor_digest(base[name]) for name in sorted(base)}
    lines = (f"{name} {list(base[name].shape)} {digest}\n" for name, digest in hashes.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest(), hashes


def tensor_digest(tensor: Tensor) -> str:
    """Return the first half of the sha256 of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().reshape(-1).numpy().data).hexdigest()[:32]


def as_half(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU, floating-point numbers in half precision."""
    return tensor.detach().cpu().half() if tensor.is_floating_point() else tensor.detach().cpu()


def as_single(tensor: Tensor) -> Tensor:
    """Convert floating-point numbers to single precision; indices and counts stay."""
    return tensor.float() if tensor.is_floating_point() else tensor
