"""serve.py in a separate process, and clients that send it requests, for studies of its speed and robustness."""

from __future__ import annotations

import http.client
import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.files import ROOT

CLIENTS = 32
HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}

Upload = tuple[str, bytes]  # the address and the body of a request


@dataclass
class Load:
    """What the clients saw: seconds of each answered request, statuses, and broken connections."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    broken: int = 0
    wall: float = 0.0

    def counts(self) -> dict[str, int]:
        """Answers by status."""
        return {str(status): count for status, count in sorted(self.statuses.items())}


class Server:
    """serve.py in a separate process."""

    def __init__(self, checkpoint: Path, threads: int | None, port: int = 0) -> None:
        command = [sys.executable, "serve.py", "--checkpoint", str(checkpoint), "--port", str(port)]
        command += ["--threads", str(threads)] if threads else []
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        match = re.search(r":(\d+)\s*$", self.process.stdout.readline())
        if not match:
            raise UserError(f"expected serve.py to start, got exit code {self.process.wait()}; run it by hand")
        self.port = int(match.group(1))

    def memory_mb(self) -> float:
        """Resident memory of the server and its workers."""
        processes = [self.process.pid]
        for pid in processes:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                processes += map(int, children.read_text().split())
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in processes]
        return sum(int(match.group(1)) / 1024 for text in statuses if (match := re.search(r"VmRSS:\s+(\d+)", text)))

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(timeout=30)


def upload_of(data: bytes, name: str = "a.jpg", what: str = "predict") -> Upload:
    """A request with one file; ``whole``, so that each picture is scored, or the ``time`` of a frame."""
    field = "images" if what == "predict" else "video"
    option = 'name="time"\r\n\r\n0' if what == "frame" else 'name="whole"\r\n\r\ntrue'
    parts = option, f'name="{field}"; filename="{name}"\r\n\r\n'
    head = "\r\n".join(f"--x\r\nContent-Disposition: form-data; {part}" for part in parts)
    return f"/api/{what}", head.encode("latin-1") + data + b"\r\n--x--\r\n"


def press(
    port: int,
    uploads: Sequence[Upload],
    requests: int | None,
    seconds: float,
    clients: int = CLIENTS,
    end: threading.Event | None = None,
) -> Load:
    """Send requests from several clients until ``requests`` are sent, ``seconds`` have passed or ``end`` is set."""
    load, started = Load(), time.monotonic()
    turns = iter(itertools.count() if requests is None else range(requests))  # next() on it is atomic

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() - started < seconds and (turn := next(turns, None)) is not None:
            if end and end.is_set():
                return
            sent = time.perf_counter()
            try:
                connection.request("POST", *uploads[turn % len(uploads)], HEADERS)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):  # opened again by the next request
                load.broken += 1
                connection.close()
                time.sleep(0.05)
                continue
            load.seconds.append(time.perf_counter() - sent)
            load.statuses[answer.status] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.wall = time.monotonic() - started
    return load
