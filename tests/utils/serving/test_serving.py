"""The parts of the server: rate limit, batches, worker processes, sniffing, sockets."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flask")
pytest.importorskip("waitress")

from utils.errors import UserError
from utils.serving.batching import MicroBatcher
from utils.serving.guard import RateLimit
from utils.serving.settings import Limits, Refused
from utils.serving.uploads import shown_name, sniff
from utils.serving.workers import WorkerPool
from utils.serving.wsgi import make_server

PRELOAD = "utils.serving.preparation"
PATIENCE = 200  # seconds, which no test waits unless it fails


@pytest.mark.parametrize(
    "name, shown",
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\evil\\a.png", "a.png"),
        ("a\r\nb\0.png", "ab.png"),
        ("/", "image"),
        ("x" * 500, "x" * 100),
        (None, "image"),
    ],
)
def test_file_names_are_only_shown(name, shown):
    assert shown_name(name) == shown


def test_rate_limit_refills_and_forgets_nobody_else():
    now = [0.0]
    limit = RateLimit(2, clock=lambda: now[0])
    limit.check("a")
    limit.check("a")
    with pytest.raises(Refused) as refusal:
        limit.check("a")
    assert refusal.value.status == 429 and refusal.value.retry_after == 30
    limit.check("b")
    now[0] = 30
    limit.check("a")


def wait_for_queue(batcher: MicroBatcher, images: int) -> None:
    with batcher._change:
        assert batcher._change.wait_for(lambda: batcher.waiting >= images, PATIENCE)


class Held:
    """A score function that holds the thread of the detectors until ``gate`` is set."""

    def __init__(self, answer: Callable[[np.ndarray], Any]) -> None:
        self.started, self.gate, self.answer = threading.Event(), threading.Event(), answer
        self.sizes: list[int] = []

    def __call__(self, views: np.ndarray) -> Any:
        self.started.set()
        assert self.gate.wait(PATIENCE)
        self.sizes.append(len(views))
        return self.answer(views)


def ones(views: np.ndarray) -> np.ndarray:
    return np.ones(len(views))


ONE = np.zeros((1, 1, 1, 3), np.uint8)


def test_waiting_requests_are_scored_together():
    held = Held(lambda views: views[:, 0, 0, 0].astype(float))
    batcher = MicroBatcher(capacity=16, max_batch=8)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(batcher.score, held, ONE, PATIENCE)
        assert held.started.wait(PATIENCE)
        others = [pool.submit(batcher.score, held, ONE + np.uint8(number), PATIENCE) for number in range(1, 9)]
        wait_for_queue(batcher, 8)
        held.gate.set()
        assert [float(job.result()[0]) for job in (first, *others)] == list(range(9))
    assert held.sizes == [1, 8]
    batcher.close()


def test_full_queue_turns_away_and_a_crash_ends_only_its_own_request():
    def crash(views: np.ndarray) -> np.ndarray:
        raise ValueError("broken")

    held, batcher = Held(crash), MicroBatcher(capacity=2, max_batch=1)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.score, held, ONE, PATIENCE)
        assert held.started.wait(PATIENCE)
        waiting = [pool.submit(batcher.score, ones, ONE, PATIENCE) for _ in range(2)]
        wait_for_queue(batcher, 2)
        with pytest.raises(Refused) as refusal:
            batcher.score(held, ONE, PATIENCE)
        assert refusal.value.status == 503 and refusal.value.retry_after
        held.gate.set()
        with pytest.raises(ValueError, match="broken"):
            first.result()
        assert [job.result()[0] for job in waiting] == [1, 1]
    batcher.close()


def test_expensive_requests_count_for_what_they_cost():
    held, batcher = Held(ones), MicroBatcher(capacity=60, max_batch=8)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(batcher.score, held, ONE, PATIENCE, 51)
        assert held.started.wait(PATIENCE)
        waiting = pool.submit(batcher.score, held, ONE, PATIENCE, 51)
        wait_for_queue(batcher, 51)
        with pytest.raises(Refused):
            batcher.score(held, ONE, PATIENCE, 51)
        cheap = pool.submit(batcher.score, ones, ONE, PATIENCE)
        wait_for_queue(batcher, 52)
        held.gate.set()
        assert running.result() == waiting.result() == cheap.result() == [1]
    batcher.close()


def test_closing_refuses_those_that_wait():
    held, batcher = Held(ones), MicroBatcher(capacity=2, max_batch=1)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(batcher.score, held, ONE, PATIENCE)
        assert held.started.wait(PATIENCE)
        waiting = pool.submit(batcher.score, ones, ONE, PATIENCE)
        wait_for_queue(batcher, 1)
        closing_ = pool.submit(batcher.close)
        with pytest.raises(Refused) as refusal:
            waiting.result()
        assert refusal.value.status == 503
        held.gate.set()
        assert running.result() == [1] and closing_.result() is None
    with pytest.raises(Refused):
        batcher.score(ones, ONE, PATIENCE)


def test_sniff_reads_content():
    assert sniff(b"\xff\xd8\xff\xe0") == "jpeg" and sniff(b"\0\0\0\x20ftypavif") == "avif"
    assert sniff(b"\0\0\0\x18ftypheic") == sniff(b"\0\0\0\x18ftypmif1") == "heic"
    assert sniff(b"<svg") is None and sniff(b"MM\0*") is None


def test_a_host_that_does_not_exist_is_one_line():
    with pytest.raises(UserError, match=r"got --host 300\.1\.1\.1 --port 0"):
        make_server(lambda environ, start: [], "300.1.1.1", 0, Limits())


@pytest.fixture
def pool():
    pool = WorkerPool(wait=PATIENCE, seconds=PATIENCE, preload=PRELOAD, size=1)
    yield pool
    pool.close()


def test_a_worker_that_takes_too_long_is_replaced(pool, monkeypatch):
    assert pool.run(abs, -1) == 1
    monkeypatch.setattr(pool, "_seconds", 0.1)
    with pytest.raises(Refused, match="too long") as refusal:
        pool.run(time.sleep, 600)
    assert refusal.value.status == 422
    with pytest.raises(Refused, match="too long"):
        list(pool.stream(map, time.sleep, [600]))
    monkeypatch.undo()
    assert pool.run(abs, -2) == 2


def test_a_call_waits_for_the_only_worker(pool):
    with ThreadPoolExecutor(1) as threads:
        with closing(pool.stream(iter, [0, 1])) as parts:
            assert next(parts) == 0
            other = threads.submit(pool.run, abs, -2)
            assert not other.done()
        assert other.result() == 2


def test_a_worker_that_dies_fails_its_own_image_only(pool):
    with pytest.raises(Refused, match="damaged") as refusal:
        pool.run(os._exit, 1)
    assert refusal.value.status == 422
    assert pool.run(abs, -1) == 1
    with pytest.raises(ZeroDivisionError):
        pool.run(divmod, 1, 0)


def test_a_worker_that_died_between_two_calls_is_replaced(pool):
    os.kill(pool.run(os.getpid), signal.SIGKILL)
    pool._workers[0]._process.join()
    assert pool.run(abs, -1) == 1


def test_a_worker_that_cannot_be_started_is_started_by_the_next_call(pool, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pool._workers[0], "_preload", "no.such.module")
        with pytest.raises(Refused, match="damaged"):
            pool.run(abs, -1)
    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.context.ForkServerProcess.start", lambda self: os.open("/no/such/file", 0))
        with pytest.raises(FileNotFoundError):
            pool.run(abs, -1)
    assert pool.run(abs, -1) == 1


def test_a_full_pool_answers_busy(pool, monkeypatch):
    with closing(pool.stream(iter, [0, 1])) as parts:
        assert next(parts) == 0  # the only worker is taken
        monkeypatch.setattr(pool, "_wait", 0.1)
        with pytest.raises(Refused) as refusal:
            pool.run(abs, -1)
    assert refusal.value.status == 503 and refusal.value.retry_after


def test_closing_the_pool_ends_a_running_call_and_leaves_its_connection_to_its_thread(pool):
    with closing(pool.stream(map, time.sleep, [0, 600])) as parts:
        assert next(parts) is None
        pool.close()  # closed twice, by two threads, a connection takes another file with it
        assert not pool._workers[0]._connection.closed
        with pytest.raises(Refused, match="damaged"):
            next(parts)
    for _ in range(2):  # and none is started again
        with pytest.raises(Refused, match="damaged"):
            pool.run(abs, -1)
        assert pool._workers[0]._process is None


def test_parts_come_as_they_are_made_and_a_reader_who_leaves_frees_the_worker(pool):
    assert list(pool.stream(iter, [0, 1, 2])) == [0, 1, 2]
    with closing(pool.stream(iter, [0, 1, 2])) as parts:
        assert next(parts) == 0
    assert pool.run(abs, -1) == 1
    with pytest.raises(ZeroDivisionError):
        list(pool.stream(divmod, 1, 0))
    assert pool.run(abs, -2) == 2
