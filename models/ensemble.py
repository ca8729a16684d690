"""An ensemble of detectors as one detector: one checkpoint, one forward pass, gradients included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.transforms import FACE_MARGIN, JPEG_GRID, Geometry
from models.detector import Detector
from models.operating_point import MIN_P_FAKE, SIGMOID_SHARE, OperatingPoint
from models.registry import create_model, register_model
from utils.errors import UserError

if TYPE_CHECKING:
    from models.foundation import Foundation


class Ensemble(Detector):
    """The weighted sum of the members' calibrated logits.

    A member with a floor is a specialist: it knows some kinds of fakes only, so that its low logits say nothing about
    others. It adds softplus(logit - floor) instead of its logit.

    Images arrive in a common frame, the largest view that any member needs; each member crops or resizes its input from
    it. A cropping member sees the same pixels as alone if its size differs from the largest crop by a multiple of
    16 px, else pixels at most 8 px off, still on the JPEG grid. A resizing member sees only what is inside the frame.
    If a member frames faces, the common frame is that of the widest margin. Specialists take what the others need.

    Members on the same vision transformer compute the first blocks that they share only once.

    Class activation maps combine all members that see the whole frame, weighted by their share of the common logit.
    The weights are equal, follow validation, or come from a logistic regression on validation logits (stacking:
    Wolpert, Neural Networks 1992); ``ensemble.py`` fits them.
    """

    weights: Tensor
    bias: Tensor

    def __init__(self, members: Sequence[Detector], geometry: Geometry, floors: Sequence[float | None]) -> None:
        layers = [
            f"members.{number}.{layer}"
            for number, member in enumerate(members)
            if sees_whole(geometry, member.geometry) and member.cam_reshape is None
            for layer in (member.cam_layer or "").split()
        ]
        super().__init__(
            geometry.size, mean=(0.0,) * 3, std=(1.0,) * 3, cam_layer=" ".join(layers) or None, geometry=geometry
        )
        self.members = nn.ModuleList(members)
        self.floors = list(floors)
        self.has_input_gradient = all(member.has_input_gradient for member in members)
        self.register_buffer("weights", torch.full((len(members),), 1 / len(members), dtype=torch.float64))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))
        self.stem_depth, self.on_stem = 0, frozenset[int]()
        self.register_load_state_dict_post_hook(lambda ensemble, _: ensemble.find_stem())

    def find_stem(self) -> None:
        """Find the members that share their first blocks with the first vision transformer, once all have weights."""
        members = cast("Sequence[Foundation]", self.members)
        towers = [number for number, member in enumerate(members) if member.caches_tokens]
        depths = {}
        if len(towers) > 1:
            from models.foundation import common_stem  # imports timm

            depths = {number: common_stem(members[towers[0]], members[number]) for number in towers[1:]}
            depths = {number: depth for number, depth in depths.items() if depth}
        self.stem_depth = min(depths.values(), default=0)
        self.on_stem = frozenset([towers[0], *depths] if depths else [])

    def evidence(self, images: Tensor, members: slice = slice(None)) -> Tensor:
        """Return what the members add up, ``(N, M)`` float64, for ``(N, 3, H, W)`` images in [0, 1]."""
        columns, stem = [], None
        for number in range(len(self.members))[members]:
            member, floor = cast("Detector", self.members[number]), self.floors[number]
            view = member_view(images, self.geometry, member.geometry)
            if number in self.on_stem:
                tower = cast("Foundation", member)
                stem = tower.stem(view, self.stem_depth) if stem is None else stem
                logits = tower.from_stem(stem, self.stem_depth)
            else:
                logits = member(view)
            logits = calibrated_logits(logits.double(), member.operating_point.calibration)
            columns.append(logits if floor is None else softplus(logits - floor))
        return torch.stack(columns, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, H, W)`` RGB images in [0, 1]; returns logits ``(N,)`` float64."""
        return self.evidence(images) @ self.weights + self.bias


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)). ONNX Runtime has no Softplus in float64, in which ensembles add."""
    return x.relu() + (-x.abs()).exp().log1p()


def calibrated_logits(logits: Tensor, calibration: dict[str, Any] | None) -> Tensor:
    """Calibrate logits ``(N,)`` as ``OperatingPoint.p_fake`` does, differentiably."""
    if calibration is None or calibration["method"] != "isotonic":
        calibration = calibration or {}
        return logits / calibration.get("temperature", 1.0) + (calibration.get("bias") or 0.0)
    x, y = (torch.tensor(calibration[key], dtype=logits.dtype, device=logits.device) for key in ("x", "y"))
    right = torch.searchsorted(x, logits.detach().contiguous()).clamp(min=1).clamp(max=len(x) - 1)
    left = (right - 1).clamp(min=0)  # a curve of one point has left = right = 0 and is constant
    along = ((logits - x[left]) / (x[right] - x[left]).clamp(min=torch.finfo(x.dtype).tiny)).clamp(0, 1)
    mixed = (1 - SIGMOID_SHARE) * (y[left] + along * (y[right] - y[left])) + SIGMOID_SHARE * torch.sigmoid(logits)
    return torch.logit(mixed.clamp(MIN_P_FAKE, 1 - MIN_P_FAKE))


def member_view(images: Tensor, frame: Geometry, wanted: Geometry) -> Tensor:
    """Cut the central crop of a member out of the common frame, on the JPEG grid, or resize the frame to its input.

    A member that frames faces more tightly than the common frame gets its centre.
    """
    if frame.needs_face and wanted.needs_face and wanted.margin < frame.margin:
        side = round(images.shape[-1] * wanted.margin / frame.margin)
        start = (images.shape[-1] - side) // 2
        images = images[..., start : start + side, start : start + side]
    if wanted.size == images.shape[-1] == images.shape[-2]:
        return images
    is_crop = wanted.mode == "crop" and not frame.needs_face and wanted.resize_to == frame.resize_to
    if is_crop and wanted.size <= min(images.shape[-2:]):
        top, left = ((side - wanted.size) // 2 // JPEG_GRID * JPEG_GRID for side in images.shape[-2:])
        return images[..., top : top + wanted.size, left : left + wanted.size]
    return F.interpolate(images, (wanted.size, wanted.size), mode="bicubic", antialias=True).clamp(0, 1)


def sees_whole(frame: Geometry, wanted: Geometry) -> bool:
    """Whether a member sees the whole common frame, so that its class activation map covers it."""
    return wanted == frame or (frame.needs_face and not wanted.needs_face)


def common_frame(geometries: Sequence[Geometry]) -> Geometry:
    """Choose the frame from which every member can take its view: the geometry of the members if they share one.

    With a member that frames faces, it is the widest frame, at a size at which no such member loses pixels. Members
    that see whole pictures get the face with its surroundings, as with --faces.

    Raises:
        UserError: the members crop from images of different scales, which no common frame can provide.
    """
    if len(set(geometries)) == 1:
        return geometries[0]
    if faces := [geometry for geometry in geometries if geometry.needs_face]:
        margins = [geometry.margin for geometry in faces] + [FACE_MARGIN] * (len(faces) < len(geometries))
        sizes = [round(g.size * (max(margins) / g.margin if g.needs_face else 1)) for g in geometries]
        return Geometry("face", max(sizes), margin=max(margins))
    crops = [geometry for geometry in geometries if geometry.mode == "crop"]
    if not crops:
        return max(geometries, key=lambda geometry: geometry.size)
    size = max(geometry.size for geometry in crops)
    # Half of the growth must be on the JPEG grid, or the crops would shift.
    size += -(-max(0, max(geometry.size for geometry in geometries) - size) // (2 * JPEG_GRID)) * 2 * JPEG_GRID
    scales = {geometry.resize_to for geometry in crops}
    if len(scales) > 1 or size > (crops[0].resize_to or size):
        shown = "; ".join(sorted({f"{g.mode} {g.size} px, --resize-to {g.resize_to or 'none'}" for g in geometries}))
        raise UserError(f"expected members that crop with one --resize-to and see no more than it, got {shown}")
    return Geometry("crop", size, crops[0].resize_to)


@register_model
def ensemble(members: list[dict[str, Any]] | None = None) -> Ensemble:
    """Rebuild an ensemble from the descriptions of its members: model, model_args, geometry, calibration.

    That of a specialist also has its floor, and its geometry has no influence on the common frame.

    Raises:
        UserError: there are no members.
    """
    if not members:
        raise UserError("expected the members of an ensemble; make one with: python ensemble.py --checkpoint A.pt B.pt")
    detectors = []
    for description in members:
        detector = create_model(description["model"], **description["model_args"])
        detector.geometry = Geometry(**description["geometry"])
        detector.operating_point = OperatingPoint(description["calibration"])
        detectors.append(detector)
    floors = [description.get("floor") for description in members]
    frames = [detector.geometry for detector, floor in zip(detectors, floors, strict=True) if floor is None]
    return Ensemble(detectors, common_frame(frames), floors)
