"""Work on many images in several processes."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from utils.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, from ``workers`` processes; a single one is this process.

    Args:
        chunk: items that a process takes at a time.

    Raises:
        UserError: a process died.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # OpenCV's thread pool does not survive a fork, and the processes use all cores
    try:
        if workers == 1:
            yield from map(function, items)
            return
        # Forked processes start at once; spawned ones would import the calling script again.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        with ProcessPoolExecutor(workers, context, _start) as pool:
            try:
                yield from pool.map(function, items, chunksize=chunk)
            except BrokenProcessPool:
                raise UserError(
                    "expected all processes to finish, but one died, as happens when memory is full; free some, or "
                    "use fewer processes"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        cv2.setNumThreads(threads)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the calling process, which stops its pool
    cv2.setNumThreads(0)
