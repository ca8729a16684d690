"""Three ways to score a list of records: with a checkpoint, with another engine, with an export that needs no torch.

Each returns an iterator over batches, ``(indices, logits, unreadable)`` as ``utils.scoring.scorer.stream`` has
them, and the checkpoint's description.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.faces import Finder, highest_of_each
from datasets.parallel import decode_batches
from datasets.records import Record
from datasets.transforms import Geometry
from utils.distributed import join_team, share_batches, team
from utils.engines.registry import ENGINES, missing
from utils.errors import UserError

ScoredBatches = Iterator[tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]]


def open_checkpoint(
    file: Path,
    records: Sequence[Record],
    device_name: str,
    precision: str,
    *,
    batch_size: int,
    workers: int | None,
    threads: int | None,
    finder: Finder | None = None,
) -> tuple[ScoredBatches, dict[str, Any]]:
    """Score with the loop that evaluate.py uses."""
    from utils.checkpoints.file import load_detector
    from utils.runtime import pick_device, pick_precision, pick_workers, set_threads
    from utils.scoring.scorer import Job, Settings, stream

    device = pick_device(device_name)
    join_team(device)
    dtype = pick_precision(precision, device, training=False)
    set_threads(threads)
    detector, checkpoint = load_detector(file, device)
    settings = Settings(batch_size, pick_workers(workers, device), dtype, finder)
    batches = stream([Job(detector)], records, settings)
    return ((indices, logits[0], unreadable) for indices, logits, unreadable in batches), checkpoint


def open_engine(
    file: Path,
    records: Sequence[Record],
    engine: str,
    device_name: str,
    *,
    batch_size: int,
    workers: int | None,
    threads: int | None,
    finder: Finder | None = None,
) -> tuple[ScoredBatches, dict[str, Any]]:
    """Score a checkpoint with one of torch's engines.

    Raises:
        UserError: the engine needs an export, or cannot run here.
    """
    from utils.checkpoints.file import load_checkpoint
    from utils.runtime import pick_device

    if ENGINES[engine].source != "pt":
        raise UserError(
            f"expected an export (.onnx) for --engine {engine}, got {str(file)!r}; make one with: "
            f"python benchmark.py --checkpoint {file} --export onnx --output FILE.onnx"
        )
    device = pick_device(device_name)
    if reason := missing(engine, str(device)):
        raise UserError(f"expected an --engine that can run here, got {engine}: {reason}")
    join_team(device)
    checkpoint = load_checkpoint(file)
    run = ENGINES[engine].build(file, threads, str(device))
    return score_batches(run, Geometry(**checkpoint["geometry"]), records, batch_size, workers, finder), checkpoint


def open_exported(
    file: Path,
    records: Sequence[Record],
    engine: str,
    *,
    batch_size: int,
    workers: int | None,
    threads: int | None,
    finder: Finder | None = None,
) -> tuple[ScoredBatches, dict[str, Any]]:
    """Score with an export and without torch."""
    from utils.engines.exported import load_onnx_detector

    if "TORCHELASTIC_RUN_ID" in os.environ:  # only then is torch needed, to speak to the other processes
        import torch

        join_team(torch.device("cpu"))
    detector = load_onnx_detector(file, engine, threads)
    return score_batches(detector, detector.geometry, records, batch_size, workers, finder), detector.description


def score_batches(
    run: Callable[[np.ndarray], np.ndarray],
    geometry: Geometry,
    records: Sequence[Record],
    batch_size: int,
    workers: int | None,
    finder: Finder | None = None,
) -> ScoredBatches:
    """Score with an engine while threads decode the next images; under torchrun with every n-th batch each."""
    import cv2

    cv2.setNumThreads(1)  # images are decoded several at a time
    threads = workers or os.cpu_count() or 1

    def score(wanted: Sequence[Record]) -> ScoredBatches:
        for indices, images, unreadable in decode_batches(wanted, geometry, batch_size, threads, finder):
            logits = np.asarray(run(images), np.float64).reshape(-1) if len(images) else np.empty(0)
            if finder:
                indices, logits = highest_of_each(indices, logits)
            yield indices, logits, unreadable

    if team.size == 1:
        return score(records)
    return share_batches(len(records), batch_size, lambda own: score([records[index] for index in own]))
