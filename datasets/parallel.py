"""Images decoded by threads while the caller works on the previous batch; needs no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from datasets.faces import Finder, face_crops
from datasets.images import UnreadableImage, read_record
from datasets.records import Record
from datasets.transforms import Geometry

READ_AHEAD = 2  # batches being decoded while the caller works on one

DecodedBatch = tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]


def decode_batches(
    records: Sequence[Record], geometry: Geometry, batch_size: int, workers: int, finder: Finder | None = None
) -> Iterator[DecodedBatch]:
    """Decode images in the order of their records, in memory that does not grow with their number.

    Threads suffice because OpenCV and numpy release Python's lock where the time is spent.

    Yields:
        ``(indices, images, unreadable)`` per batch: indices ``(N,)`` int64 of the readable images, images
        ``(N, 3, size, size)`` float32 RGB in [0, 1], and ``(index, reason)`` of the others. With a ``finder``, the
        index of a picture is repeated for each of its faces.
    """
    starts = iter(range(0, len(records), batch_size))
    pool = ThreadPoolExecutor(max(1, workers))
    pending: deque[tuple[int, np.ndarray, list[Future]]] = deque()

    def submit(start: int) -> None:
        part = [records[index] for index in range(start, min(start + batch_size, len(records)))]
        images = np.empty((len(part), 3, geometry.size, geometry.size), np.float32)
        jobs = [pool.submit(_fill, record, geometry, row, finder) for record, row in zip(part, images, strict=True)]
        pending.append((start, images, jobs))

    try:
        for _, start in zip(range(1 + READ_AHEAD), starts, strict=False):  # range first: no start is taken and dropped
            submit(start)
        while pending:
            start, images, jobs = pending.popleft()
            results = [job.result() for job in jobs]
            following = next(starts, None)
            if following is not None:
                submit(following)
            unreadable = [(start + index, found) for index, found in enumerate(results) if isinstance(found, str)]
            counts = [0 if isinstance(found, str) else 1 + len(found) for found in results]
            if set(counts) != {1}:  # some are unreadable, or have several faces
                parts = [
                    [image, *found] for image, found in zip(images, results, strict=True) if isinstance(found, list)
                ]
                images = np.stack([view for part in parts for view in part]) if parts else images[:0]
            yield start + np.repeat(np.arange(len(counts)), counts), images, unreadable
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(record: Record, geometry: Geometry, row: np.ndarray, finder: Finder | None) -> str | list[np.ndarray]:
    """Decode one image into its row of the batch; returns its other faces, or the reason if it cannot be read."""
    try:
        image = read_record(record)
    except UnreadableImage as error:
        return str(error)
    first, *others = (geometry(crop).transpose(2, 0, 1) for crop in face_crops(image, record.path, finder))
    np.divide(first, np.float32(255), out=row)
    return [np.divide(other, np.float32(255), dtype=np.float32) for other in others]
