"""Explained image files: scores, verdicts and maps at the size of each picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.decoding.images import UnreadableImage, check_shape, read_image
from datasets.faces.finder import Finder, face_views
from datasets.listing.records import class_label
from datasets.listing.spec import LABEL_NAMES
from datasets.transforms import to_tensor
from models.detector import Detector
from utils.explanations.maps import Settings, explain, targets_of
from utils.explanations.overlay import place_map, seen_mask, view_box
from utils.explanations.regions import segment, top_segments
from utils.runtime import autocast

REGIONS = 3


@dataclass(frozen=True)
class Explained:
    """An image with its maps, all at the size of the image.

    ``heats`` and ``regions`` are ``(H, W)`` per method: the map, and 1, 2, 3 in the strongest segments. ``seen`` marks
    the pixels that the detector sees. ``verdict`` is fake, real or unsure, ``target`` fake or real, ``label`` 0, 1 or
    None, ``framed`` face or whole if the detector frames faces.
    """

    path: str
    image: np.ndarray
    heats: Mapping[str, np.ndarray]
    regions: Mapping[str, np.ndarray]
    seen: np.ndarray
    p_fake: float
    verdict: str
    target: str
    label: int | None = None
    source: str = ""
    framed: str = ""

    def shrunk(self, longest: int) -> Explained:
        """A copy whose longer side is at most ``longest`` px."""
        height, width = self.image.shape[:2]
        factor = longest / max(height, width)
        if factor >= 1:
            return self
        size = (max(1, round(width * factor)), max(1, round(height * factor)))

        def smaller(array: np.ndarray, how: int = cv2.INTER_AREA) -> np.ndarray:
            return cv2.resize(array, size, interpolation=how)

        return replace(
            self,
            image=smaller(self.image),
            heats={name: smaller(heat) for name, heat in self.heats.items()},
            regions={name: smaller(part, cv2.INTER_NEAREST) for name, part in self.regions.items()},
            seen=smaller(self.seen.astype(np.uint8), cv2.INTER_NEAREST) > 0,
        )


def label_of(path: str) -> tuple[int | None, str]:
    """Read label and source from the folders of a path: ``(1, "blended")`` for .../fake/blended/7.jpg."""
    below: list[str] = []
    for folder in Path(path).resolve().parents:
        label = class_label(folder.name)
        if label is not None:
            return label, "/".join(reversed(below)) or LABEL_NAMES[label]
        below.append(folder.name)
    return None, Path(path).resolve().parent.name


def explain_files(
    detector: Detector, paths: Sequence[str], settings: Settings, finder: Finder | None = None
) -> Iterator[tuple[str, Explained | str]]:
    """Explain files in order; yields each path with its maps, or with the reason why it cannot be read."""
    for start in range(0, len(paths), settings.batch_size):
        names = paths[start : start + settings.batch_size]
        images = {name: _read(name) for name in names}
        readable = {name: image for name, image in images.items() if not isinstance(image, str)}
        found = _explain_batch(detector, readable, settings, finder) if readable else {}
        for name in names:
            yield name, found.get(name) or str(images[name])


def _read(path: str) -> np.ndarray | str:
    try:
        return check_shape(read_image(path))
    except UnreadableImage as error:
        return str(error)


def _explain_batch(
    detector: Detector, images: Mapping[str, np.ndarray], settings: Settings, finder: Finder | None
) -> dict[str, Explained]:
    seen = [face_views(image, detector.geometry, finder) for image in images.values()]
    views, boxes = [each[0] for each, _ in seen], [faces[0].box if faces else None for _, faces in seen]
    inputs = torch.stack([to_tensor(view) for view in views]).to(detector.mean.device)
    with torch.inference_mode(), autocast(inputs.device, settings.dtype):
        logits = detector(inputs).double().cpu().numpy()
    point = detector.operating_point
    p_fake = point.p_fake(logits)
    says_fake = torch.from_numpy(point.leans_to_fake(p_fake)).to(inputs.device)
    sign = targets_of(says_fake, settings.target)
    maps = explain(detector, inputs, settings.methods, sign, layer=settings.layer, dtype=settings.dtype)
    found = {}
    for index, (path, image) in enumerate(images.items()):
        (height, width), segments = image.shape[:2], segment(views[index])
        heats = {method: maps[method][index].numpy() for method in settings.methods}
        tops = {method: top_segments(heat, segments, REGIONS) for method, heat in heats.items()}
        label, source = label_of(path)
        edges = view_box(detector.geometry, height, width, boxes[index])
        found[path] = Explained(
            path=path,
            image=image,
            heats={method: place_map(heat, edges, height, width) for method, heat in heats.items()},
            regions={method: place_map(top, edges, height, width, True) for method, top in tops.items()},
            seen=seen_mask(edges, height, width),
            p_fake=float(p_fake[index]),
            verdict=point.verdicts(p_fake)[index],
            target="fake" if sign[index] > 0 else "real",
            label=label,
            source=source,
            framed=("face" if boxes[index] else "whole") if finder else "",
        )
    return found
