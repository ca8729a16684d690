"""Structured pruning: removing whole channels makes the model smaller and faster in every engine.

The ``channels`` of model_args record the remaining widths, from which `create_model` rebuilds the narrow layers, so the
checkpoint of a pruned detector is an ordinary one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from models.detector import Detector
from utils.errors import UserError

Channels = dict[str, list[int]]  # layer to [outputs, inputs, groups]; [width] for a batch norm
NARROWED = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
ROUND_TO = 8  # channels: the block size of vector and matrix units


def prune_channels(detector: Detector, share: float) -> Channels:
    """Remove ``share`` of the channels of every layer except the input and the logit; returns the changed widths.

    Channels that depend on each other (through additions, depthwise convolutions, normalisation) are removed together,
    those with the smallest L2 norm of weights first: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023
    (arXiv 2301.12900), with the package torch-pruning. Fine-tune the detector afterwards.

    Raises:
        UserError: torch-pruning is not installed, or cannot trace the layers of the detector, or these hold published
            weights that are to stay as they are.
    """
    if detector.is_classical:
        raise UserError(f"expected a network for --prune, got {type(detector).__name__}, which has no channels")
    if detector.base_prefix:
        raise UserError(f"expected a network that trains as a whole for --prune, got {detector.name}; drop --prune")
    try:
        import torch_pruning
    except ImportError:
        raise UserError("expected the package torch-pruning for --prune; pip install torch-pruning") from None
    logging.getLogger("torch_pruning").setLevel(logging.ERROR)
    before, shapes = layer_widths(detector), {key: value.shape for key, value in detector.state_dict().items()}
    linear = [layer for layer in detector.modules() if isinstance(layer, nn.Linear)]  # the last one computes the logit
    device = next(detector.parameters()).device
    image = torch.zeros(1, 3, detector.geometry.size, detector.geometry.size, device=device)
    try:
        pruner = torch_pruning.pruner.BasePruner(
            detector.eval(),
            image,
            torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            ignored_layers=linear[-1:],
            round_to=ROUND_TO,
        )
        pruner.step()
        with torch.no_grad():
            detector(image)
    except (RuntimeError, ValueError, AttributeError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"expected a network whose channels can be removed for --prune, but in {type(detector).__name__}: {reason}"
        ) from None
    channels = {name: width for name, width in layer_widths(detector).items() if width != before[name]}
    detector.model_args = {**detector.model_args, "channels": channels}
    check_narrowed(detector, shapes)
    return channels


def check_narrowed(detector: Detector, shapes: Mapping[str, torch.Size]) -> None:
    """Raise UserError if layers that :func:`narrow_layers` cannot rebuild lost channels: no checkpoint would load."""
    for key, value in detector.state_dict().items():
        layer = key.rpartition(".")[0]
        if value.shape != shapes[key] and not isinstance(detector.get_submodule(layer), NARROWED):
            raise UserError(
                "expected a network of convolutions, linear layers and batch norms for --prune, got "
                f"{detector.name} with {layer}, a {type(detector.get_submodule(layer)).__name__}; drop --prune"
            )


def layer_widths(detector: nn.Module) -> Channels:
    """Return the widths of all convolutions, linear layers and batch norms."""
    widths: Channels = {}
    for name, layer in detector.named_modules():
        if isinstance(layer, nn.Conv2d):
            widths[name] = [layer.out_channels, layer.in_channels, layer.groups]
        elif isinstance(layer, nn.Linear):
            widths[name] = [layer.out_features, layer.in_features, 1]
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            widths[name] = [layer.num_features]
    return widths


def narrow_layers(detector: nn.Module, channels: Mapping[str, Sequence[int]]) -> None:
    """Give layers the widths of a pruned detector; their weights are placeholders until a state dict is loaded.

    Raises:
        UserError: the model has no such layer.
    """
    for name, width in channels.items():
        try:
            layer = detector.get_submodule(name)
        except AttributeError:
            raise UserError(f"expected the layers of this model in channels, got {name!r}, which it lacks") from None
        if isinstance(layer, nn.Conv2d):
            layer.out_channels, layer.in_channels, layer.groups = width
            resize(layer, "weight", (width[0], width[1] // width[2], *layer.weight.shape[2:]))
            resize(layer, "bias", (width[0],))
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = width[:2]
            resize(layer, "weight", (width[0], width[1]))
            resize(layer, "bias", (width[0],))
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.num_features = width[0]
            for key in ("weight", "bias", "running_mean", "running_var"):
                resize(layer, key, (width[0],))


def resize(layer: nn.Module, key: str, shape: tuple[int, ...]) -> None:
    """Replace a parameter or buffer of the layer, unless it is None, by one of another shape."""
    old = getattr(layer, key)
    if old is None:
        return
    new = old.new_ones(shape)
    setattr(layer, key, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
