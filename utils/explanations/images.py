"""From image files to explained images: scores, verdicts and maps at the size of each picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.images import UnreadableImage, read_image
from datasets.records import class_label
from datasets.spec import LABEL_NAMES
from datasets.transforms import to_tensor
from models.detector import Detector
from models.operating_point import OperatingPoint
from utils.explanations.figures import Explained
from utils.explanations.methods import FIGURE_BUDGET, Budget, explain, targets_of
from utils.explanations.overlay import place_map, seen_mask
from utils.explanations.superpixels import segment, top_segments
from utils.runtime import autocast

REGIONS = 3
THUMBNAIL = 256  # px, the longer side of what sheets keep of each image


def says_fake(point: OperatingPoint, logits: torch.Tensor) -> torch.Tensor:
    """Return the verdicts ``(N,)`` bool of logits ``(N,)``, without an unsure band, on the device of the logits."""
    return torch.from_numpy(point.p_fake(logits.double().cpu().numpy()) >= point.threshold()).to(logits.device)


def label_of(path: str) -> tuple[int | None, str]:
    """Read label and source off the folders of a path: ``(1, "blended")`` for .../fake/blended/7.jpg."""
    below: list[str] = []
    for folder in Path(path).resolve().parents:
        label = class_label(folder.name)
        if label is not None:
            return label, "/".join(reversed(below)) or LABEL_NAMES[label]
        below.append(folder.name)
    return None, Path(path).resolve().parent.name


def explain_files(
    detector: Detector,
    point: OperatingPoint,
    paths: Sequence[str],
    methods: Sequence[str],
    *,
    target: str = "predicted",
    layer: str | None = None,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    budget: Budget = FIGURE_BUDGET,
) -> Iterator[tuple[str, Explained | str]]:
    """Explain files in their order; yields each path with its maps, or with the reason why it cannot be read."""
    device = detector.mean.device
    for start in range(0, len(paths), batch_size):
        names = paths[start : start + batch_size]
        images = [_read(name) for name in names]
        readable = [image for image in images if not isinstance(image, str)]
        views = [detector.geometry(image) for image in readable]
        if views:
            inputs = torch.stack([to_tensor(view) for view in views]).to(device)
            with torch.inference_mode(), autocast(device, dtype):
                logits = detector(inputs).float()
            sign = targets_of(says_fake(point, logits), target)
            maps = explain(detector, inputs, methods, sign, layer=layer, budget=budget, dtype=dtype)
            p_fake = point.p_fake(logits.double().cpu().numpy())
            scores = p_fake, point.verdicts(p_fake), sign.tolist()
        place = 0
        for name, image in zip(names, images, strict=True):
            if isinstance(image, str):
                yield name, image
                continue
            heats = {method: maps[method][place].numpy() for method in methods}
            facts = [column[place] for column in scores]
            yield name, _at_full_size(detector, name, image, views[place], heats, facts)
            place += 1


def _read(path: str) -> np.ndarray | str:
    try:
        return read_image(path)
    except UnreadableImage as error:
        return str(error)


def _at_full_size(
    detector: Detector, path: str, image: np.ndarray, view: np.ndarray, heats: dict[str, np.ndarray], facts: list
) -> Explained:
    height, width = image.shape[:2]
    segments = segment(view)

    def place(heat: np.ndarray, nearest: bool = False) -> np.ndarray:
        return place_map(heat, detector.geometry, height, width, nearest)

    label, source = label_of(path)
    return Explained(
        name=Path(path).name,
        image=image,
        heats={method: place(heat) for method, heat in heats.items()},
        regions={method: place(top_segments(heat, segments, REGIONS), True) for method, heat in heats.items()},
        seen=seen_mask(detector.geometry, height, width),
        p_fake=float(facts[0]),
        verdict=facts[1],
        target="fake" if facts[2] > 0 else "real",
        label=label,
        source=source,
    )


def shrink(item: Explained, longest: int) -> Explained:
    """A copy for figures: nothing longer than ``longest`` px."""
    height, width = item.image.shape[:2]
    if max(height, width) <= longest:
        return item
    factor = longest / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))

    def smaller(array: np.ndarray, how: int = cv2.INTER_AREA) -> np.ndarray:
        return cv2.resize(array, size, interpolation=how)

    return Explained(
        **{
            **vars(item),
            "image": smaller(item.image),
            "heats": {name: smaller(heat) for name, heat in item.heats.items()},
            "regions": {name: smaller(part, cv2.INTER_NEAREST) for name, part in item.regions.items()},
            "seen": smaller(item.seen.astype(np.uint8), cv2.INTER_NEAREST) > 0,
        }
    )
