"""The interface of every detector, neural or classical."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from utils.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Detector(nn.Module):
    """A face-forgery detector: images in, one logit per image out.

    Subclasses implement ``forward(images) -> logits`` where ``images`` is ``(N, 3, H, W)``, RGB, float in
    [0, 1], and ``logits`` is ``(N,)``; a logit above 0 means fake. They call :meth:`normalize` themselves, so that
    callers never handle means and standard deviations, and attacks work in pixel units.

    Attributes:
        input_size: side in pixels of the square input for which the model was designed.
        geometry: how an image becomes an input; a checkpoint stores it and overrides the default.
        cam_layer: dotted name of the submodule whose output Grad-CAM reads, or several separated by spaces; None if
            there is none.
        cam_reshape: turns that output into ``(N, C, h, w)``; None if it already has this shape.
        engine: what computes the logits; the name of an ONNX engine for an exported detector.
        has_input_gradient: False for detectors that cannot be differentiated (trees).
        any_size: False for detectors that only take inputs of certain sizes.
        caches_tokens: True for detectors whose frozen part can run once before training: they have
            ``frozen_tokens(images) -> (N, R, D)`` and ``from_tokens(tokens) -> logits`` (models/foundation.py).
        size_step: the input sizes to prefer are multiples of it, in pixels.
        is_classical: True for learners on features, which are fitted in one call instead of trained by gradients.
        operating_point: calibration and thresholds; ``load_detector`` sets it.
        base_prefix: where in the state dict the public weights are that the detector adapts; "" if it adapts none.
        base_name: the architecture, and perhaps the tag, of these weights in timm.
        base: which weights these are, as in a checkpoint (utils/checkpoints/base.py); None before they are loaded.
        earlier_data: the training data of its initial weights and its teacher, as in a checkpoint.
        name, model_args: what ``create_model`` was called with.
    """

    mean: Tensor
    std: Tensor
    engine = "torch"
    has_input_gradient = True
    is_classical = False
    any_size = True
    caches_tokens = False
    frozen_tokens: Callable[[Tensor], Tensor]
    from_tokens: Callable[[Tensor], Tensor]
    base_prefix = base_name = ""
    base: dict[str, Any] | None = None
    earlier_data: Sequence[dict[str, Any]] = ()
    size_step = 32
    cam_reshape: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self,
        input_size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        cam_layer: str | None = None,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.geometry = geometry or Geometry(mode="crop", size=input_size)
        self.cam_layer = cam_layer
        self.operating_point = OperatingPoint()
        self.name = ""
        self.model_args: dict[str, Any] = {}
        # Not persistent: the constructor sets them, so a checkpoint can never disagree with the code.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Standardise images ``(N, 3, H, W)`` in [0, 1] with the mean and standard deviation of the detector."""
        return (images - self.mean) / self.std

    @torch.inference_mode()
    def score_views(self, views: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
        """Score views ``(N, size, size, 3)`` uint8 RGB, computing in ``dtype``; returns logits ``(N,)`` float64."""
        if not len(views):
            return np.empty(0)
        inputs = as_inputs(views.to(self.mean.device, non_blocking=True))
        with torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
            logits = self(inputs.contiguous(memory_format=torch.channels_last))
        return logits.double().cpu().numpy()

    @torch.no_grad()
    def fits(self, size: int) -> bool:
        """Check whether the detector takes square inputs of ``size`` px, by scoring a black image."""
        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()(self.mean.new_zeros(1, 3, size, size))
        except Exception:  # architectures refuse a size in many ways
            return False
        finally:
            for module, is_training in modes:
                module.training = is_training
        return True

    def choose_size(self, side: int) -> int:
        """Return the input size for images of about ``side`` px: that of the geometry, or less for smaller images."""
        smallest = max(self.size_step, side // self.size_step * self.size_step)
        sizes = range(smallest, self.geometry.size, self.size_step)
        return next((size for size in sizes if self.fits(size)), self.geometry.size)

    def check_size(self, size: int, flag: str = "--image-size") -> None:
        """Raise UserError, with sizes that fit, unless the detector takes square inputs of ``size`` px."""
        if self.fits(size):
            return
        step, own = self.size_step, self.input_size
        tried = {own // 2, own, *(size // step * step + step * k for k in range(-1, 3))}
        sizes = [str(near) for near in sorted(tried) if near >= 16 and self.fits(near)]
        if not sizes:
            raise UserError(f"expected --model-args with which {self.name} takes images, got {self.model_args}")
        raise UserError(f"expected {flag} that {self.name} takes, such as {' or '.join(sizes)}, got {size}")

    def take_weights(self, other: Detector) -> None:
        """Load the weights of a detector of the same architecture, and take over which of them are public ones."""
        self.load_state_dict(other.state_dict())
        for name, module in other.named_modules():
            if isinstance(module, Detector):
                cast(Detector, self.get_submodule(name)).base = module.base

    def fixed_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that training never changes, whatever ``--freeze`` says."""
        return []

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the final classifier, which transfer learning trains at a separate rate."""
        head = getattr(self, "head", None)
        return list(head.parameters()) if isinstance(head, nn.Module) else []


def as_inputs(views: Tensor) -> Tensor:
    """Turn views ``(N, size, size, 3)`` uint8 into inputs ``(N, 3, size, size)`` float32 in [0, 1], channels last."""
    # A GPU would multiply by the rounded inverse of a plain number; dividing by a tensor gives the CPU's result.
    return views.permute(0, 3, 1, 2).float().div_(torch.tensor(255.0, device=views.device))


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, trainable or frozen."""
    return sum(parameter.numel() for parameter in model.parameters())
