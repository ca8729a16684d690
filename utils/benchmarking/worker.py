"""Runs one engine in a separate process, so that memory and start-up can be measured and engines take turns.

This module imports little: everything it imports counts as memory of every engine.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from utils.engines.exported import Engine, exported_engine
from utils.engines.registry import ENGINES
from utils.errors import UserError

TURN_SECONDS = 0.3  # a short call is repeated until the turn lasts this long, because single calls vary


class Worker:
    """Handle of an engine's process.

    Attributes:
        load_seconds: time to build the engine from its file, imports included.
        first_answer_seconds: from the start of the process to the first logit.
    """

    def __init__(self, engine: str, file: Path, threads: int, device: str, image: np.ndarray) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the child's libraries when they are loaded
        started = time.perf_counter()
        self.process = context.Process(target=serve, args=(theirs, engine, file, threads, device), daemon=True)
        self.process.start()
        theirs.close()
        self.load_seconds: float = self._receive()
        self.ask("score", image)
        self.first_answer_seconds = time.perf_counter() - started

    def ask(self, command: str, *arguments: Any) -> Any:
        """Send a command of :class:`Served` and wait for its answer. Raises UserError: the engine failed."""
        self.pipe.send((command, *arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            done, answer = self.pipe.recv()
        except EOFError:
            raise UserError("expected an answer from the engine, but its process died; is the memory full?") from None
        if not done:
            raise UserError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


class Served:
    """The commands that a worker process answers."""

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


def serve(pipe: Connection, engine: str, file: Path, threads: int, device: str) -> None:
    """Build the engine, then answer commands until the pipe is closed."""
    try:
        started = time.perf_counter()
        served = Served(engine, file, threads, device)
        pipe.send((True, time.perf_counter() - started))
        while True:
            command, *arguments = pipe.recv()
            pipe.send((True, getattr(served, command)(*arguments)))
    except (EOFError, KeyboardInterrupt):
        return  # the parent is done
    except Exception as error:  # the failure of an engine becomes a row of the table
        pipe.send((False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
