"""Where weights come from: files of tensors, read without running code in them, and timm's hub."""

from __future__ import annotations

import contextlib
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor

from utils.errors import UserError


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Read a safetensors or pth file without running any code in it.

    Of nested dicts, such as ``{"epoch": 3, "net": {...}, "ema_state_dict": {...}}``, the one with most tensors is
    taken; of equal ones that of an exponential moving average. One of our checkpoints is returned as it is: it has a
    ``format_version``.

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
        return content
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


def prefixes(state_dict: Mapping[str, Any]) -> list[str]:
    """Return "" and every prefix of up to three names, such as ``model.encoder.``, that a tenth of the keys have."""
    counts: Counter[str] = Counter()
    for key in state_dict:
        names = key.split(".")
        counts.update(".".join(names[:depth]) + "." for depth in range(1, min(4, len(names))))
    return ["", *(prefix for prefix, count in counts.items() if 10 * count >= len(state_dict))]


def hub_config(name: str) -> Any:
    """Return timm's entry for the pretrained weights ``architecture.tag``, or None."""
    import timm

    config = timm.get_pretrained_cfg(name) if name else None
    return config if config is not None and config.has_weights else None


def hub_tensors(name: str) -> dict[str, Tensor]:
    """Download the weights ``architecture.tag`` from timm's hub, or read them from its cache.

    Raises:
        UserError: there is no network, which is checked first, or the download fails.
    """
    import timm

    config = hub_config(name)
    if not _is_cached(config) and not _hub_reachable():
        raise UserError(
            f"expected a network to fetch the pretrained weights {name}, found none; "
            f"download {config.hf_hub_id or config.url} elsewhere and pass --weights FILE"
        )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the errors of the hub's client differ between its versions
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"expected to fetch the pretrained weights {name}, but {reason}; try again, or pass --weights FILE"
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
