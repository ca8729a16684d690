"""Class activation maps for one-logit detectors, batched, each at about the cost of one forward pass.

The activations of one layer are cut out of the forward pass as a leaf, so the backward pass ends there instead of at
the pixels. The formulas agree with the package ``grad-cam`` (J. Gildenblat and contributors, "PyTorch library for CAM
methods", 2021, github.com/jacobgil/pytorch-grad-cam), which the tests compare with; it takes one image at a time at
the full cost of a backward pass, and needs two logits where a detector has one.
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


class TwoLogits(nn.Module):
    """A detector as a classifier of real and fake: ``(N, 2)`` logits ``[0, z]``, as grad-cam and torchattacks expect.

    The softmax of ``[0, z]`` is the sigmoid of z exactly, and the gradient of the fake logit is that of z.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        logits = self.detector(images)
        return torch.stack([torch.zeros_like(logits), logits], dim=1)


@contextlib.contextmanager
def frozen(detector: nn.Module) -> Iterator[None]:
    """Take the parameters out of autograd for a while, so that nothing is recorded before it is needed."""
    trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def find_layer(detector: Detector, layer: str | None) -> str:
    """Return the name of the layer to read, or the names of several with spaces between: those asked for, or its own.

    Raises:
        UserError: there is no such layer (the message lists those that exist, the closest first), or no default.
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
    """Run ``(N, 3, H, W)`` images, or clips ``(N, T, 3, H, W)``, once and differentiate the target at a layer.

    Args:
        sign: ``(N,)``, 1 to explain "fake" (the logit), -1 to explain "real" (its negative).
        layer: dotted name of a submodule, or several with spaces between, whose channels are then put together; the
            detector's ``cam_layer`` by default.

    Raises:
        UserError: the layer does not exist, makes no map, or has no part in the logit.
    """
    names = find_layer(detector, layer)
    outputs: dict[str, Tensor] = {}

    def cut_at(name: str) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
        def cut(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor | None:
            if not isinstance(output, Tensor) or name in outputs:
                return None
            outputs[name] = output.detach().requires_grad_()
            return outputs[name].clone()  # what follows may work in place, which a leaf forbids

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
                f"expected --layer to be a map (N, C, h, w) that leads to the logit, but {name!r} gives {shape}; "
                f"the layer made for it is {detector.cam_layer}"
            )
        maps.append(shaped)
    return Capture(logits.detach(), *join_channels([(pair[0].detach().float(), pair[1].float()) for pair in maps]))


def join_channels(maps: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Put activations and gradients ``(N, C_i, h_i, w_i)`` together as ``(N, sum of C_i, h, w)`` each.

    Smaller maps are enlarged, and their gradients shared out over the places that one has become, so that the sum of
    activation times gradient stays what it was.
    """
    sides = max((one.shape[-2:] for one, _ in maps), key=lambda shape: shape[0] * shape[1])
    joined = []
    for part, pick in enumerate(zip(*maps, strict=True)):
        shares = [(one.shape[-2] * one.shape[-1] / (sides[0] * sides[1])) ** part for one in pick]
        same = [one if one.shape[-2:] == sides else F.interpolate(one, tuple(sides)) for one in pick]
        joined.append(torch.cat([one * share for one, share in zip(same, shares, strict=True)], dim=1))
    return joined[0], joined[1]


def gradcam(found: Capture) -> Tensor:
    """Selvaraju et al., "Grad-CAM", ICCV 2017 (arXiv 1610.02391); ``(N, h, w)``, not below 0, as all below."""
    return (found.activations * found.gradients.mean((2, 3), keepdim=True)).sum(1).relu()


def gradcam_plus_plus(found: Capture) -> Tensor:
    """Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), weights by its equation 19."""
    squares = found.gradients**2
    total = found.activations.sum((2, 3), keepdim=True)
    alpha = squares / (2 * squares + total * squares * found.gradients + 1e-6)
    weights = (found.gradients.relu() * alpha).sum((2, 3), keepdim=True)
    return (found.activations * weights).sum(1).relu()


def hirescam(found: Capture) -> Tensor:
    """Draelos and Carin, "Use HiResCAM instead of Grad-CAM", 2020 (arXiv 2011.08891)."""
    return (found.activations * found.gradients).sum(1).relu()


def layercam(found: Capture) -> Tensor:
    """Jiang et al., "LayerCAM", IEEE TIP 2021."""
    return (found.activations * found.gradients.relu()).sum(1).relu()


def eigencam(found: Capture) -> Tensor:
    """Muhammad and Yeasin, "Eigen-CAM", IJCNN 2020 (arXiv 2008.00299): the first principal component, no target.

    A component has no sign of its own; here it is the one in which strong activations are high.
    """
    rows = found.activations.flatten(2).transpose(1, 2)  # (N, h * w, C)
    centred = rows - rows.mean(1, keepdim=True)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    projection = left[:, :, 0] * values[:, :1]
    strength = rows.abs().mean(2)
    along = ((strength - strength.mean(1, keepdim=True)) * projection).sum(1, keepdim=True)
    projection = torch.where(along < 0, -projection, projection)
    return projection.unflatten(1, found.activations.shape[2:]).relu()


FORMULAS: dict[str, Callable[[Capture], Tensor]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "hirescam": hirescam,
    "layercam": layercam,
    "eigencam": eigencam,
}


def scorecam(detector: Detector, images: Tensor, sign: Tensor, found: Capture, channels: int = 0) -> Tensor:
    """Wang et al., "Score-CAM", CVPR Workshops 2020 (arXiv 1910.01279): channels weighed by what they let through.

    Deviation: only the ``channels`` that vary most over the image are tried (0: all, as in the paper), one forward
    pass each.
    """
    activations = found.activations
    count = min(channels or activations.shape[1], activations.shape[1])
    chosen = activations.var((2, 3)).topk(count, dim=1).indices
    picked = activations.gather(1, chosen[:, :, None, None].expand(-1, -1, *activations.shape[2:]))
    low, high = picked.amin((2, 3), keepdim=True), picked.amax((2, 3), keepdim=True)
    scores = []
    with torch.inference_mode():
        for index in range(count):
            mask = (picked[:, index : index + 1] - low[:, index : index + 1]) / (high - low + 1e-8)[
                :, index : index + 1
            ]
            scores.append(detector(images * enlarge(mask[:, 0], images.shape[-2:])[:, None]).float() * sign)
    weights = torch.stack(scores, dim=1).softmax(dim=1)
    return (picked * weights[:, :, None, None]).sum(1).relu()


def step_relevance(detector: Detector, images: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """What each step of a CNN-LSTM adds to the target: rows ``(N, T * h)`` and columns ``(N, T * w)``, not below 0.

    Gradient times input where the sequence enters the LSTM, as HiResCAM does on maps. Images or clips as in
    :func:`capture`.

    Raises:
        UserError: the detector reads no sequence.
    """
    reader = getattr(detector, "reader", None)
    if not isinstance(reader, nn.Module) or not hasattr(reader, "project"):
        raise UserError("expected a CNN-LSTM for --methods steps, got a detector that reads no sequence; use gradcam")
    sequences: list[Tensor] = []

    def cut(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        sequences.append(inputs[0].detach().requires_grad_())
        return (sequences[-1],)

    handle = reader.get_submodule("project").register_forward_pre_hook(cut)
    try:
        with frozen(detector), torch.enable_grad():
            gradients = torch.autograd.grad((detector(images) * sign).sum(), sequences)
    finally:
        handle.remove()
    rows, columns = ((x.detach() * g).sum(2).relu() for x, g in zip(sequences, gradients, strict=True))
    return rows, columns


def steps(detector: Detector, images: Tensor, sign: Tensor) -> Tensor:
    """Draw the step relevances of images as a map ``(N, h, w)``: each place gets those of its row and its column."""
    rows, columns = step_relevance(detector, images, sign)
    return rows[:, :, None] / columns.shape[1] + columns[:, None, :] / rows.shape[1]


def enlarge(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resample maps ``(N, h, w)`` to ``(N, *size)``, bilinear."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
