"""Runs one engine in a separate process, so that memory and start-up can be measured and engines take turns.

This module imports little: everything it imports counts as memory of every engine.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from utils.engines.exported import Engine, exported_engine
from utils.engines.registry import ENGINES
from utils.errors import UserError
from utils.processes import follow_parent

TURN_SECONDS = 0.3  # a short call is repeated until the turn lasts this long, because single calls vary


class Worker:
    """Handle of an engine's process.

    Attributes:
        load_seconds: time to build the engine from its file, imports included.
        first_answer_seconds: from the start of the process to the first logit.
    """

    def __init__(self, engine: str, file: Path, threads: int, device: str, image: np.ndarray) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # the libraries of the child read it when they are loaded
        started = time.perf_counter()
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), follow_parent)
        self.load_seconds: float = self.ask("load", engine, file, threads, device)
        self.ask("score", image)
        self.first_answer_seconds = time.perf_counter() - started

    def ask(self, command: str, *arguments: Any) -> Any:
        """Call a method of :class:`Served` in the process. Raises UserError: the engine failed."""
        try:
            return self._pool.submit(_answer, command, *arguments).result()
        except BrokenProcessPool:
            raise UserError("expected an answer from the engine, but its process died; is the memory full?") from None
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)


class Served:
    """An engine inside its process."""

    def __init__(self, engine: str, file: Path, threads: int, device: str) -> None:
        self.run = build_engine(engine, file, threads, device)
        self.images = np.empty((0, 3, 1, 1), np.float32)

    def score(self, images: np.ndarray) -> np.ndarray:
        """Logits ``(N,)`` of ``(N, 3, H, W)`` uint8 pixels or float32 in [0, 1]."""
        return np.asarray(self.run(as_floats(images)), np.float64).reshape(-1)

    def prepare(self, images: np.ndarray) -> None:
        """Keep the batch to time, and run it until the engine has warmed up."""
        self.images = as_floats(images)
        for _ in range(3):
            self.run(self.images)

    def time(self) -> list[float]:
        """Seconds of each call of one turn on the prepared batch."""
        seconds: list[float] = []
        while not seconds or sum(seconds) < TURN_SECONDS:
            started = time.perf_counter()
            self.run(self.images)
            seconds.append(time.perf_counter() - started)
        return seconds

    def peak_memory(self) -> int:
        """Highest resident memory of this process so far, in bytes, Python and libraries included."""
        status = Path("/proc/self/status")
        if status.exists():  # not getrusage, which on Linux starts from the parent's memory
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build_engine(name: str, file: Path, threads: int, device: str) -> Engine:
    """Build an engine from its file; torch is imported only for an engine that needs it."""
    if ENGINES[name].source != "pt":
        return exported_engine(name, file, threads)
    from utils.checkpoints.file import load_detector
    from utils.engines.pytorch import torch_engine

    detector, _ = load_detector(file, device)
    return torch_engine(detector, threads, **ENGINES[name].options)


def as_floats(images: np.ndarray) -> np.ndarray:
    """Convert pixels to float32 in [0, 1]; return floats unchanged."""
    return images if images.dtype == np.float32 else np.divide(images, np.float32(255), dtype=np.float32)


_served: list[Served] = []  # the engine of this process


def _answer(command: str, *arguments: Any) -> Any:
    """Run a command in the process of the engine. Raises UserError, which unlike other exceptions can be pickled."""
    try:
        if command != "load":
            return getattr(_served[0], command)(*arguments)
        started = time.perf_counter()
        _served.append(Served(*arguments))
        return time.perf_counter() - started
    except Exception as error:  # the failure of an engine becomes a row of the table
        raise UserError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
