"""Test-time augmentation as a detector: the mean logit over several views of an image, in one checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.transforms import JPEG_GRID, Geometry
from models.detector import Detector
from models.registry import create_model, register_model
from utils.errors import UserError


def flip(images: Tensor) -> list[Tensor]:
    """Mirror ``(N, 3, H, W)`` images."""
    return [images.flip(-1)]


def crops(images: Tensor) -> list[Tensor]:
    """Crop the four corners of ``(N, 3, H, W)`` images, about 7/8 of each side, on the JPEG grid."""
    sides = images.shape[-2:]
    height, width = (max(JPEG_GRID, side * 7 // 8 // JPEG_GRID * JPEG_GRID) for side in sides)
    bottom, right = ((sides[0] - height) // JPEG_GRID * JPEG_GRID, (sides[1] - width) // JPEG_GRID * JPEG_GRID)
    return [images[..., y : y + height, x : x + width] for y in (0, bottom) for x in (0, right)]


def blur(images: Tensor) -> list[Tensor]:
    """Blur ``(N, 3, H, W)`` images slightly (3 x 3 px, sigma 0.7 px), as another round of resampling would."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype, device=images.device)
    kernel = torch.outer(row, row).expand(3, 1, 3, 3)
    return [F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)]


VIEWS: dict[str, Callable[[Tensor], list[Tensor]]] = {"flip": flip, "crops": crops, "blur": blur}


class Views(Detector):
    """The mean logit of a detector over an image and views of it: 1 pass, plus flip 1, crops 4, blur 1.

    Explanations read the first pass, over the unchanged image.
    """

    def __init__(self, member: Detector, views: Sequence[str]) -> None:
        layers = " ".join(f"member.{layer}" for layer in (member.cam_layer or "").split())
        super().__init__(
            member.input_size, mean=(0.0,) * 3, std=(1.0,) * 3, cam_layer=layers or None, geometry=member.geometry
        )
        self.cam_reshape = member.cam_reshape
        self.has_input_gradient = member.has_input_gradient
        self.any_size = member.any_size
        self.member = member
        self.views = tuple(views)

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, H, W)`` RGB images in [0, 1]; returns logits ``(N,)``."""
        logits = [self.member(images)]
        logits += [self.member(view) for name in self.views for view in VIEWS[name](images)]
        return torch.stack(logits).mean(0)


@register_model
def views(member: dict[str, Any] | None = None, views: Sequence[str] = ("flip",)) -> Views:
    """Rebuild a detector of views from the description of its member: model, model_args, geometry.

    Raises:
        UserError: there is no member, a view is unknown, or the member takes inputs of one size only and the views
            have another.
    """
    if not member:
        raise UserError("expected a detector to apply views to; make one with: ensemble.py --checkpoint A.pt --views")
    unknown = [name for name in views if name not in VIEWS]
    if unknown or not views:
        raise UserError(f"expected --views among {', '.join(VIEWS)}, got {', '.join(unknown) or 'none'}")
    detector = create_model(member["model"], **member["model_args"])
    detector.geometry = Geometry(**member["geometry"])
    if "crops" in views and not detector.any_size:
        raise UserError(f"expected --views without crops for {member['model']}, which takes inputs of one size only")
    return Views(detector, views)
