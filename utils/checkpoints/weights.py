"""Initial weights for transfer learning: from timm's hub or from a file of the user's, told key by key."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor

from models.detector import Detector
from utils.checkpoints.file import strip_prefixes
from utils.errors import UserError

WRAPPERS = ("state_dict_ema", "state_dict", "model_state_dict", "model", "ema")


@dataclass
class WeightsReport:
    """What a weights file did to a detector: keys loaded, parameters left random, keys not used."""

    loaded: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"loaded {len(self.loaded)} tensors; still random: {_summary(self.random)}; "
            f"in the file but not used: {_summary(self.unused)}"
        )


def load_weights(detector: Detector, model_name: str, source: str) -> WeightsReport:
    """Load ``source`` (``imagenet`` or a file) into the detector as far as names and shapes agree.

    The file's keys may be those of the bare backbone, of one of our checkpoints, or carry a ``module.`` prefix;
    half-precision tensors are cast to the parameter's dtype. A classifier of another shape stays random.

    Raises:
        UserError: the file cannot be read safely, or not one tensor of it fits.
    """
    state_dict = _hub_weights(detector, model_name) if source == "imagenet" else read_weights_file(source)
    report, matched = match_weights(detector, state_dict)
    if not any(tensor.ndim > 1 for tensor in matched.values()):
        example = ", ".join(list(state_dict)[:3])
        raise UserError(
            f"expected weights of {model_name} in {source!r}, but no tensor fits; the file has {example}, ...; "
            "check --model (and --model-args)"
        )
    detector.load_state_dict(matched, strict=False)
    return report


def match_weights(detector: Detector, state_dict: dict[str, Tensor]) -> tuple[WeightsReport, dict[str, Tensor]]:
    """Pair file keys with parameters by name and shape, trying the names as they are and below a backbone's prefix."""
    own = detector.state_dict()
    prefixes = ("", "backbone.", "trunk.backbone.", "embedder.detector.backbone.")
    candidates = [{prefix + key: value for key, value in state_dict.items()} for prefix in prefixes]

    def fits(renamed: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in renamed.items() if key in own and own[key].shape == value.shape}

    renamed = max(candidates, key=lambda candidate: len(fits(candidate)))
    matched = {key: value.to(own[key].dtype) for key, value in fits(renamed).items()}
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    report = WeightsReport(
        loaded=sorted(matched),
        random=sorted(set(own) - set(matched) - counters),
        unused=sorted(set(renamed) - set(matched)),
    )
    return report, matched


def read_weights_file(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors or pth file without running any code in it.

    Raises:
        UserError: it is not such a file, or is damaged.
    """
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(str(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"expected a safetensors file or a state dict at {str(path)!r}, but {reason}") from None
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(f"expected a state dict at {str(path)!r}, found no tensors in it")
    return strip_prefixes(tensors)


def _hub_weights(detector: Detector, model_name: str) -> dict[str, Tensor]:
    """Download timm's pretrained weights, or take them from its cache; a missing network is noticed at once."""
    import timm

    # From the model that was built and not by name: `xception` is an old name, its tables say `legacy_xception`.
    # The backbone may sit anywhere: a CNN-LSTM has it inside its trunk.
    configs = (getattr(module, "pretrained_cfg", None) for module in detector.modules())
    built: dict = next((config for config in configs if config), {})
    name = ".".join(filter(None, (built.get("architecture"), built.get("tag"))))
    config = timm.get_pretrained_cfg(name) if name else None
    if config is None or not config.has_weights:
        raise UserError(
            f"expected a timm backbone with pretrained weights, but {model_name!r} has none; pass --weights FILE"
        )
    if not _is_cached(config) and not _hub_reachable():
        raise UserError(
            f"expected a network to fetch the ImageNet weights of {model_name!r}, found none; "
            f"download {config.hf_hub_id or config.url} elsewhere and pass --weights FILE"
        )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # what the hub's client raises for a lost connection differs between its versions
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"expected to fetch the ImageNet weights of {model_name!r}, but {reason}; try again, or pass --weights FILE"
        ) from error


def _is_cached(config) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    return bool(config.hf_hub_id) and any(isinstance(try_to_load_from_cache(config.hf_hub_id, n), str) for n in names)


def _hub_reachable(timeout: float = 3.0) -> bool:
    """Whether asking the hub, or the mirror of HF_ENDPOINT, is worth a try: its client waits for minutes otherwise."""
    from huggingface_hub.constants import ENDPOINT

    url = urlsplit(ENDPOINT)
    if {url.scheme, "all"} & getproxies().keys():  # the proxy knows the way; what it answers is reported by the client
        return True
    with contextlib.suppress(OSError, ValueError):  # the second for a port that is no number
        address = (url.hostname or "", url.port or {"http": 80}.get(url.scheme, 443))
        with socket.create_connection(address, timeout=timeout):
            return True
    return False


def _summary(keys: list[str]) -> str:
    """Group keys by their first two name parts: ``head.1 (2), backbone.conv_head (1)``."""
    if not keys:
        return "none"
    groups = Counter(".".join(key.split(".")[:2]) for key in keys)
    shown = [f"{name} ({count})" for name, count in groups.most_common(6)]
    return ", ".join(shown) + (f" and {len(groups) - 6} more groups" if len(groups) > 6 else "")
