"""Images decoded by threads while somebody else works on the batch before; needs no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from datasets.images import UnreadableImage, read_image
from datasets.transforms import Geometry

READ_AHEAD = 2  # batches that are being decoded while one is worked on

DecodedBatch = tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]


def decode_batches(paths: Sequence[str], geometry: Geometry, batch_size: int, workers: int) -> Iterator[DecodedBatch]:
    """Decode images in the order of their paths; memory does not grow with their number.

    Threads and not processes, because OpenCV and numpy let go of Python's lock where the time is spent.

    Yields:
        ``(indices, images, unreadable)`` per batch: indices ``(N,)`` int64 of the readable images, images
        ``(N, 3, size, size)`` float32 RGB in [0, 1], and ``(index, reason)`` of the others.
    """
    starts = iter(range(0, len(paths), batch_size))
    pool = ThreadPoolExecutor(max(1, workers))
    pending: deque[tuple[int, np.ndarray, list[Future]]] = deque()

    def submit(start: int) -> None:
        part = paths[start : start + batch_size]
        images = np.empty((len(part), 3, geometry.size, geometry.size), np.float32)
        jobs = [pool.submit(_fill, path, geometry, row) for path, row in zip(part, images, strict=True)]
        pending.append((start, images, jobs))

    try:
        for _, start in zip(range(1 + READ_AHEAD), starts, strict=False):  # in this order: none is taken and dropped
            submit(start)
        while pending:
            start, images, jobs = pending.popleft()
            reasons = [job.result() for job in jobs]
            following = next(starts, None)
            if following is not None:
                submit(following)
            yield _collect(start, images, reasons)
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(path: str, geometry: Geometry, row: np.ndarray) -> str | None:
    """Decode one image into its place in the batch; returns the reason if it cannot be read."""
    try:
        image = geometry(read_image(path))
    except UnreadableImage as error:
        return str(error)
    np.divide(image.transpose(2, 0, 1), np.float32(255), out=row)
    return None


def _collect(start: int, images: np.ndarray, reasons: list[str | None]) -> DecodedBatch:
    good = np.array([reason is None for reason in reasons], dtype=bool)
    unreadable = [(start + index, reason) for index, reason in enumerate(reasons) if reason is not None]
    return start + np.flatnonzero(good), images if good.all() else images[good], unreadable
