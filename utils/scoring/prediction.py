"""Score images for predict.py, with whatever engine runs the detector, while threads decode the next images.

An export is scored without importing torch.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.decoding.images import UnreadableImage, read_record
from datasets.faces.finder import Finder, face_views
from datasets.faces.framing import Box
from datasets.listing.records import Record, Sampling
from datasets.transforms import Geometry
from models.operating_point import OperatingPoint, check_logits
from utils.checkpoint_files import is_export
from utils.distributed import ScoredBatch, join_team, share_batches, team
from utils.engines.registry import ENGINES, missing
from utils.errors import UserError
from utils.scoring.tracks import ScoredVideo, Track, score_video, score_videos

READ_AHEAD = 2  # batches being decoded while one is scored

Prepared = tuple[np.ndarray, np.ndarray]  # views (V, size, size, 3); (V, 5) as in `predict_records`, V = 1 without any


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
    whole: bool = False,
) -> Iterator[ScoredBatch]:
    """Score images in the order of their records, in memory that does not grow with their number.

    A detector that frames faces needs a ``finder``. With ``every_face``, each face of an image is scored. An image that
    was searched and shows no face is scored if ``whole`` asks for that. Under torchrun each process scores every n-th
    batch, and all of them yield all results.

    Args:
        workers: threads that decode, one per CPU core by default.

    Yields:
        ``(indices, columns, unreadable)`` per batch: indices ``(N,)`` of the readable images, repeated for each scored
        face, and ``(index, reason)`` of the others. Columns ``(6, N)`` are logit, left, top, width and height of the
        face in px, and confidence: NaN where unknown, so the logit if nothing was scored, the box of a whole image.
    """
    cv2.setNumThreads(1)  # several images are decoded at a time

    def prepare(record: Record) -> Prepared | str:
        return _prepare(record, predictor.geometry, finder, every_face, whole)

    def score(indices: Sequence[int]) -> Iterator[ScoredBatch]:
        blocks = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        pending: deque[list[Future]] = deque()
        pool = ThreadPoolExecutor(workers or os.cpu_count())
        try:
            for number in range(-READ_AHEAD, len(blocks)):
                if number + READ_AHEAD < len(blocks):
                    pending.append([pool.submit(prepare, records[index]) for index in blocks[number + READ_AHEAD]])
                if number >= 0:
                    prepared = [job.result() for job in pending.popleft()]
                    yield _score_batch(predictor, number * batch_size, prepared, batch_size)
        finally:  # without waiting: the garbage collector may close a generator where a thread must not be joined
            pool.shutdown(wait=False, cancel_futures=True)

    if team.size == 1:
        return score(range(len(records)))
    return share_batches(len(records), batch_size, lambda own: score(own.tolist()))


def predict_videos(
    predictor: Predictor,
    paths: Sequence[str],
    sampling: Sampling,
    finder: Finder,
    batch_size: int = 32,
    whole: bool = False,
) -> Iterator[ScoredVideo]:
    """Score videos by their faces, in order; yields each with its tracks, or why it is unreadable.

    A video without a face has no track, but with ``whole`` one of its whole frames.
    """
    geometry = predictor.geometry

    def view(frame: np.ndarray, box: Box | None) -> np.ndarray:
        return geometry(frame) if box is None else geometry.of_face(frame, box)

    def score(views: np.ndarray) -> np.ndarray:
        return np.asarray(predictor.score(views), np.float64).reshape(-1)

    def tracks(path: str) -> list[Track]:
        found = score_video(path, sampling, finder, view, score, batch_size)
        return found if whole or found[0].is_face else []

    return score_videos(paths, tracks)


def _prepare(
    record: Record, geometry: Geometry, finder: Finder | None, every_face: bool, whole: bool
) -> Prepared | str:
    """Decode an image; returns its views and faces, or why it is unreadable."""
    try:
        image = read_record(record)
    except UnreadableImage as error:
        return str(error)
    views, faces = face_views(image, geometry, finder, every_face)
    if not faces and not whole and finder and (every_face or geometry.needs_face):
        views = views[:0]
    size = (image.shape[1], image.shape[0]) * 2
    rows = [[*np.multiply(face.box, size), math.nan if face.confidence is None else face.confidence] for face in faces]
    return views, np.array(rows or [[math.nan] * 5])


def _score_batch(predictor: Predictor, start: int, prepared: Sequence[Prepared | str], batch_size: int) -> ScoredBatch:
    """Score the views of consecutive images, the first of which has index ``start``."""
    good = [(start + place, *item) for place, item in enumerate(prepared) if not isinstance(item, str)]
    failures = [(start + place, item) for place, item in enumerate(prepared) if isinstance(item, str)]
    if not good:
        return np.empty(0, np.int64), np.empty((6, 0)), failures
    views = np.concatenate([views for _, views, _ in good])
    blocks = [views[first : first + batch_size] for first in range(0, len(views), batch_size)]
    scored = iter([logit for block in blocks for logit in check_logits(predictor.score(block)).tolist()])
    logits = [next(scored) if len(views) else math.nan for _, views, faces in good for _ in faces]
    indices = np.repeat([index for index, *_ in good], [len(faces) for *_, faces in good])
    return indices, np.stack([logits, *np.concatenate([faces for *_, faces in good]).T]), failures
