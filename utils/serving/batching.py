"""One thread runs the detectors for all requests: waiting images are scored together, and the wait is bounded.

No request waits for a batch to fill up: the requests that arrive while the detector is busy form the next batch, so
batches grow with the load and a single request is served at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from utils.serving.settings import Refused

Score = Callable[[np.ndarray], Iterable]  # views (N, size, size, 3) uint8 -> N results, such as logits (N,) float64


@dataclass
class Ticket:
    """Waiting work."""

    score: Score
    views: np.ndarray
    cost: int  # in images
    result: Future = field(default_factory=Future)


class MicroBatcher:
    """A bounded queue in front of the detectors, which run in one thread."""

    def __init__(self, capacity: int, max_batch: int) -> None:
        self.capacity = capacity
        self.max_batch = max_batch
        self.waiting = 0  # cost of the queue in images
        self.batches = 0
        self.scored = 0
        self._tickets: deque[Ticket] = deque()
        self._change = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="detectors", daemon=True)
        self._thread.start()

    def score(self, score: Score, views: np.ndarray, seconds: float, cost: int | None = None) -> list[Any]:
        """Return the result of ``score`` for each of the views ``(N, size, size, 3)`` uint8.

        Views of several requests with the same function are scored together. ``cost`` is the work in images, by default
        the number of views.

        Raises:
            Refused: the queue is full, ``seconds`` have passed, or the server stops.
        """
        ticket = Ticket(score, views, cost or len(views))
        with self._change:
            # An empty queue takes a request of any size; otherwise one larger than the queue could never be served.
            if not self._open or (self.waiting and self.waiting + ticket.cost > self.capacity):
                raise Refused(503, "busy", "The server is busy. Please try again in a few seconds.", retry_after=2)
            self._tickets.append(ticket)
            self.waiting += ticket.cost
            self._change.notify()
        try:
            return ticket.result.result(timeout=seconds)
        except (FutureTimeout, CancelledError):  # cancelled by close
            ticket.result.cancel()
            raise Refused(503, "too_slow", "The server could not answer in time. Please try again.", 5) from None

    def close(self) -> None:
        """Refuse the waiting requests and end the thread after the current batch."""
        with self._change:
            self._open = False
            for ticket in self._tickets:
                ticket.result.cancel()
            self._tickets.clear()
            self._change.notify()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while (tickets := self._next()) is not None:
            live = [ticket for ticket in tickets if ticket.result.set_running_or_notify_cancel()]
            try:
                self._serve(live)
            except Exception as error:  # one failing request must not end the thread that serves all
                for ticket in live:
                    if not ticket.result.done():
                        ticket.result.set_exception(error)

    def _next(self) -> list[Ticket] | None:
        """Wait for work; returns tickets that can be scored together, or None once the queue is closed."""
        with self._change:
            while self._open and not self._tickets:
                self._change.wait()
            if not self._tickets:
                return None
            tickets = [self._tickets.popleft()]
            total = len(tickets[0].views)
            while self._tickets and self._tickets[0].score is tickets[0].score:
                if total + len(self._tickets[0].views) > self.max_batch:
                    break
                tickets.append(self._tickets.popleft())
                total += len(tickets[-1].views)
            self.waiting -= sum(ticket.cost for ticket in tickets)
            return tickets

    def _serve(self, tickets: list[Ticket]) -> None:
        if not tickets:
            return
        views = np.concatenate([ticket.views for ticket in tickets])
        results: list[Any] = []
        for start in range(0, len(views), self.max_batch):
            results.extend(tickets[0].score(views[start : start + self.max_batch]))
            self.batches += 1
        self.scored += len(views)
        for ticket in tickets:
            ticket.result.set_result(results[: len(ticket.views)])
            del results[: len(ticket.views)]
