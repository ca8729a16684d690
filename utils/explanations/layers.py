"""Activations and gradients of one layer of a detector, for a batch, at about the cost of one forward pass.

The activations become a leaf of the autograd graph, so the backward pass stops at the layer instead of at the pixels.
The tests compare the CAM methods with the package ``grad-cam`` (J. Gildenblat and contributors, "PyTorch library for
CAM methods", 2021, github.com/jacobgil/pytorch-grad-cam).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.detector import Detector
from utils.errors import UserError

LISTED_LAYERS = 16


@dataclass
class Capture:
    """Logits ``(N,)`` and, at one layer, activations and gradients of the target, both ``(N, C, h, w)``."""

    logits: Tensor
    activations: Tensor
    gradients: Tensor


@contextlib.contextmanager
def frozen(detector: nn.Module) -> Iterator[None]:
    """Exclude the parameters from autograd inside the block, so no graph is recorded for them."""
    trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def find_layer(detector: Detector, layer: str | None) -> str:
    """Return the layer to read, or several separated by spaces: ``layer``, or the detector's ``cam_layer``.

    Raises:
        UserError: the layer does not exist (the message lists the closest names first), or there is no default.
    """
    names = [name for name, _ in detector.named_modules() if name]
    wanted = layer or detector.cam_layer
    if wanted and wanted.strip() and set(wanted.split()) <= set(names):
        return wanted
    close = difflib.get_close_matches(wanted or "", names, 5, cutoff=0.4)
    listed = list(dict.fromkeys([*close, *sorted(names, key=lambda name: name.count("."))]))[:LISTED_LAYERS]
    more = f" and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
    got = f"got {layer!r}" if layer else "but this detector declares none"
    raise UserError(f"expected --layer to be a layer of the detector, {got}; it has {', '.join(listed)}{more}")


def capture(detector: Detector, images: Tensor, sign: Tensor, layer: str | None = None) -> Capture:
    """Run images ``(N, 3, H, W)`` or clips ``(N, T, 3, H, W)`` once and differentiate the target at a layer.

    Args:
        sign: ``(N,)``, 1 to explain "fake" (the logit), -1 to explain "real" (its negative).
        layer: dotted name of a submodule, or several separated by spaces, whose channels are concatenated; the
            detector's ``cam_layer`` by default.

    Raises:
        UserError: the layer does not exist, its output is not a map, or the logit does not depend on it.
    """
    names = find_layer(detector, layer)
    outputs: dict[str, Tensor] = {}

    def cut_at(name: str) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
        def cut(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor | None:
            if not isinstance(output, Tensor) or name in outputs:
                return None
            outputs[name] = output.detach().requires_grad_()
            return outputs[name].clone()  # in-place operations may follow, which a leaf forbids

        return cut

    handles = [detector.get_submodule(name).register_forward_hook(cut_at(name)) for name in names.split()]
    try:
        with frozen(detector), torch.enable_grad():
            logits = detector(images)
            target = (logits * sign.to(logits)).sum()
            used = bool(outputs) and target.requires_grad
            found = torch.autograd.grad(target, list(outputs.values()), allow_unused=True) if used else ()
    finally:
        for handle in handles:
            handle.remove()
    reshape = detector.cam_reshape if names == detector.cam_layer else None
    gradients = dict(zip(outputs, found, strict=False))
    maps = []
    for name in names.split():
        pair = [outputs.get(name), gradients.get(name)]
        shaped = [reshape(tensor) if reshape else tensor for tensor in pair if tensor is not None]
        if len(shaped) < 2 or shaped[0].ndim != 4:
            shape = f"shape {tuple(shaped[0].shape)}" if shaped else "nothing"
            raise UserError(
                f"expected --layer with an output (N, C, h, w) that leads to the logit, got {name!r} with {shape}; "
                f"the detector's own layer is {detector.cam_layer}"
            )
        maps.append(shaped)
    return Capture(logits.detach(), *join_channels([(pair[0].detach().float(), pair[1].float()) for pair in maps]))


def join_channels(maps: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenate activations and gradients ``(N, C_i, h_i, w_i)`` to ``(N, sum of C_i, h, w)`` each.

    Smaller maps are enlarged; their gradients are divided by the enlargement, so that the sum of activation times
    gradient does not change.
    """
    sides = max((one.shape[-2:] for one, _ in maps), key=lambda shape: shape[0] * shape[1])
    joined = []
    for part, pick in enumerate(zip(*maps, strict=True)):
        shares = [(one.shape[-2] * one.shape[-1] / (sides[0] * sides[1])) ** part for one in pick]
        same = [one if one.shape[-2:] == sides else F.interpolate(one, tuple(sides)) for one in pick]
        joined.append(torch.cat([one * share for one, share in zip(same, shares, strict=True)], dim=1))
    return joined[0], joined[1]
