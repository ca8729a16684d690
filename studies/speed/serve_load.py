"""Throughput, latency, memory and hostile uploads of serve.py under load, on the loopback address only.

  python -m studies.speed.serve_load --checkpoint exported.onnx --data data/140k --requests 2000

In this order: predict.py over the same files with the same engine; 32 clients that send one image each again and again,
every connection kept open (requests are bounded by --requests and --seconds); 2,000 malformed uploads, mutations of the
images and hostile files; and the server killed and started again under load. The clients share the cores with the
server. Results go to results/benchmarks/serve_load.json.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.spec import open_records
from studies.speed.malformed_uploads import mutations
from utils.args import check_checkpoint_file, int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import ROOT, write_json
from utils.runtime import git_commit, hardware

CLIENTS = 32


@dataclass
class Load:
    """What the clients saw: seconds of each answered request, statuses, and connections that broke."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    broken: int = 0
    wall: float = 0.0


class Server:
    """serve.py as a process of its own."""

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
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024  # type: ignore[union-attr]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process."""
        self.process.send_signal(how)
        self.process.wait(timeout=30)


@contextlib.contextmanager
def serving(checkpoint: Path, threads: int | None) -> Iterator[Server]:
    """A server that ends with the block."""
    server = Server(checkpoint, threads)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def body_of(data: bytes, name: str = "a.jpg") -> bytes:
    """A multipart form with one image."""
    head = f'--x\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
    return head.encode("latin-1") + data + b"\r\n--x--\r\n"


HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}


def client(port: int, bodies: Sequence[bytes], turns: Iterator[int], stop: float, load: Load) -> None:
    """Send bodies until the turns or the time are used up; a broken connection is opened again."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for turn in turns:
        if time.monotonic() > stop:
            return
        started = time.perf_counter()
        try:
            connection.request("POST", "/api/predict", bodies[turn % len(bodies)], HEADERS)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            load.broken += 1
            connection.close()
            time.sleep(0.05)
            continue
        load.seconds.append(time.perf_counter() - started)
        load.statuses[answer.status] += 1


def press(port: int, bodies: Sequence[bytes], requests: int, seconds: float, clients: int = CLIENTS) -> Load:
    """Run the clients until ``requests`` are sent or ``seconds`` have passed."""
    load, lock, counter = Load(), threading.Lock(), iter(range(requests))

    def turns() -> Iterator[int]:
        while True:
            with lock:
                turn = next(counter, None)
            if turn is None:
                return
            yield turn

    started = time.monotonic()
    threads = [
        threading.Thread(target=client, args=(port, bodies, turns(), started + seconds, load)) for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.wall = time.monotonic() - started
    return load


def predict_rate(checkpoint: Path, files: Sequence[str], threads: int | None) -> float:
    """Images per second of predict.py, the time of its start subtracted (one image is scored first)."""

    def seconds(paths: Sequence[str]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "predict.py",
                "--checkpoint",
                str(checkpoint),
                "-",
                "--output",
                f"{folder}/out.csv",
                *(["--threads", str(threads)] if threads else []),
            ]
            started = time.perf_counter()
            subprocess.run(command, cwd=ROOT, input="\n".join(paths), text=True, check=True, capture_output=True)
            return time.perf_counter() - started

    return (len(files) - 1) / (seconds(files) - seconds(files[:1]))


def steady_load(server: Server, bodies: Sequence[bytes], requests: int, seconds: float) -> dict:
    """Load with sound images: throughput, latency, statuses and memory."""
    press(server.port, bodies, 4 * CLIENTS, 60)  # warm-up
    before = server.memory_mb()
    load = press(server.port, bodies, requests, seconds)
    p50, p99 = np.percentile(load.seconds, [50, 99])
    return {
        "rate": len(load.seconds) / load.wall,
        "p50": float(p50),
        "p99": float(p99),
        "requests": len(load.seconds),
        "errors": load.broken + sum(n for status, n in load.statuses.items() if status != 200),
        "seconds": load.wall,
        "memory_mb": [before, server.memory_mb()],
    }


def hostile_load(server: Server, images: Sequence[bytes], count: int) -> dict:
    """Malformed uploads: statuses and memory."""
    bodies = [body_of(data, name="..\\..%00/evil.svg") for data in mutations(images, count)]
    press(server.port, bodies[: count // 4], count // 4, 600, clients=4)  # pools and caches fill up
    before = server.memory_mb()
    load = press(server.port, bodies, count, 600, clients=8)
    alive = server.process.poll() is None
    return {
        "uploads": count,
        "statuses": {str(status): n for status, n in sorted(load.statuses.items())},
        "broken": load.broken,
        "alive": alive,
        "memory_mb": [before, server.memory_mb()],
    }


def restart_under_load(checkpoint: Path, threads: int | None, bodies: Sequence[bytes]) -> dict:
    """Kill the server while it is busy and start it again: what the clients see, and whether the next request works."""
    server = Server(checkpoint, threads)
    result: list[Load] = []
    presser = threading.Thread(target=lambda: result.append(press(server.port, bodies, 100_000, 25, clients=8)))
    presser.start()
    time.sleep(4)
    server.stop(signal.SIGKILL)
    again = Server(checkpoint, threads, port=server.port)
    presser.join()
    after = press(again.port, bodies, 8, 60, clients=1)
    again.stop()
    statuses = {str(status): n for status, n in sorted(result[0].statuses.items())}
    return {"statuses": statuses, "broken_connections": result[0].broken, "after": dict(after.statuses)}


def summarize(predict: Sequence[float], steady: Sequence[dict], hostile: dict, restart: dict) -> list[dict]:
    """Rows of the table of benchmarks."""

    def row(what: str, values: Sequence[float], unit: str) -> dict:
        return {"what": what, "value": float(np.median(values)), "range": [min(values), max(values)], "unit": unit}

    fives = [float(n) for status, n in hostile["statuses"].items() if status.startswith("5") and status != "503"]
    return [
        row("predict.py, the same files and engine", predict, "images/s"),
        row(f"serve.py, {CLIENTS} clients", [run["rate"] for run in steady], "images/s"),
        row(
            "serve.py against predict.py",
            [run["rate"] / rate for run, rate in zip(steady, predict, strict=True)],
            "ratio of images/s",
        ),
        row(f"median latency with {CLIENTS} clients", [1000 * run["p50"] for run in steady], "ms"),
        row("p99 latency against the median", [run["p99"] / run["p50"] for run in steady], "ratio"),
        row("errors under load", [float(run["errors"]) for run in steady], "requests"),
        row("growth of memory under load", [run["memory_mb"][1] - run["memory_mb"][0] for run in steady], "MB"),
        row(f"5xx other than 503 on {hostile['uploads']:,} malformed uploads", [sum(fives)], "answers"),
        row("growth of memory on malformed uploads", [hostile["memory_mb"][1] - hostile["memory_mb"][0]], "MB"),
        row(
            "answers after a kill and restart that are not 200",
            [float(sum(n for status, n in restart["after"].items() if status != 200))],
            "answers",
        ),
    ]


def main(argv=None) -> dict:
    """Run all four and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.serve_load")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="a checkpoint or an export")
    parser.add_argument("--data", default="demo", metavar="SPEC", help="whose images are sent (default: demo)")
    parser.add_argument("--requests", type=int_in(100), default=2000, help="of each repeat (default: 2000)")
    parser.add_argument("--seconds", type=int_in(1, 600), default=600, help="at most, of each repeat (default: 600)")
    parser.add_argument("--malformed", type=int_in(20), default=2000, help="malformed uploads (default: 2000)")
    parser.add_argument("--repeats", type=int_in(1), default=3)
    parser.add_argument("--threads", type=int_in(1), help="CPU threads of the detector (default: all cores)")
    parser.add_argument("--output", default="results/benchmarks/serve_load.json")
    args = parser.parse_args(argv)
    checkpoint = check_checkpoint_file(args.checkpoint).resolve()
    files = [str(Path(record.path).resolve()) for record in open_records(args.data).records]
    images = [Path(file).read_bytes() for file in files]
    bodies = [body_of(data) for data in images]
    predict, steady = [], []
    with serving(checkpoint, args.threads) as server:
        for _ in range(args.repeats):  # in turns, so that what else the machine does meets both
            predict.append(predict_rate(checkpoint, files, args.threads))
            steady.append(steady_load(server, bodies, args.requests, args.seconds))
            print(f"{predict[-1]:.1f} images/s predict.py, {steady[-1]['rate']:.1f} serve.py", file=sys.stderr)
        hostile = hostile_load(server, images, args.malformed)
    restart = restart_under_load(checkpoint, args.threads, bodies)
    summary = summarize(predict, steady, hostile, restart)
    for row in summary:
        print(f"{row['value']:.2f} {row['unit']}  {row['what']}")
    write_json(
        args.output,
        {
            "command": f"python -m studies.speed.serve_load --checkpoint {checkpoint.name} "
            f"--data {Path(args.data).name} --requests {args.requests} "
            f"--repeats {args.repeats} --malformed {args.malformed}",
            "hardware": hardware(),
            "git_commit": git_commit(),
            "model": checkpoint.name,
            "images": len(files),
            "clients": CLIENTS,
            "predict": predict,
            "steady": steady,
            "hostile": hostile,
            "restart": restart,
            "summary": summary,
        },
    )
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
