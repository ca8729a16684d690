"""Measure throughput, latency, memory and robustness of serve.py under load, on the loopback address.

  python -m studies.speed.serve_load --checkpoint exported.onnx --data data/140k --requests 2000

Runs four loads in turn: predict.py over the same files with the same engine; 32 clients that keep their connections
open and send one image at a time (bounded by --requests and --seconds), with one more that sends a video over and over;
2,000 malformed and hostile uploads, videos among them; and a server that is killed and restarted under load. The images
are encoded in the formats of phones and the web in turn. The clients share the cores with the server. Results are
written to results/benchmarks/serve_load.json.
"""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.spec import open_records
from studies.speed.summary import summary_row, write_results
from studies.speed.upload_files import clip, hostile_pictures, hostile_videos, in_formats, mutations
from utils.args import check_checkpoint_file, int_in, make_parser, run_script
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
    """A request with one file; ``whole``, so that each picture is scored."""
    field = "video" if what == "video" else "images"
    parts = 'name="whole"\r\n\r\ntrue', f'name="{field}"; filename="{name}"\r\n\r\n'
    head = "\r\n".join(f"--x\r\nContent-Disposition: form-data; {part}" for part in parts)
    return f"/api/{what}", head.encode("latin-1") + data + b"\r\n--x--\r\n"


def press(
    port: int,
    uploads: Sequence[Upload],
    requests: int,
    seconds: float,
    clients: int = CLIENTS,
    end: threading.Event | None = None,
) -> Load:
    """Send requests from several clients until ``requests`` are sent, ``seconds`` have passed or ``end`` is set."""
    load, turns, started = Load(), iter(range(requests)), time.monotonic()  # next() on it is atomic

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


def predict_rate(checkpoint: Path, files: Sequence[str], threads: int | None) -> float:
    """Images per second of predict.py, without its start, which is timed with one image."""

    def seconds(paths: Sequence[str]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "predict.py", "--checkpoint", str(checkpoint), "-", "--whole"]
            command += ["--output", f"{folder}/out.csv", *(["--threads", str(threads)] if threads else [])]
            started = time.perf_counter()
            subprocess.run(command, cwd=ROOT, input="\n".join(paths), text=True, check=True, capture_output=True)
            return time.perf_counter() - started

    return (len(files) - 1) / (seconds(files) - seconds(files[:1]))


def steady_load(server: Server, uploads: Sequence[Upload], video: bytes, requests: int, seconds: float) -> dict:
    """Load with valid pictures, and a video beside them: throughput, latency, errors and memory."""
    press(server.port, uploads, 4 * CLIENTS, 60)  # warm-up
    press(server.port, [upload_of(video, what="video")], 1, 60)
    before, end = server.memory_mb(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(press, server.port, [upload_of(video, what="video")], requests, seconds, 1, end)
        load = press(server.port, uploads, requests, seconds)
        end.set()
        videos = beside.result()
    p50, p99 = np.percentile(load.seconds, [50, 99])
    statuses = load.statuses + videos.statuses
    errors = load.broken + videos.broken + sum(count for status, count in statuses.items() if status != 200)
    times = {"rate": len(load.seconds) / load.wall, "p50": float(p50), "p99": float(p99), "seconds": load.wall}
    times |= {"video_p50": float(np.median(videos.seconds)), "videos": len(videos.seconds)}
    return {**times, "requests": len(load.seconds), "errors": errors, "memory_mb": [before, server.memory_mb()]}


def hostile_load(server: Server, images: Sequence[bytes], video: bytes, count: int) -> dict:
    """Malformed and hostile uploads, every fourth a video: statuses and memory."""
    pictures = [*hostile_pictures().values(), *mutations(images, count)][: count - count // 4]
    videos = [*hostile_videos().values(), *mutations([video], count)][: count // 4]
    uploads = [upload_of(data, "..\\..%00/evil.svg") for data in pictures]
    uploads += [upload_of(data, "..\\..%00/evil.svg", "video") for data in videos]
    np.random.default_rng(0).shuffle(order := list(range(count)))
    uploads = [uploads[place] for place in order]
    press(server.port, uploads[: count // 4], count // 4, 600, clients=4)  # fill pools and caches
    before = server.memory_mb()
    load = press(server.port, uploads, count, 600, clients=8)
    facts = {"uploads": count, "statuses": load.counts(), "broken": load.broken}
    return {**facts, "alive": server.process.poll() is None, "memory_mb": [before, server.memory_mb()]}


def restart_under_load(checkpoint: Path, threads: int | None, uploads: Sequence[Upload]) -> dict:
    """Kill a busy server and start it again: what the clients see, and whether the next requests work."""
    server = Server(checkpoint, threads)
    result: list[Load] = []
    presser = threading.Thread(target=lambda: result.append(press(server.port, uploads, 100_000, 25, clients=8)))
    presser.start()
    time.sleep(4)
    server.stop(signal.SIGKILL)
    again = Server(checkpoint, threads, port=server.port)
    presser.join()
    after = press(again.port, uploads, 8, 60, clients=1)
    again.stop()
    return {"statuses": result[0].counts(), "broken_connections": result[0].broken, "after": after.counts()}


def summarize(predict: Sequence[float], steady: Sequence[dict], hostile: dict, restart: dict) -> list[dict]:
    """Print and return the rows of the table of benchmarks."""
    fives = sum(count for status, count in hostile["statuses"].items() if status[0] == "5" and status != "503")
    failed = sum(count for status, count in restart["after"].items() if status != "200")
    ratios = [run["rate"] / rate for run, rate in zip(steady, predict, strict=True)]
    growth = hostile["memory_mb"][1] - hostile["memory_mb"][0]
    rows: list[tuple[str, list[float], str]] = [
        ("predict.py, the same files and engine", list(predict), "images/s"),
        (f"serve.py, {CLIENTS} clients", [run["rate"] for run in steady], "images/s"),
        ("serve.py against predict.py", ratios, "ratio of images/s"),
        (f"median latency with {CLIENTS} clients", [1000 * run["p50"] for run in steady], "ms"),
        ("p99 latency against the median", [run["p99"] / run["p50"] for run in steady], "ratio"),
        ("median latency of a video beside them", [run["video_p50"] for run in steady], "s"),
        ("errors under load", [float(run["errors"]) for run in steady], "requests"),
        ("growth of memory under load", [run["memory_mb"][1] - run["memory_mb"][0] for run in steady], "MB"),
        (f"5xx other than 503 on {hostile['uploads']:,} malformed uploads", [float(fives)], "answers"),
        ("growth of memory on malformed uploads", [growth], "MB"),
        ("answers after a kill and restart that are not 200", [float(failed)], "answers"),
    ]
    return [summary_row(*row) for row in rows]


def main(argv: Sequence[str] | None = None) -> dict:
    """Run all four loads and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.serve_load")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="a checkpoint or an export")
    parser.add_argument("--data", default="demo", metavar="SPEC", help="data set whose images are sent (default: demo)")
    parser.add_argument("--requests", type=int_in(100), default=2000, help="requests per repeat (default: 2000)")
    parser.add_argument("--seconds", type=int_in(1, 600), default=600, help="time limit per repeat (default: 600)")
    parser.add_argument("--malformed", type=int_in(100), default=2000, help="malformed uploads (default: 2000)")
    parser.add_argument("--repeats", type=int_in(1), default=3)
    parser.add_argument("--threads", type=int_in(1), help="CPU threads of the detector (default: all cores)")
    parser.add_argument("--output", default="results/benchmarks/serve_load.json")
    args = parser.parse_args(argv)
    checkpoint = check_checkpoint_file(args.checkpoint).resolve()
    images, video = in_formats([record.path for record in open_records(args.data).records]), clip(40)
    uploads = [upload_of(data) for data in images.values()]
    predict, steady = [], []
    server = Server(checkpoint, args.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in images.items():
                Path(folder, name).write_bytes(data)
            files = [str(Path(folder, name)) for name in images]
            for _ in range(args.repeats):  # alternating, so that other work on the machine affects both
                predict.append(predict_rate(checkpoint, files, args.threads))
                steady.append(steady_load(server, uploads, video, args.requests, args.seconds))
                print(f"{predict[-1]:.1f} images/s predict.py, {steady[-1]['rate']:.1f} serve.py", file=sys.stderr)
        hostile = hostile_load(server, [*images.values()], video, args.malformed)
    finally:
        server.stop()
    restart = restart_under_load(checkpoint, args.threads, uploads)
    summary = summarize(predict, steady, hostile, restart)
    facts = {"model": checkpoint.name, "images": len(images), "clients": CLIENTS}
    loads = {"predict": predict, "steady": steady, "hostile": hostile, "restart": restart}
    write_results(args.output, "serve_load", argv, **facts, **loads, summary=summary)
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
