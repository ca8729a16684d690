"""Score images with detectors: the evaluation loop that all scripts share.

The loop takes jobs, pairs of a detector and a tier of degradation. However many jobs there are, an image is decoded
once, degraded once per tier and prepared once per tier and geometry.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.faces.finder import Finder, highest_of_each
from datasets.faces.framing import Box
from datasets.listing.records import Listing, Record, Sampling
from datasets.loading import ImageDataset, make_loader
from datasets.perturbations import CLEAN, apply_tier, content_seed, move_box
from datasets.transforms import Geometry
from models.detector import Detector
from models.operating_point import OperatingPoint
from utils.distributed import ScoredBatch, share_batches, team
from utils.scoring.table import ScoreTable
from utils.scoring.tracks import Track, highest, score_video, score_videos


class Job(NamedTuple):
    """A detector and the tier of degradation of the images it scores."""

    detector: Detector
    tier: str = CLEAN


@dataclass(frozen=True)
class Settings:
    """How to score: images per batch, loader processes, and the arithmetic of the detector.

    With ``every_face``, the score of a picture is the highest of its faces.
    """

    batch_size: int = 32
    workers: int = 0
    dtype: torch.dtype = torch.float32
    every_face: bool = False


@dataclass
class Scores:
    """Logits of the readable images of a list of records.

    Attributes:
        indices: positions in the records, ``(N,)`` int64, increasing.
        logits: ``(N,)`` float64.
        unreadable: ``(index, reason)`` of the other images.
    """

    indices: np.ndarray
    logits: np.ndarray
    unreadable: list[tuple[int, str]] = field(default_factory=list)


class Views:
    """A loader transform that makes all views of an image that some jobs need, as uint8; picklable for the workers.

    A view is the image degraded by one tier and prepared by one geometry, ``(size, size, 3)``. Several views differ in
    size and cannot be stacked, so they are joined into one row of bytes.
    """

    def __init__(self, jobs: Sequence[Job], every_face: bool = False) -> None:
        self.every_face = every_face
        self.needs_face = any(detector.geometry.needs_face for detector, _ in jobs)
        self.by_tier: dict[str, list[Geometry]] = {}
        for detector, tier in jobs:
            geometries = self.by_tier.setdefault(tier, [])
            if detector.geometry not in geometries:
                geometries.append(detector.geometry)

    def __call__(self, image: np.ndarray, seed: int = 0, box: Box | None = None) -> Tensor:
        content = content_seed(image) if set(self.by_tier) != {CLEAN} else b""
        views = []
        for tier, geometries in self.by_tier.items():
            degraded, moved = apply_tier(image, tier, content), move_box(box, tier, image.shape, content)
            for geometry in geometries:
                if moved and self.every_face:
                    views.append(geometry.of_face(degraded, moved))
                else:
                    views.append(geometry(degraded, moved))
        return torch.tensor(views[0] if len(views) == 1 else np.concatenate([view.reshape(-1) for view in views]))

    def split(self, batch: Tensor) -> Iterator[tuple[tuple[str, Geometry], Tensor]]:
        """Yield each view of a batch, ``(N, size, size, 3)``, with its tier and geometry."""
        rows, start = batch.flatten(1), 0
        for tier, geometries in self.by_tier.items():
            for geometry in geometries:
                end = start + 3 * geometry.size**2
                yield (tier, geometry), rows[:, start:end].unflatten(1, (geometry.size, geometry.size, 3))
                start = end


def stream(jobs: Sequence[Job], records: Sequence[Record], settings: Settings | None = None) -> Iterator[ScoredBatch]:
    """Score records in their order with all jobs, one batch at a time; memory does not grow with their number.

    The detectors, at least one, must be on the same device. Of several processes each scores every n-th batch and all
    of them get all results. The batches, and so all bits of the logits, are those of a single process.

    Yields:
        ``(indices, logits, unreadable)`` of a batch, as in :class:`Scores`, with logits ``(jobs, N)``.
    """
    settings = settings or Settings()
    set_up(jobs)
    if team.size == 1:
        return _score(jobs, records, settings)
    return share_batches(
        len(records),
        settings.batch_size,
        lambda own: _score(jobs, [records[index] for index in own.tolist()], settings),
    )


def set_up(jobs: Sequence[Job]) -> None:
    """Bring the detectors into the state in which they score."""
    for detector in {id(detector): detector for detector, _ in jobs}.values():
        detector.eval().to(memory_format=torch.channels_last)


def _score(jobs: Sequence[Job], records: Sequence[Record], settings: Settings) -> Iterator[ScoredBatch]:
    """Score records in this process."""
    views, is_cuda = Views(jobs, settings.every_face), jobs[0].detector.mean.device.type == "cuda"
    dataset = ImageDataset(records, views, every_face=settings.every_face)
    loader = make_loader(dataset, settings.batch_size, workers=settings.workers, pin_memory=is_cuda)
    for batch in loader:
        indices, logits = batch.indices.numpy(), _logits(jobs, views, batch.images, settings)
        if settings.every_face:
            indices, logits = highest_of_each(indices, logits)
        yield indices, logits, [(item.index, item.reason) for item in batch.unreadable]


def _logits(jobs: Sequence[Job], views: Views, images: Tensor, settings: Settings) -> np.ndarray:
    """Score joined views ``(N, ...)`` with all jobs; returns logits ``(jobs, N)``."""
    device, logits = jobs[0].detector.mean.device, np.empty((len(jobs), len(images)))
    for start in range(0, len(images), settings.batch_size):  # a batch of pictures may hold many faces
        part = slice(start, start + settings.batch_size)
        for key, view in views.split(images[part].to(device, non_blocking=True)):
            for number, (detector, tier) in enumerate(jobs):
                if (tier, detector.geometry) == key:
                    logits[number, part] = detector.score_views(view, settings.dtype)
    return logits


def score(
    jobs: Sequence[Job], records: Sequence[Record], settings: Settings | None = None, description: str | None = None
) -> list[Scores]:
    """Score all records and return the scores of each job, which share ``indices`` and ``unreadable``.

    A progress bar with the ``description`` appears on stderr if that is a terminal.
    """
    from tqdm import tqdm

    indices, logits, unreadable = [np.empty(0, np.int64)], [np.empty((len(jobs), 0))], []
    with tqdm(total=len(records), desc=description, unit="img", disable=None, leave=False) as bar:
        for batch_indices, batch_logits, failures in stream(jobs, records, settings):
            indices.append(batch_indices)
            logits.append(batch_logits)
            unreadable += failures
            bar.update(len(batch_indices) + len(failures))
    columns = np.concatenate(logits, axis=1)
    return [Scores(np.concatenate(indices), column, unreadable) for column in columns]


def score_together(
    jobs: Sequence[Job], listings: Sequence[Listing], settings: Settings | None = None, description: str | None = None
) -> list[list[Scores]]:
    """Score several listings with one loader, whose processes take a while to start.

    Returns, for each listing, the scores of each job, as :func:`score` does.
    """
    if not listings:
        return []
    whole = score(jobs, [record for listing in listings for record in listing.records], settings, description)
    ends = np.cumsum([0, *(len(listing.records) for listing in listings)]).tolist()
    return [[_part(scores, start, end) for scores in whole] for start, end in pairwise(ends)]


def _part(scores: Scores, start: int, end: int) -> Scores:
    """The scores of the records from ``start`` to before ``end``, with indices from 0."""
    own = (start <= scores.indices) & (scores.indices < end)
    failed = [(index - start, reason) for index, reason in scores.unreadable if start <= index < end]
    return Scores(scores.indices[own] - start, scores.logits[own], failed)


def score_clips(
    jobs: Sequence[Job], listing: Listing, finder: Finder, settings: Settings, description: str | None = None
) -> list[Scores]:
    """Score a listing of videos with all jobs; the logit of a video is that of its most suspicious face.

    Frames are degraded like pictures. A line on stderr counts the videos without a face.
    """
    from tqdm import tqdm

    views, sampling = Views(jobs, every_face=True), listing.sampling or Sampling()
    set_up(jobs)

    def view(frame: np.ndarray, box: Box | None) -> np.ndarray:
        return views(frame, 0, box).numpy()

    def score_views(images: np.ndarray) -> np.ndarray:
        return _logits(jobs, views, torch.from_numpy(images), settings)

    def score_one(path: str) -> list[Track]:
        return score_video(path, sampling, finder, view, score_views, settings.batch_size)

    logits: dict[int, np.ndarray] = {}
    unreadable: list[tuple[int, str]] = []
    faceless, paths = 0, [record.path for record in listing.records]
    bar = tqdm(score_videos(paths, score_one), description, len(paths), unit="video", disable=None, leave=False)
    for index, (_, found) in enumerate(bar):
        if isinstance(found, str):
            unreadable.append((index, found))
        else:
            logits[index] = highest(found)
            faceless += not found[0].is_face
    if faceless:
        print(f"{description}: no face in {faceless} of {len(paths)} videos, scored as a whole", file=sys.stderr)
    indices = np.fromiter(logits, np.int64, len(logits))
    columns = np.stack([*logits.values()], 1) if logits else np.empty((len(jobs), 0))
    return [Scores(indices, column, unreadable) for column in columns]


def score_table(
    records: Sequence[Record], scores: Scores, point: OperatingPoint, dataset: str, tier: str = CLEAN
) -> ScoreTable:
    """Return the scores of labelled records in the layout of the scores file."""
    scored = [records[index] for index in scores.indices]
    return ScoreTable(
        path=[record.path for record in scored],
        label=np.array([record.label for record in scored], dtype=np.int64),
        dataset=[dataset] * len(scored),
        generator=[record.generator for record in scored],
        tier=[tier] * len(scored),
        logit=scores.logits,
        p_fake=point.p_fake(scores.logits),
    )
