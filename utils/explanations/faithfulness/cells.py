"""Raw faithfulness measurements of one cell of the table: a detector on a data set, with every method and control."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.decoding.images import UnreadableImage, read_image, read_record
from datasets.listing.spec import Record
from datasets.transforms import to_tensor
from models.detector import Detector
from utils.explanations.faithfulness.controls import control_maps, randomised, rank_correlation
from utils.explanations.faithfulness.removal import (
    attack_direction,
    attacked_segments,
    insertion_deletion,
    removal_order,
    road_combined,
)
from utils.explanations.maps import Settings, explain, targets_of
from utils.explanations.overlay import Edges, view_box
from utils.explanations.regions import (
    MASK_LEVEL,
    Box,
    find_face,
    mask_iou,
    mosaics,
    pointing_game,
    segment,
    share_inside,
)
from utils.explanations.registry import table_options
from utils.runtime import autocast

SEGMENTS = 20  # of an image, the strongest of which are attacked
COMPARED = 32  # images, half of them real, whose maps are also computed with random weights
MOSAICS = 40  # fakes with a mask that are shown in mosaics with three of as many reals


@dataclass
class View:
    """An image as the detector sees it ``(3, H, W)``, with the mask ``(H, W)`` bool and the face box if known."""

    record: Record
    image: Tensor
    mask: np.ndarray | None
    face: Box | None


@dataclass
class CellMeter:
    """Measures a cell: :meth:`measure` returns the rows; the other methods fill in their columns."""

    detector: Detector
    settings: Settings
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # by path and method
    unreadable: list[dict[str, str]] = field(default_factory=list)

    def measure(self, records: Sequence[Record], description: str = "") -> list[dict[str, Any]]:
        """Measure all methods and controls on all records.

        Returns:
            One row of ``COLUMNS`` per image and method, NaN where a value does not exist. ``unreadable`` then holds
            ``{path, reason}`` of the images without rows.
        """
        size = self.settings.batch_size
        labelled = [[record for record in records if record.label == label] for label in (0, 1)]
        compared = {id(record) for part in labelled for record in spread(part, COMPARED // 2)}
        forged = {id(record) for record in spread([record for record in labelled[1] if record.mask], MOSAICS)}
        reals = {id(record) for record in spread(labelled[0], MOSAICS)} if forged else set()
        kept: list[View] = []
        for start in tqdm(range(0, len(records), size), desc=description, unit="batch", disable=None, leave=False):
            views = self._read(records[start : start + size])
            if views:
                self._measure_batch(views, self.settings.seed + start)
            kept += [view for view in views if id(view.record) in compared | forged | reals]
        if next(self.detector.parameters(), None) is not None:
            self._compare_with_random_weights([view for view in kept if id(view.record) in compared])
        if self.detector.any_size:
            self._play_grid_pointing(
                [view for view in kept if id(view.record) in forged and view.mask is not None],
                [view.image for view in kept if id(view.record) in reals],
            )
        return list(self.rows.values())

    def _read(self, records: Sequence[Record]) -> list[View]:
        views, geometry = [], self.detector.geometry
        for record in records:
            try:
                image = read_record(record)
                mask = read_image(record.mask) if record.mask else None
            except UnreadableImage as error:
                self.unreadable.append({"path": record.path, "reason": str(error)})
                continue
            box = record.face_for(geometry)
            shown = None if mask is None else geometry(mask, box)[..., 0] > MASK_LEVEL * 255
            shown = shown if shown is not None and shown.any() else None
            edges = view_box(geometry, image.shape[0], image.shape[1], box)
            face = _face_in_view(image, edges, geometry.size)
            views.append(View(record, to_tensor(geometry(image, box)), shown, face))
        return views

    def _maps(self, images: Tensor, sign: Tensor, seed: int, detector: Detector | None = None) -> dict[str, Tensor]:
        """Maps of every method and every control, ``(N, H, W)`` each."""
        chosen = self.settings
        maps = explain(
            detector or self.detector,
            images,
            chosen.methods,
            sign,
            layer=chosen.layer,
            options=table_options(chosen.methods),
            dtype=chosen.dtype,
        )
        return maps | control_maps(images, seed)

    def _batches(self, views: Sequence[View], size: int) -> Iterator[tuple[list[View], Tensor]]:
        for start in range(0, len(views), size):
            part = list(views[start : start + size])
            yield part, torch.stack([view.image for view in part]).to(self.detector.mean.device)

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.settings.dtype):
            return self.detector(images).float()

    def _says_fake(self, logits: Tensor) -> Tensor:
        point = self.detector.operating_point
        fake = point.p_fake(logits.double().cpu().numpy()) >= point.threshold("balanced")
        return torch.from_numpy(fake).to(logits.device)

    def _measure_batch(self, views: Sequence[View], seed: int) -> None:
        _, images = next(self._batches(views, len(views)))
        logits = self._logits(images)
        verdict = self._says_fake(logits)
        sign = targets_of(verdict, self.settings.target)
        direction = attack_direction(self.detector, images) if self.detector.has_input_gradient else None
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        segments = [segment(image, SEGMENTS) for image in pixels]

        def score(changed: Tensor) -> Tensor:
            return self._logits(changed) * sign

        for method, maps in self._maps(images, sign, seed).items():
            heats = maps.numpy()
            ranks = np.stack([removal_order(heat, seed) for heat in heats])
            on_device = torch.from_numpy(ranks).to(images.device)
            road = self._road(images, sign, ranks)
            insertion, deletion = insertion_deletion(score, images, on_device)
            flips = np.full(len(images), np.nan)
            if direction is not None:
                attacked = attacked_segments(images, direction, heats, segments, verdict)
                flips = (self._says_fake(self._logits(attacked)) != verdict).float().cpu().numpy()
            for index, view in enumerate(views):
                record = view.record
                self.rows[record.path, method] = {
                    **{"path": record.path, "label": record.label, "generator": record.generator},
                    **{"logit": float(logits[index]), "method": method},
                    "zero": float(heats[index].max() <= 0),
                    "road": float(road[index]),
                    "deletion": float(deletion[index]),
                    "insertion": float(insertion[index]),
                    "flip": float(flips[index]),
                    **dict.fromkeys(("grid_pointing", "random_weights", "random_weights_road"), np.nan),
                    **_places(view, heats[index], ranks[index], explains_fake=bool(sign[index] > 0)),
                }

    def _compare_with_random_weights(self, views: Sequence[View]) -> None:
        """Fill in how similar the maps of a copy with shuffled weights are, and the ROAD of those maps."""
        seed, shuffled = self.settings.seed, randomised(self.detector, self.settings.seed)
        for part, images in self._batches(views, self.settings.batch_size):
            sign = targets_of(self._says_fake(self._logits(images)), self.settings.target)
            known, unknown = self._maps(images, sign, seed), self._maps(images, sign, seed, shuffled)
            for method in self.settings.methods:
                heats = unknown[method].numpy()
                road = self._road(images, sign, np.stack([removal_order(heat, seed) for heat in heats]))
                for view, *pair, value in zip(part, known[method].numpy(), heats, road, strict=True):
                    small = [cv2.resize(heat, (32, 32), interpolation=cv2.INTER_AREA) for heat in pair]
                    row = self.rows[view.record.path, method]
                    row |= {"random_weights": rank_correlation(*small), "random_weights_road": float(value)}

    def _road(self, images: Tensor, sign: Tensor, ranks: np.ndarray) -> Tensor:
        on_device = torch.from_numpy(ranks).to(images.device)
        return road_combined(lambda changed: self._logits(changed) * sign, images, on_device)

    def _play_grid_pointing(self, forged: Sequence[View], reals: Sequence[Tensor]) -> None:
        """Fill in the pointing game on mosaics of a fake and three reals."""
        if len(reals) < 3:
            return
        seed = self.settings.seed
        for part, fakes in self._batches(forged, max(1, self.settings.batch_size // 4)):
            masks = np.stack([view.mask for view in part if view.mask is not None])
            images, wide = mosaics(fakes, masks, reals, seed)
            images = images.to(fakes.device)
            sign = torch.ones(len(images), device=images.device)
            for method, maps in self._maps(images, sign, seed).items():
                for view, heat, mask in zip(part, maps.numpy(), wide, strict=True):
                    self.rows[view.record.path, method]["grid_pointing"] = pointing_game(heat, mask)
            seed += len(part)


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """Up to ``count`` records at even distances, so that every generator of a sorted list is represented."""
    places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[place] for place in places]


def _face_in_view(image: np.ndarray, edges: Edges, size: int) -> Box | None:
    face = find_face(image)
    if face is None:
        return None
    top, left, bottom, right = edges
    rows = [round((each - top) / (bottom - top) * size) for each in (face[0], face[2])]
    columns = [round((each - left) / (right - left) * size) for each in (face[1], face[3])]
    box = (max(0, rows[0]), max(0, columns[0]), min(size, rows[1]), min(size, columns[1]))
    return box if box[0] < box[2] and box[1] < box[3] else None


def _places(view: View, heat: np.ndarray, ranks: np.ndarray, explains_fake: bool) -> dict[str, float]:
    """Agreement with the mask and the face of one image; a mask is evidence for fake only."""
    mask = view.mask if explains_fake else None
    return {
        "pointing": np.nan if mask is None else pointing_game(heat, mask),
        "mask_iou": np.nan if mask is None else mask_iou(ranks, mask),
        "face_share": np.nan if view.face is None else share_inside(heat, view.face),
    }
