"""Score images for predict.py, with whatever engine runs the detector, while threads decode the next images.

An export is scored without importing torch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.faces import Finder, face_views
from datasets.framing import Box
from datasets.images import UnreadableImage, read_record
from datasets.records import Record, Sampling
from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from utils.args import is_export
from utils.distributed import ScoredBatch, join_team, share_batches, team
from utils.engines.registry import ENGINES, missing
from utils.errors import UserError
from utils.scoring.tracks import ScoredVideo, score_video, score_videos

READ_AHEAD = 2  # batches being decoded while one is scored


@dataclass(frozen=True)
class Predictor:
    """A detector ready to score decoded images.

    ``score`` maps views ``(N, size, size, 3)`` uint8 RGB, prepared by the geometry, to logits ``(N,)`` float64.
    """

    geometry: Geometry
    operating_point: OperatingPoint
    score: Callable[[np.ndarray], np.ndarray]


def open_predictor(
    file: Path, engine: str = "auto", device: str = "auto", precision: str = "auto", threads: int | None = None
) -> Predictor:
    """Load a checkpoint or an export.

    ``engine`` is a name in ``utils.engines.registry``. ``auto`` runs checkpoints as evaluate.py does, and exports in
    the engine they were made for.

    Raises:
        UserError: the file cannot be loaded, or the engine cannot run it on this machine.
    """
    if is_export(file):
        return _open_export(file, engine, device, precision, threads)

    import torch

    from utils.checkpoints.file import load_detector
    from utils.runtime import set_up

    machine = set_up(device, precision, threads=threads)
    if engine != "auto" and ENGINES[engine].source != "pt":
        raise UserError(
            f"expected an export (.onnx) for --engine {engine}, got {str(file)!r}; make one with: "
            f"python benchmark.py --checkpoint {file} --export onnx --output FILE.onnx"
        )
    if engine != "auto" and (reason := missing(engine, str(machine.device))):
        raise UserError(f"expected an --engine that can run here, got {engine}: {reason}")
    detector, _ = load_detector(file, machine.device)
    if engine != "auto":
        from utils.engines.pytorch import torch_engine

        run = torch_engine(detector, threads, **ENGINES[engine].options)
        return Predictor(detector.geometry, detector.operating_point, lambda views: run(as_images(views)))
    detector.to(memory_format=torch.channels_last)
    return Predictor(
        detector.geometry,
        detector.operating_point,
        lambda views: detector.score_views(torch.from_numpy(views), machine.dtype),
    )


def _open_export(file: Path, engine: str, device: str, precision: str, threads: int | None) -> Predictor:
    from utils.engines.exported import load_onnx_detector

    if device not in ("auto", "cpu") or precision != "auto":
        raise UserError(
            "expected --device cpu and --precision auto with an export, which runs on the CPU in its own precision, "
            f"got --device {device} --precision {precision}"
        )
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torch is needed to talk to the other processes
        import torch

        join_team(torch.device("cpu"))
    detector = load_onnx_detector(file, engine, threads)
    return Predictor(detector.geometry, detector.operating_point, lambda views: detector(as_images(views)))


def as_images(views: np.ndarray) -> np.ndarray:
    """Turn views ``(N, size, size, 3)`` uint8 into images ``(N, 3, size, size)`` float32 in [0, 1], contiguous."""
    return np.ascontiguousarray(views.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def predict_records(
    predictor: Predictor,
    records: Sequence[Record],
    batch_size: int = 32,
    workers: int | None = None,
    finder: Finder | None = None,
    every_face: bool = False,
) -> Iterator[ScoredBatch]:
    """Score images in the order of their records, in memory that does not grow with their number.

    A detector that frames faces needs a ``finder``. With ``every_face``, the logit of an image is the highest logit of
    its faces, or that of the whole image if it shows none. Under torchrun each process scores every n-th batch, and all
    of them yield all results.

    Args:
        workers: threads that decode, one per CPU core by default.

    Yields:
        ``(indices, columns, unreadable)`` per batch: indices ``(N,)`` of the readable images, columns ``(2, N)`` with
        their logits and numbers of scored faces (0: the whole image was scored), and ``(index, reason)`` of the others.
    """
    cv2.setNumThreads(1)  # several images are decoded at a time

    def score(indices: Sequence[int]) -> Iterator[ScoredBatch]:
        blocks = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        pending: deque[list[Future]] = deque()
        pool = ThreadPoolExecutor(workers or os.cpu_count())
        try:
            for number in range(-READ_AHEAD, len(blocks)):
                if number + READ_AHEAD < len(blocks):
                    ahead = [records[index] for index in blocks[number + READ_AHEAD]]
                    jobs = [pool.submit(_prepare, record, predictor.geometry, finder, every_face) for record in ahead]
                    pending.append(jobs)
                if number >= 0:
                    prepared = [job.result() for job in pending.popleft()]
                    yield _score_batch(predictor, number * batch_size, prepared, batch_size)
        finally:
            pool.shutdown(cancel_futures=True)

    if team.size == 1:
        return score(range(len(records)))
    return share_batches(len(records), batch_size, lambda own: score(own.tolist()))


def predict_videos(
    predictor: Predictor, paths: Sequence[str], sampling: Sampling, finder: Finder, batch_size: int = 32
) -> Iterator[ScoredVideo]:
    """Score videos by their faces, in order; yields each with its tracks, or why it is unreadable."""
    geometry = predictor.geometry

    def view(frame: np.ndarray, box: Box | None) -> np.ndarray:
        return geometry(frame) if box is None else geometry.of_face(frame, box)

    def score(views: np.ndarray) -> np.ndarray:
        return np.asarray(predictor.score(views), np.float64).reshape(-1)

    return score_videos(paths, lambda path: score_video(path, sampling, finder, view, score, batch_size))


def _prepare(
    record: Record, geometry: Geometry, finder: Finder | None, every_face: bool
) -> tuple[np.ndarray, int] | str:
    """Decode an image; returns its views ``(V, size, size, 3)`` and its number of faces, or why it is unreadable."""
    try:
        image = read_record(record)
    except UnreadableImage as error:
        return str(error)
    views, faces = face_views(image, geometry, finder, every_face)
    return views, len(faces)


def _score_batch(
    predictor: Predictor, start: int, prepared: Sequence[tuple[np.ndarray, int] | str], batch_size: int
) -> ScoredBatch:
    """Score the views of consecutive images, the first of which has index ``start``."""
    good = [(start + place, *item) for place, item in enumerate(prepared) if not isinstance(item, str)]
    failures = [(start + place, item) for place, item in enumerate(prepared) if isinstance(item, str)]
    if not good:
        return np.empty(0, np.int64), np.empty((2, 0)), failures
    views = np.concatenate([views for _, views, _ in good])
    blocks = [views[first : first + batch_size] for first in range(0, len(views), batch_size)]
    logits = np.concatenate([np.asarray(predictor.score(block), np.float64).reshape(-1) for block in blocks])
    firsts = np.cumsum([0, *(len(views) for _, views, _ in good[:-1])])
    columns = np.stack([np.maximum.reduceat(logits, firsts), [float(faces) for _, _, faces in good]])
    return np.array([index for index, _, _ in good]), columns, failures
