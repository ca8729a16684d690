"""Processes that decode uploads: one that takes too long is killed and replaced, so no image can block the server."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from utils.serving.settings import Refused

T = TypeVar("T")

_context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")


def _work(connection: Connection, preload: str) -> None:
    """Run calls in a worker process until the server closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, which ends its workers
    importlib.import_module(preload)  # the fork server finds it only in the working directory
    connection.send(None)  # ready: the start of the process does not count as decoding
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = "done", function(*arguments)
            if isinstance(answer[1], Iterator):
                for part in answer[1]:
                    connection.send(("part", part))  # waits until the server has read most of it
                answer = "done", None
        except Exception as error:  # raised again in the server
            answer = "failed", error
        connection.send(answer)


class Worker:
    """A process that is started by its first call and imports the module ``preload``."""

    def __init__(self, preload: str) -> None:
        self._preload = preload
        self._process: Any = None
        self._starting = threading.Lock()  # kill must not miss a process that is being started
        self._killed = False

    def call(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in the process.

        Raises:
            TimeoutError: it took longer than ``seconds``; the process was killed.
            EOFError: the process died.
        """
        try:
            next(self.stream(seconds, function, *arguments))
        except StopIteration as answer:
            return answer.value
        raise TypeError("expected a function that returns, got a generator; call stream")

    def stream(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Generator[Any, None, Any]:
        """Yield what a generator function yields in the process; it is killed if it is not read to its end.

        Raises:
            TimeoutError, EOFError: as :meth:`call`.
        """
        if self._process is not None and not self._process.is_alive():  # killed between two calls, as by the OOM killer
            self.stop()
        if self._process is None:
            self._start()
        kind = "part"
        try:
            self._connection.send((function, arguments))
            while kind == "part":
                started = time.monotonic()
                if not self._connection.poll(max(0.0, seconds)):
                    raise TimeoutError
                seconds -= time.monotonic() - started  # what the caller does with a part does not count
                kind, answer = self._connection.recv()
                if kind == "part":
                    yield answer
        except (OSError, EOFError) as error:
            raise error if isinstance(error, TimeoutError) else EOFError from None
        finally:
            if kind == "part":
                self.stop()
        if kind == "failed":
            raise answer
        return answer

    def _start(self) -> None:
        self._connection, end = _context.Pipe()
        process = _context.Process(target=_work, args=(end, self._preload), daemon=True)
        with self._starting:
            if self._killed:
                raise EOFError
            process.start()
            self._process = process
        end.close()
        try:
            self._connection.recv()
        except EOFError:  # it died, or was killed
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, if there is one; only for the thread whose call it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def kill(self) -> None:
        """Kill the process for good, from any thread; a call that runs in it, and any further one, raises EOFError."""
        with self._starting:
            self._killed = True
            process = self._process  # the thread of a call may stop it meanwhile, and alone closes the connection
        if process is not None:
            process.kill()


class WorkerPool:
    """A bounded number of workers, one per core by default.

    Args:
        wait: seconds that a call may wait for a free worker.
        seconds: seconds that a call may run; shorter than ``wait``, so that slow images do not starve other requests.
        preload: module that workers share; it must not start threads when imported.
        what: what is decoded, for messages.
    """

    def __init__(self, wait: float, seconds: float, preload: str, size: int | None = None, what: str = "image") -> None:
        self._wait, self._seconds, self._what = wait, seconds, what
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._workers = [Worker(preload) for _ in range(size or os.cpu_count() or 1)]
        for worker in self._workers:
            self._idle.put(worker)
        _context.set_forkserver_preload([preload])

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function of an importable module in a worker; exceptions of the function are passed on.

        Raises:
            Refused: no worker was free in time (503), or the image took too long or crashed the decoder (422).
        """
        with self._worker() as worker:
            return worker.call(self._seconds, function, *arguments)

    def stream(self, function: Callable[..., Iterator[T]], *arguments: Any) -> Generator[T, None, None]:
        """Yield what a generator function yields in a worker, which is blocked until the end or ``close``.

        Raises:
            Refused: as :meth:`run`.
        """
        with self._worker() as worker:
            yield from worker.stream(self._seconds, function, *arguments)

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Worker]:
        try:
            worker = self._idle.get(timeout=self._wait)
        except queue.Empty:
            raise Refused(503, "busy", "The server is busy. Please try again in a few seconds.", 2) from None
        try:
            yield worker
        except TimeoutError:
            raise Refused(422, "too_complex", f"The {self._what} takes too long to decode.") from None
        except EOFError:
            raise Refused(422, "unreadable", f"The {self._what} is damaged or incomplete.") from None
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            worker.kill()
