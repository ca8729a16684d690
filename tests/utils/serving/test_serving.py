"""The parts of the server: rate limit, batches, worker processes, sniffing, sockets."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

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


def test_waiting_requests_are_scored_together():
    gate, sizes = threading.Event(), []

    def score(views: np.ndarray) -> np.ndarray:
        gate.wait(10)
        sizes.append(len(views))
        return views[:, 0, 0, 0].astype(float)

    batcher = MicroBatcher(capacity=16, max_batch=8)
    views = [np.full((1, 1, 1, 3), number, np.uint8) for number in range(9)]
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(batcher.score, score, views[0], 10)
        while batcher.waiting or not batcher._thread.is_alive():
            pass
        others = [pool.submit(batcher.score, score, view, 10) for view in views[1:]]
        while batcher.waiting < 8:
            pass
        gate.set()
        assert [float(job.result()[0]) for job in (first, *others)] == list(range(9))
    assert sizes == [1, 8]
    batcher.close()


def test_full_queue_turns_away_and_a_crash_ends_only_its_own_request():
    gate = threading.Event()
    batcher = MicroBatcher(capacity=2, max_batch=1)
    one = np.zeros((1, 1, 1, 3), np.uint8)

    def crash(views: np.ndarray) -> np.ndarray:
        gate.wait(10)
        raise ValueError("broken")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.score, crash, one, 10)
        while batcher.waiting:
            pass
        waiting = [pool.submit(batcher.score, lambda views: np.ones(len(views)), one, 10) for _ in range(2)]
        while batcher.waiting < 2:
            pass
        with pytest.raises(Refused) as refusal:
            batcher.score(crash, one, 10)
        assert refusal.value.status == 503 and refusal.value.retry_after
        gate.set()
        with pytest.raises(ValueError, match="broken"):
            first.result()
        assert [job.result()[0] for job in waiting] == [1, 1]
    batcher.close()


def test_expensive_requests_count_for_what_they_cost():
    started, gate, one = threading.Event(), threading.Event(), np.zeros((1, 1, 1, 3), np.uint8)
    batcher = MicroBatcher(capacity=60, max_batch=8)

    def explain(views: np.ndarray) -> list[bool]:
        started.set()
        return [gate.wait(10)]

    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(batcher.score, explain, one, 10, 51)
        assert started.wait(10)
        waiting = pool.submit(batcher.score, explain, one, 10, 51)
        while not batcher.waiting:
            pass
        with pytest.raises(Refused):
            batcher.score(explain, one, 10, 51)
        cheap = pool.submit(batcher.score, lambda views: np.ones(len(views)), one, 10)
        while batcher.waiting < 52:
            pass
        gate.set()
        assert running.result() == waiting.result() == [True] and cheap.result() == [1]
    batcher.close()


def test_sniff_reads_content():
    assert sniff(b"\xff\xd8\xff\xe0") == "jpeg" and sniff(b"\0\0\0\x20ftypavif") == "avif"
    assert sniff(b"\0\0\0\x18ftypheic") == sniff(b"\0\0\0\x18ftypmif1") == "heic"
    assert sniff(b"<svg") is None and sniff(b"MM\0*") is None


def test_a_host_that_does_not_exist_is_one_line():
    with pytest.raises(UserError, match=r"got --host 300\.1\.1\.1 --port 0"):
        make_server(lambda environ, start: [], "300.1.1.1", 0, Limits())


@pytest.fixture
def pool():
    pool = WorkerPool(wait=20, seconds=1, preload="utils.serving.preparation", size=1)
    yield pool
    pool.close()


def test_a_worker_that_takes_too_long_is_replaced(pool):
    assert pool.run(abs, -1) == 1
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(pool.run, time.sleep, 60)
        other = threads.submit(pool.run, abs, -2)  # waits for the only worker and gets it
        assert other.result() == 2
        with pytest.raises(Refused, match="too long") as refusal:
            slow.result()
    assert refusal.value.status == 422


def test_a_worker_that_dies_fails_its_own_image_only(pool):
    with pytest.raises(Refused, match="damaged") as refusal:
        pool.run(os._exit, 1)
    assert refusal.value.status == 422
    assert pool.run(abs, -1) == 1
    with pytest.raises(ZeroDivisionError):
        pool.run(divmod, 1, 0)


def test_a_full_pool_answers_busy():
    pool = WorkerPool(wait=0.1, seconds=20, preload="utils.serving.preparation", size=1)
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(pool.run, time.sleep, 20)
        while pool._idle.qsize():
            pass
        with pytest.raises(Refused) as refusal:
            pool.run(abs, -1)
        assert refusal.value.status == 503 and refusal.value.retry_after
        pool.close()
        with pytest.raises(Refused):
            slow.result()


def test_closing_the_pool_leaves_connections_to_the_threads_that_use_them():
    pool = WorkerPool(wait=1, seconds=20, preload="utils.serving.preparation", size=1)
    assert pool.run(abs, -1) == 1
    pool.close()  # closed twice, by two threads, a connection takes another file with it
    assert not pool._workers[0]._connection.closed
    with pytest.raises(Refused, match="damaged"):
        pool.run(abs, -1)


def test_parts_come_as_they_are_made_and_a_reader_who_leaves_frees_the_worker(pool):
    assert list(pool.stream(iter, [0, 1, 2])) == [0, 1, 2]
    with closing(pool.stream(iter, [0, 1, 2])) as parts:
        assert next(parts) == 0
    assert pool.run(abs, -1) == 1
    with pytest.raises(Refused, match="too long"):
        list(pool.stream(map, time.sleep, [0, 60]))
    with pytest.raises(ZeroDivisionError):
        list(pool.stream(divmod, 1, 0))
    assert pool.run(abs, -2) == 2
