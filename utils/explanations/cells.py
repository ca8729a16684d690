"""Raw numbers of one cell of the faithfulness table: a detector, a data set, every method and every control."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.images import UnreadableImage, read_image
from datasets.spec import Record
from datasets.transforms import to_tensor
from models.detector import Detector
from utils.explanations.controls import control_maps, randomised, rank_correlation
from utils.explanations.faithfulness import (
    attack_direction,
    attacked_segments,
    insertion_deletion,
    removal_order,
    road_combined,
)
from utils.explanations.localisation import MASK_LEVEL, Box, find_face, mask_iou, mosaics, pointing_game, share_inside
from utils.explanations.methods import TABLE_BUDGET, Budget, explain, targets_of
from utils.explanations.overlay import view_box
from utils.explanations.superpixels import segment
from utils.runtime import autocast

METRICS = (
    "zero",
    "road",
    "deletion",
    "insertion",
    "flip",
    "pointing",
    "mask_iou",
    "grid_pointing",
    "face_share",
    "random_weights",
)
COLUMNS = ("path", "label", "generator", "logit", "method", *METRICS)
COMPARED = 16  # images whose maps are made again with random weights
MOSAICS = 40  # fakes with a mask that are laid out with three reals

SaysFake = Callable[[Tensor], Tensor]  # logits (N,) to verdicts (N,) bool


@dataclass(frozen=True)
class Settings:
    """How a cell is measured; ``target`` is predicted, fake or real."""

    methods: tuple[str, ...]
    target: str = "fake"
    layer: str | None = None
    batch_size: int = 16
    seed: int = 0
    dtype: torch.dtype = torch.float32
    budget: Budget = TABLE_BUDGET


@dataclass
class Views:
    """Some images as the detector sees them: ``(N, 3, H, W)``, with masks ``(H, W)`` bool and face boxes if known."""

    records: list[Record] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    masks: list[np.ndarray | None] = field(default_factory=list)
    faces: list[Box | None] = field(default_factory=list)


def read_views(detector: Detector, records: Sequence[Record]) -> tuple[Views, list[dict[str, str]]]:
    """Read images, masks and faces; the second list holds ``{path, reason}`` of what cannot be read."""
    views, unreadable = Views(), []
    for record in records:
        try:
            image = read_image(record.path)
            mask = read_image(record.mask) if record.mask else None
        except UnreadableImage as error:
            unreadable.append({"path": record.path, "reason": str(error)})
            continue
        views.records.append(record)
        views.images.append(to_tensor(detector.geometry(image)))
        shown = None if mask is None else detector.geometry(mask)[..., 0] > MASK_LEVEL * 255
        views.masks.append(shown if shown is not None and shown.any() else None)
        views.faces.append(_face_in_view(detector, image))
    return views, unreadable


def _face_in_view(detector: Detector, image: np.ndarray) -> Box | None:
    face = find_face(image)
    if face is None:
        return None
    top, left, bottom, right = view_box(detector.geometry, *image.shape[:2])
    size = detector.geometry.size
    rows = [round((each - top) / (bottom - top) * size) for each in (face[0], face[2])]
    columns = [round((each - left) / (right - left) * size) for each in (face[1], face[3])]
    box = (max(0, rows[0]), max(0, columns[0]), min(size, rows[1]), min(size, columns[1]))
    return box if box[0] < box[2] and box[1] < box[3] else None


def measure_cell(
    detector: Detector, says_fake: SaysFake, records: Sequence[Record], settings: Settings, description: str = ""
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Measure all methods and controls on all records.

    Returns:
        One row of ``COLUMNS`` per image and method, NaN where a figure does not exist, and what cannot be read.
    """
    from tqdm import tqdm

    rows: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    forged, first = Views(), Views()
    reals: list[Tensor] = []
    starts = range(0, len(records), settings.batch_size)
    for start in tqdm(starts, desc=description, unit="batch", disable=None, leave=False):
        views, failures = read_views(detector, records[start : start + settings.batch_size])
        unreadable += failures
        if not views.records:
            continue
        batch_rows = _measure_batch(detector, says_fake, views, settings, seed=settings.seed + start)
        rows += batch_rows
        for index, record in enumerate(views.records):
            if views.masks[index] is not None and len(forged.records) < MOSAICS:
                _append(forged, views, index)
            if record.label == 0 and len(reals) < MOSAICS:
                reals.append(views.images[index])
            if len(first.records) < COMPARED:
                _append(first, views, index)
    by_key = {(row["path"], row["method"]): row for row in rows}
    if first.records and next(detector.parameters(), None) is not None:
        _compare_with_random_weights(detector, first, settings, by_key)
    if forged.records and len(reals) >= 3 and detector.any_size:
        _play_grid_pointing(detector, forged, reals, settings, by_key)
    return rows, unreadable


def _append(target: Views, source: Views, index: int) -> None:
    for name in ("records", "images", "masks", "faces"):
        getattr(target, name).append(getattr(source, name)[index])


def _device_of(detector: Detector) -> torch.device:
    return detector.mean.device


def all_maps(detector: Detector, images: Tensor, sign: Tensor, settings: Settings, seed: int) -> dict[str, Tensor]:
    """Maps of every method and every control, ``(N, H, W)`` each."""
    maps = explain(
        detector, images, settings.methods, sign, layer=settings.layer, budget=settings.budget, dtype=settings.dtype
    )
    return maps | control_maps(images, seed)


def _measure_batch(
    detector: Detector, says_fake: SaysFake, views: Views, settings: Settings, seed: int
) -> list[dict[str, Any]]:
    images = torch.stack(views.images).to(_device_of(detector))

    @torch.inference_mode()
    def logits_of(pixels: Tensor) -> Tensor:
        with autocast(pixels.device, settings.dtype):
            return detector(pixels).float()

    logits = logits_of(images)
    verdict = says_fake(logits)
    sign = targets_of(verdict, settings.target)
    direction = attack_direction(detector, images) if detector.has_input_gradient else None
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    segments = [segment(image, settings.budget.segments) for image in pixels]
    rows = []
    for method, maps in all_maps(detector, images, sign, settings, seed).items():
        heats = maps.numpy()
        ranks = np.stack([removal_order(heat, seed) for heat in heats])
        on_device = torch.from_numpy(ranks).to(images.device)
        road = road_combined(lambda x: logits_of(x) * sign, images, on_device)
        insertion, deletion = insertion_deletion(lambda x: logits_of(x) * sign, images, on_device)
        flips = np.full(len(images), np.nan)
        if direction is not None:
            attacked = attacked_segments(images, direction, heats, segments, verdict)
            flips = (says_fake(logits_of(attacked)) != verdict).float().cpu().numpy()
        for index, record in enumerate(views.records):
            rows.append(
                {
                    "path": record.path,
                    "label": record.label,
                    "generator": record.generator,
                    "logit": float(logits[index]),
                    "method": method,
                    "zero": float(heats[index].max() <= 0),
                    "road": float(road[index]),
                    "deletion": float(deletion[index]),
                    "insertion": float(insertion[index]),
                    "flip": float(flips[index]),
                    "grid_pointing": np.nan,
                    "random_weights": np.nan,
                    **_places(views, index, heats[index], ranks[index], explains_fake=bool(sign[index] > 0)),
                }
            )
    return rows


def _places(views: Views, index: int, heat: np.ndarray, ranks: np.ndarray, explains_fake: bool) -> dict[str, float]:
    """Figures against the mask and the face of one image; a mask is evidence for fake only."""
    mask, face = views.masks[index], views.faces[index]
    mask = mask if explains_fake else None
    return {
        "pointing": pointing_game(heat, mask) if mask is not None else np.nan,
        "mask_iou": mask_iou(ranks, mask) if mask is not None else np.nan,
        "face_share": share_inside(heat, face) if face is not None else np.nan,
    }


def _batches(views: Views, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(views.images), size):
        yield start, torch.stack(views.images[start : start + size])


def _compare_with_random_weights(detector: Detector, views: Views, settings: Settings, by_key: dict) -> None:
    """Fill in how alike the maps stay, as rank correlation, when the weights are shuffled."""
    stranger = randomised(detector, settings.seed)
    for start, images in _batches(views, settings.batch_size):
        images = images.to(_device_of(detector))
        sign = torch.ones(len(images), device=images.device)
        known, unknown = (all_maps(model, images, sign, settings, settings.seed) for model in (detector, stranger))
        for method, maps in known.items():
            for index, heat in enumerate(maps.numpy()):
                row = by_key[views.records[start + index].path, method]
                small = [
                    cv2.resize(each, (32, 32), interpolation=cv2.INTER_AREA)
                    for each in (heat, unknown[method][index].numpy())
                ]
                row["random_weights"] = rank_correlation(*small)


def _play_grid_pointing(
    detector: Detector, views: Views, reals: Sequence[Tensor], settings: Settings, by_key: dict
) -> None:
    """Fill in the pointing game on mosaics of a fake and three reals."""
    masks = np.stack([mask for mask in views.masks if mask is not None])
    size = max(1, settings.batch_size // 4)
    for start, fakes in _batches(views, size):
        images, wide = mosaics(fakes, masks[start : start + size], reals, settings.seed + start)
        images = images.to(_device_of(detector))
        sign = torch.ones(len(images), device=images.device)
        for method, maps in all_maps(detector, images, sign, settings, settings.seed + start).items():
            for index, heat in enumerate(maps.numpy()):
                row = by_key[views.records[start + index].path, method]
                row["grid_pointing"] = pointing_game(heat, wide[index])
