"""The one evaluation loop: every script that scores images scores them here.

The loop takes jobs, pairs of a detector and a tier of degradation. An image is decoded once whatever the number of
jobs, degraded once per tier and prepared once per tier and geometry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from datasets.loading import Batch, ImageDataset, make_loader
from datasets.perturbations import CLEAN, apply_tier, content_seed
from datasets.spec import Record
from datasets.transforms import Geometry
from models.detector import Detector
from models.operating_point import OperatingPoint
from utils.distributed import share_batches, team
from utils.runtime import autocast
from utils.scoring.table import ScoreTable

Job = tuple[Detector, str]  # a detector and the tier of the images that it is to score
Failures = list[tuple[int, str]]


@dataclass
class Scores:
    """Logits of the readable images of a list of records, and the reasons for the others.

    ``indices`` (N,) int64 point into the records in increasing order, ``logits`` is (N,) float64,
    ``unreadable`` holds ``(index, reason)``.
    """

    indices: np.ndarray
    logits: np.ndarray
    unreadable: Failures = field(default_factory=list)


class JobViews:
    """All inputs that some jobs need of one image, as one row of bytes; picklable, so loader workers can carry it.

    A view is the image degraded by one tier and prepared by one geometry. Views differ in size and so cannot be
    stacked; as bytes they are a quarter of what they are as floats on the way from the workers and to the device.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.by_tier: dict[str, list[Geometry]] = {}
        for detector, tier in jobs:
            geometries = self.by_tier.setdefault(tier, [])
            if detector.geometry not in geometries:
                geometries.append(detector.geometry)

    def __call__(self, image: np.ndarray, seed: int | None = None) -> Tensor:
        content = content_seed(image) if set(self.by_tier) != {CLEAN} else None
        views = []
        for tier, geometries in self.by_tier.items():
            degraded = apply_tier(image, tier, content)
            views += [geometry(degraded).reshape(-1) for geometry in geometries]
        return torch.from_numpy(np.concatenate(views))

    def split(self, rows: Tensor) -> Iterator[tuple[tuple[str, Geometry], Tensor]]:
        """Turn rows ``(N, bytes)`` back into views, each ``(N, 3, size, size)`` float32 in [0, 1]."""
        start = 0
        # A tensor as divisor: by a plain number a GPU would multiply with its rounded inverse.
        white = torch.tensor(255.0, device=rows.device)
        for tier, geometries in self.by_tier.items():
            for geometry in geometries:
                end = start + 3 * geometry.size**2
                view = rows[:, start:end].reshape(len(rows), geometry.size, geometry.size, 3)
                yield (tier, geometry), view.permute(0, 3, 1, 2).float().div_(white)
                start = end


@torch.inference_mode()
def score_batch(detector: Detector, batch: Batch, device: torch.device, dtype: torch.dtype) -> np.ndarray:
    """Score one batch; returns logits ``(N,)`` float64. The detector is in evaluation mode already."""
    if not len(batch.images):
        return np.empty(0)
    images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
    with autocast(device, dtype):
        logits = detector(images)
    return logits.double().cpu().numpy()


def stream_jobs(
    jobs: Sequence[Job],
    records: Sequence[Record],
    *,
    batch_size: int = 32,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[np.ndarray, np.ndarray, Failures]]:
    """Score records in their order with all jobs, a batch at a time; memory does not grow with their number.

    Of several processes each scores every n-th batch, and all of them get all results: batches, and so logits to the
    last bit, are those of a single process.

    Args:
        jobs: at least one; all detectors on the same device.

    Yields:
        ``(indices, logits, unreadable)`` of one batch, as in :class:`Scores`, with logits ``(jobs, N)``.
    """
    if team.size == 1:
        yield from _stream_alone(jobs, records, batch_size, workers, dtype)
        return
    yield from share_batches(
        len(records),
        batch_size,
        lambda own: _stream_alone(jobs, [records[index] for index in own.tolist()], batch_size, workers, dtype),
    )


def _stream_alone(
    jobs: Sequence[Job], records: Sequence[Record], batch_size: int, workers: int, dtype: torch.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray, Failures]]:
    """What :func:`stream_jobs` does, in this process alone."""
    # Not from state_dict(): a classical detector would serialise its whole learner for it.
    tensors = (tensor for detector, _ in jobs for tensor in chain(detector.parameters(), detector.buffers()))
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    views = JobViews(jobs)
    loader = make_loader(ImageDataset(records, views), batch_size, workers=workers, pin_memory=device.type == "cuda")
    for detector in {id(detector): detector for detector, _ in jobs}.values():
        detector.eval()
        if device.type != "meta":
            detector.to(memory_format=torch.channels_last)
    for batch in loader:
        logits = np.empty((len(jobs), len(batch.indices)))
        if logits.size:
            for key, images in views.split(batch.images.to(device, non_blocking=True)):
                view = replace(batch, images=images)
                for number, (detector, tier) in enumerate(jobs):
                    if (tier, detector.geometry) == key:
                        logits[number] = score_batch(detector, view, device, dtype)
        yield batch.indices.numpy(), logits, [(item.index, item.reason) for item in batch.unreadable]


def stream_scores(
    detector: Detector,
    records: Sequence[Record],
    *,
    batch_size: int = 32,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[np.ndarray, np.ndarray, Failures]]:
    """Score records as they are with one detector; yields as :func:`stream_jobs` does, with logits ``(N,)``."""
    stream = stream_jobs([(detector, CLEAN)], records, batch_size=batch_size, workers=workers, dtype=dtype)
    for indices, logits, unreadable in stream:
        yield indices, logits[0], unreadable


def score_jobs(
    jobs: Sequence[Job],
    records: Sequence[Record],
    *,
    batch_size: int = 32,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
    description: str | None = None,
) -> list[Scores]:
    """Score all records; a progress bar with ``description`` shows on stderr when that is a terminal.

    Returns:
        The scores of each job; they share their ``indices`` and ``unreadable``.
    """
    from tqdm import tqdm

    indices: list[np.ndarray] = [np.empty(0, np.int64)]
    logits: list[np.ndarray] = [np.empty((len(jobs), 0))]
    unreadable: Failures = []
    with tqdm(total=len(records), desc=description, unit="img", disable=None, leave=False) as bar:
        stream = stream_jobs(jobs, records, batch_size=batch_size, workers=workers, dtype=dtype)
        for batch_indices, batch_logits, failures in stream:
            indices.append(batch_indices)
            logits.append(batch_logits)
            unreadable += failures
            bar.update(len(batch_indices) + len(failures))
    columns = np.concatenate(logits, axis=1)
    return [Scores(np.concatenate(indices), column, unreadable) for column in columns]


def score_records(
    detector: Detector,
    records: Sequence[Record],
    *,
    batch_size: int = 32,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
    description: str | None = None,
) -> Scores:
    """Score all records as they are with one detector; see :func:`score_jobs`."""
    return score_jobs(
        [(detector, CLEAN)], records, batch_size=batch_size, workers=workers, dtype=dtype, description=description
    )[0]


def score_table(
    records: Sequence[Record], scores: Scores, point: OperatingPoint, dataset: str, tier: str = "clean"
) -> ScoreTable:
    """Lay scores of labelled records out as the scores file has them."""
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
