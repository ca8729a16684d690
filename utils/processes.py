"""Work in other processes, which end with this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

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
    import cv2

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


def follow_parent() -> None:
    """Make this process of a pool end with the one that started it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the parent, which stops its pool
    threading.Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _start() -> None:
    import cv2

    follow_parent()
    cv2.setNumThreads(0)
