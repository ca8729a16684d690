"""The one evaluation loop: every script that scores images scores them here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from datasets.loading import Batch, ImageDataset, make_loader
from datasets.spec import Record
from datasets.transforms import EvalTransform
from models import Detector
from utils.calibration import apply_calibration
from utils.runtime import autocast
from utils.scores import ScoreTable


@dataclass
class Scores:
    """Logits of the readable images of a list of records, and the reasons for the others.

    ``indices`` (N,) int64 point into the records in increasing order, ``logits`` is (N,) float64,
    ``unreadable`` holds ``(index, reason)``.
    """

    indices: np.ndarray
    logits: np.ndarray
    unreadable: list[tuple[int, str]] = field(default_factory=list)


@torch.inference_mode()
def score_batch(detector: Detector, batch: Batch, device: torch.device, dtype: torch.dtype) -> np.ndarray:
    """Score one batch; returns logits ``(N,)`` float64. The detector is in evaluation mode already."""
    if not len(batch.images):
        return np.empty(0)
    images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
    with autocast(device, dtype):
        logits = detector(images)
    return logits.double().cpu().numpy()


def stream_scores(
    detector: Detector,
    records: Sequence[Record],
    *,
    batch_size: int = 32,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]]:
    """Score records in their order, a batch at a time; memory does not grow with their number.

    Yields:
        ``(indices, logits, unreadable)`` of one batch, as in :class:`Scores`.
    """
    device = next((tensor.device for tensor in detector.state_dict().values()), torch.device("cpu"))
    dataset = ImageDataset(records, EvalTransform(detector.geometry))
    loader = make_loader(dataset, batch_size, workers=workers, pin_memory=device.type == "cuda")
    detector.eval()
    if device.type != "meta":
        detector.to(memory_format=torch.channels_last)
    for batch in loader:
        logits = score_batch(detector, batch, device, dtype)
        yield batch.indices.numpy(), logits, [(item.index, item.reason) for item in batch.unreadable]


def score_records(
    detector: Detector,
    records: Sequence[Record],
    *,
    batch_size: int = 32,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
    description: str | None = None,
) -> Scores:
    """Score all records; a progress bar with ``description`` shows on stderr when that is a terminal."""
    from tqdm import tqdm

    parts: list[tuple[np.ndarray, np.ndarray]] = []
    unreadable: list[tuple[int, str]] = []
    with tqdm(total=len(records), desc=description, unit="img", disable=None, leave=False) as bar:
        stream = stream_scores(detector, records, batch_size=batch_size, workers=workers, dtype=dtype)
        for indices, logits, failures in stream:
            parts.append((indices, logits))
            unreadable += failures
            bar.update(len(indices) + len(failures))
    if not parts:
        return Scores(np.empty(0, np.int64), np.empty(0), unreadable)
    indices, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Scores(indices, logits, unreadable)


def score_table(
    records: Sequence[Record], scores: Scores, calibration: dict | None, dataset: str, tier: str = "clean"
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
        p_fake=apply_calibration(scores.logits, calibration),
    )
