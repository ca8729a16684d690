"""Maps of where a detector sees evidence: the same call for every method and every family of detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.detector import Detector
from utils.explanations.layers import Capture, capture
from utils.explanations.registry import all_methods, check_usable
from utils.runtime import autocast

BLUR = 2.0  # px at 128 px, sigma


@dataclass(frozen=True)
class Settings:
    """How to explain; ``target`` is predicted, fake or real, and no ``methods`` stands for the default."""

    methods: tuple[str, ...] = ()
    target: str = "predicted"
    layer: str | None = None
    batch_size: int = 16
    seed: int = 0
    dtype: torch.dtype = torch.float32


@dataclass
class Question:
    """The images to explain and, for each, the verdict to explain.

    Attributes:
        detector: in evaluation mode; methods that need neither gradient nor layer accept any function of images.
        images: ``(N, 3, H, W)`` RGB in [0, 1], on the detector's device.
        sign: ``(N,)``, 1 to explain "fake", -1 to explain "real".
        layer: name of the layer to read, or several separated by spaces; the detector's ``cam_layer`` by default.
    """

    detector: Detector
    images: Tensor
    sign: Tensor
    layer: str | None = None

    @cached_property
    def capture(self) -> Capture:
        """Activations and gradients of the layer; methods that read it share one pass of the model."""
        return capture(self.detector, self.images, self.sign, self.layer)

    @cached_property
    def blurred(self) -> Tensor:
        """The images without the fine traces that detectors read.

        Methods that remove a part of an image put this in its place; a grey patch would add sharp edges.
        """
        return blurred(self.images)

    def score(self, images: Tensor) -> Tensor:
        """Logit of the target ``(N,)``: high when the detector is sure of the explained verdict."""
        return self.detector(images).float() * self.sign


def explain(
    detector: Detector,
    images: Tensor,
    methods: Sequence[str],
    sign: Tensor,
    *,
    layer: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Explain a batch with several methods.

    Args:
        images, sign, layer: see :class:`Question`.
        options: keyword arguments for some of the methods.

    Returns:
        For each method ``(N, H, W)`` float32 on the CPU, not below 0, in the method's own unit: how strongly a place
        supports the target. A map of zeros means that nothing supports it.

    Raises:
        UserError: a method does not work for this detector, or the layer does not exist.
    """
    check_usable(detector, methods, layer)
    question, maps = Question(detector, images, sign, layer), {}
    with autocast(images.device, dtype):
        for name in methods:
            heat = all_methods()[name].function(question, **(options or {}).get(name, {}))
            maps[name] = enlarge(heat.float(), images.shape[-2:]).cpu()
    return maps


def targets_of(says_fake: Tensor, target: str) -> Tensor:
    """The sign ``(N,)`` that explains "fake" (1), "real" (-1) or, for ``predicted``, the verdict on each image."""
    if target == "predicted":
        return torch.where(says_fake, 1.0, -1.0)
    return torch.full((len(says_fake),), 1.0 if target == "fake" else -1.0, device=says_fake.device)


def enlarge(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resample maps ``(N, h, w)`` to ``(N, *size)``, bilinear."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def blurred(images: Tensor, sigma: float = BLUR) -> Tensor:
    """Blur ``(N, C, H, W)`` by a Gaussian of ``sigma`` px at 128 px, in proportion at other sizes."""
    scaled = sigma * max(images.shape[-2:]) / 128
    planes = images.flatten(0, 1).float().cpu().numpy()
    smooth = np.stack([cv2.GaussianBlur(plane, (0, 0), scaled) for plane in planes])
    return torch.from_numpy(smooth).to(images.device).reshape(images.shape)
