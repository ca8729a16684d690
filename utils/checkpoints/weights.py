"""Initial weights for transfer learning, from timm's hub or from a file, with a report of what was loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models.detector import Detector
from utils.checkpoints.base import assign_bases, make_base, named_bases
from utils.checkpoints.file import load_checkpoint
from utils.checkpoints.sources import hub_config, hub_tensors, prefixes, read_tensors
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
    modules that the file lacks stay random. What an adapted detector starts from becomes its base (see base.py).

    Raises:
        UserError: the file cannot be read safely, or less than MIN_SHARE of the shared modules fits; all of them must
            fit if they become a base.
    """
    checkpoint: dict[str, Any] = {}
    if source == "imagenet":
        if not hub_config(pretrained_name(detector)):
            raise UserError(
                f"expected a timm backbone with pretrained weights, but {detector.name!r} has none; pass --weights FILE"
            )
        state_dict = hub_tensors(pretrained_name(detector))
    else:
        state_dict = read_tensors(source)
    if "format_version" in state_dict:
        checkpoint = load_checkpoint(source)
        state_dict = checkpoint["state_dict"]
    elif adapted := [module for _, module in named_bases(detector)]:
        return _load_base(adapted[0], state_dict, source)
    report, matched = match_weights(detector, state_dict)
    share = len(matched) / max(1, report.shared)
    if share < MIN_SHARE or not any(tensor.ndim > 1 for tensor in matched.values()):
        raise UserError(
            f"expected weights of {detector.name} in {source!r} with {MIN_SHARE:.0%} of the tensors fitting, found "
            f"{len(matched)} of {report.shared} that fit; the file has {', '.join(list(state_dict)[:3])}, ...; "
            "check --model (and --model-args)"
        )
    detector.load_state_dict(matched, strict=False)
    assign_bases(detector, checkpoint.get("base", []))
    detector.earlier_data = as_earlier_data(checkpoint)
    return report


def _load_base(detector: Detector, state_dict: dict[str, Tensor], source: str) -> WeightsReport:
    """Load the public weights that an adapted detector starts from, and remember which they were."""
    from_hub = source == "imagenet"
    name = pretrained_name(detector) if from_hub else detector.base_name  # a file may hold other weights than the hub
    file = None if from_hub else str(Path(source).resolve())
    detector.base, matched = make_base(detector, state_dict, name, file)
    detector.load_state_dict(matched, strict=False)
    names = tuple(key.removeprefix(detector.base_prefix) for key in matched)
    unused = [key for key in state_dict if not key.endswith(names)]
    return WeightsReport(sorted(matched), sorted(set(detector.state_dict()) - set(matched)), unused, len(matched))


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

    pairs = [(cut, added) for cut in prefixes(state_dict) for added in ADDED]
    cut, added = max(pairs, key=lambda pair: len(fits(*pair)))
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


def as_earlier_data(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the training sets of a checkpoint as data of a detector that learns from it: not unseen for it either."""
    return [{**entry, "earlier": True} for entry in checkpoint.get("data") or [] if entry["split"] == "train"]


def read_weights_file(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or pth file, or of a checkpoint. Raises UserError as `read_tensors`."""
    content = read_tensors(path)
    return load_checkpoint(path)["state_dict"] if "format_version" in content else content


def pretrained_name(detector: Detector) -> str:
    """Return the name of timm's weights, ``architecture.tag``, for the backbone of a detector; "" without one.

    It is that of the model that was built: ``xception`` is an old name of ``legacy_xception``. The backbone may be
    anywhere: that of a CNN-LSTM is inside its trunk.
    """
    configs = (getattr(module, "pretrained_cfg", None) for module in detector.modules())
    built: dict = next((config for config in configs if config), {})
    return ".".join(filter(None, (built.get("architecture"), built.get("tag"))))


def _summary(keys: list[str]) -> str:
    """Group keys by their first two names: ``head.1 (2), backbone.conv_head (1)``."""
    groups = Counter(".".join(key.split(".")[:2]) for key in keys)
    shown = [f"{name} ({count})" for name, count in groups.most_common(6)]
    return (", ".join(shown) or "none") + (f" and {len(groups) - 6} more groups" if len(groups) > 6 else "")
