"""Initial weights for transfer learning, from timm's hub or from a file, with a report of what was loaded."""

from __future__ import annotations

import contextlib
import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor

from models.detector import Detector
from utils.checkpoints.file import load_checkpoint
from utils.errors import UserError

MIN_SHARE = 0.9  # of the tensors in the modules that file and detector share
ADDED = ("", "backbone.", "trunk.backbone.", "embedder.detector.backbone.")  # where a detector holds a backbone


@dataclass
class WeightsReport:
    """What a weights file did to a detector: keys loaded, parameters left random, keys of the file not used."""

    loaded: list[str]
    random: list[str]
    unused: list[str]
    shared: int  # tensors in the modules that file and detector share

    def __str__(self) -> str:
        return (
            f"loaded {len(self.loaded)} tensors; still random: {_summary(self.random)}; "
            f"in the file but not used: {_summary(self.unused)}"
        )


def load_weights(detector: Detector, source: str) -> WeightsReport:
    """Load ``source`` (``imagenet`` or a file) into the detector where names and shapes agree.

    The file may hold a bare backbone, one of our checkpoints, or either under a common prefix such as ``module.`` or
    ``encoder.``; half-precision tensors are cast to the dtype of the parameter. A classifier of another shape and other
    modules that the file lacks stay random.

    Raises:
        UserError: the file cannot be read safely, or less than MIN_SHARE of the shared modules fits.
    """
    state_dict = _hub_weights(detector) if source == "imagenet" else read_weights_file(source)
    report, matched = match_weights(detector, state_dict)
    share = len(matched) / max(1, report.shared)
    if share < MIN_SHARE or not any(tensor.ndim > 1 for tensor in matched.values()):
        raise UserError(
            f"expected weights of {detector.name} in {source!r} with {MIN_SHARE:.0%} of the tensors fitting, found "
            f"{len(matched)} of {report.shared} that fit; the file has {', '.join(list(state_dict)[:3])}, ...; "
            "check --model (and --model-args)"
        )
    detector.load_state_dict(matched, strict=False)
    return report


def match_weights(detector: Detector, state_dict: dict[str, Tensor]) -> tuple[WeightsReport, dict[str, Tensor]]:
    """Pair the keys of a file with those of the detector by name and shape, under the prefixes that fit best."""
    # Without the counters of batch norms, whose names and shapes fit everywhere.
    own, state_dict = (
        {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
        for tensors in (detector.state_dict(), state_dict)
    )

    def fits(cut: str, added: str) -> dict[str, Tensor]:
        renamed = {added + key[len(cut) :]: value for key, value in state_dict.items() if key.startswith(cut)}
        return {key: value for key, value in renamed.items() if key in own and own[key].shape == value.shape}

    prefixes = [(cut, added) for cut in _prefixes(state_dict) for added in ADDED]
    cut, added = max(prefixes, key=lambda pair: len(fits(*pair)))
    matched = {key: value.to(own[key].dtype) for key, value in fits(cut, added).items()}
    renamed = {added + key[len(cut) :] if key.startswith(cut) else key for key in state_dict}
    modules = {key[len(added) :].split(".")[0] for key in own if key.startswith(added)}
    modules &= {key[len(cut) :].split(".")[0] for key in state_dict if key.startswith(cut)}
    inside = tuple(f"{added}{module}." for module in modules)
    report = WeightsReport(
        loaded=sorted(matched),
        random=sorted(set(own) - set(matched)),
        unused=sorted(renamed - set(matched)),
        shared=max(sum(key.startswith(inside) for key in keys) for keys in (own, renamed)) or len(own),
    )
    return report, matched


def _prefixes(state_dict: dict[str, Tensor]) -> list[str]:
    """Return "" and every prefix of up to three names, such as ``model.encoder.``, that a tenth of the keys have."""
    counts: Counter[str] = Counter()
    for key in state_dict:
        names = key.split(".")
        counts.update(".".join(names[:depth]) + "." for depth in range(1, min(4, len(names))))
    return ["", *(prefix for prefix, count in counts.items() if 10 * count >= len(state_dict))]


def read_weights_file(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors or pth file without running any code in it.

    Of nested dicts, such as ``{"epoch": 3, "net": {...}, "ema_state_dict": {...}}``, the one with most tensors is
    taken; of equal ones that of an exponential moving average.

    Raises:
        UserError: it is not such a file, or is damaged.
    """
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(str(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        if found:
            reason = f"it is a pickled {found[1]}, which could run code when loaded; save its state_dict() instead"
        elif not isinstance(error, OSError | RuntimeError):  # whatever the unpickler meets in other bytes
            reason = "it is neither"
        raise UserError(f"expected a safetensors file or a state dict at {str(path)!r}, but {reason}") from None
    if isinstance(content, dict) and "format_version" in content:
        return load_checkpoint(path)["state_dict"]
    _, tensors = max(_tensors_in("", content), key=lambda item: (len(item[1]), "ema" in item[0]), default=("", {}))
    if not tensors:
        entries = f"only {', '.join(map(str, list(content)[:8]))}" if isinstance(content, dict) and content else "none"
        raise UserError(f"expected a state dict at {str(path)!r}, found no tensors in it, but {entries}")
    return tensors


def _tensors_in(name: str, content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of each dict in nested dicts, with its dotted name."""
    if isinstance(content, dict):
        yield name, {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        for key, value in content.items():
            yield from _tensors_in(f"{name}.{key}", value)


def _hub_weights(detector: Detector) -> dict[str, Tensor]:
    """Download timm's pretrained weights, or read them from its cache; fail at once without a network."""
    import timm

    # Of the model that was built and not by its name: `xception` is an old name of `legacy_xception`. The backbone may
    # be anywhere: that of a CNN-LSTM is inside its trunk.
    configs = (getattr(module, "pretrained_cfg", None) for module in detector.modules())
    built: dict = next((config for config in configs if config), {})
    name = ".".join(filter(None, (built.get("architecture"), built.get("tag"))))
    config = timm.get_pretrained_cfg(name) if name else None
    if config is None or not config.has_weights:
        raise UserError(
            f"expected a timm backbone with pretrained weights, but {detector.name!r} has none; pass --weights FILE"
        )
    if not _is_cached(config) and not _hub_reachable():
        raise UserError(
            f"expected a network to fetch the ImageNet weights of {detector.name!r}, found none; "
            f"download {config.hf_hub_id or config.url} elsewhere and pass --weights FILE"
        )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the errors of the hub's client differ between its versions
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"expected to fetch the ImageNet weights of {detector.name!r}, but {reason}; "
            "try again, or pass --weights FILE"
        ) from error


def _is_cached(config: Any) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    return bool(config.hf_hub_id) and any(isinstance(try_to_load_from_cache(config.hf_hub_id, n), str) for n in names)


def _hub_reachable(timeout: float = 3.0) -> bool:
    """Check whether the hub, or the mirror in HF_ENDPOINT, can be reached: its own client would wait for minutes."""
    from huggingface_hub.constants import ENDPOINT

    url = urlsplit(ENDPOINT)
    if {url.scheme, "all"} & getproxies().keys():  # the proxy decides; the client reports its answer
        return True
    with contextlib.suppress(OSError, ValueError):  # ValueError: the port is not a number
        address = (url.hostname or "", url.port or {"http": 80}.get(url.scheme, 443))
        with socket.create_connection(address, timeout=timeout):
            return True
    return False


def _summary(keys: list[str]) -> str:
    """Group keys by their first two names: ``head.1 (2), backbone.conv_head (1)``."""
    groups = Counter(".".join(key.split(".")[:2]) for key in keys)
    shown = [f"{name} ({count})" for name, count in groups.most_common(6)]
    return (", ".join(shown) or "none") + (f" and {len(groups) - 6} more groups" if len(groups) > 6 else "")
