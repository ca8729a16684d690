"""Measure throughput, latency, memory and robustness of serve.py under load, on the loopback address.

  python -m studies.speed.serve_load --checkpoint checkpoints/deepfake-v3-small.pt --seconds 600 --repeats 1

Runs four loads in turn: predict.py over the same files with the same engine; 32 clients that keep their connections
open and send one image at a time for so many seconds, with one more that sends a video over and over; 2,000 malformed
and hostile uploads, videos among them; and a server that is killed and restarted under load. The images are encoded in
the formats of phones and the web in turn, HEIC among them. The clients share the cores with the server, whose memory is
sampled. Results are written to results/benchmarks/serve_load.json.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from datasets.listing.spec import open_records
from studies.speed.server_clients import CLIENTS, Load, Server, Upload, press, upload_of
from studies.speed.summary import summary_row, write_results
from studies.speed.upload_files import clip, hostile_pictures, hostile_videos, in_formats, mutations
from utils.args import int_in, make_parser, run_script
from utils.checkpoint_files import check_checkpoint_file
from utils.files import ROOT

SAMPLE = 10.0  # s between two samples of the memory


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


def watch_memory(server: Server, end: threading.Event) -> list[tuple[float, float]]:
    """The time in s and the memory in MB, every so many seconds until ``end`` is set, and then."""
    started = time.monotonic()
    samples = [(0.0, server.memory_mb())]
    while not end.wait(SAMPLE):
        samples.append((time.monotonic() - started, server.memory_mb()))
    return [*samples, (time.monotonic() - started, server.memory_mb())]


def steady_load(server: Server, uploads: Sequence[Upload], video: bytes, requests: int | None, seconds: float) -> dict:
    """Load with valid pictures, and a video beside them: throughput, latency, errors and memory."""
    press(server.port, uploads, 4 * CLIENTS, 60)  # warm-up
    press(server.port, [upload_of(video, what="video")], 1, 60)
    end = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        memory = pool.submit(watch_memory, server, end)
        beside = pool.submit(press, server.port, [upload_of(video, what="video")], requests, seconds, 1, end)
        load = press(server.port, uploads, requests, seconds)
        end.set()
        videos = beside.result()
    p50, p99 = np.percentile(load.seconds, [50, 99])
    statuses = load.statuses + videos.statuses
    errors = load.broken + videos.broken + sum(count for status, count in statuses.items() if status != 200)
    counts = {"statuses": load.counts(), "statuses_of_videos": videos.counts(), "broken": load.broken + videos.broken}
    times = {"rate": len(load.seconds) / load.wall, "p50": float(p50), "p99": float(p99), "seconds": load.wall}
    times |= {"video_p50": float(np.median(videos.seconds)), "videos": len(videos.seconds)}
    return {**times, "requests": len(load.seconds), "errors": errors, **counts, "memory_mb": memory.result()}


def hostile_load(server: Server, images: Sequence[bytes], video: bytes, count: int) -> dict:
    """Malformed and hostile uploads, every fourth a video: statuses and memory."""
    pictures = [*hostile_pictures().values(), *mutations(images, count)][: count - count // 4]
    videos = [*hostile_videos().values(), *mutations([video], count)][: count // 4]
    uploads = [upload_of(data, "..\\..%00/evil.svg") for data in pictures]
    kinds = itertools.cycle(("video", "frame"))
    uploads += [upload_of(data, "..\\..%00/evil.svg", kind) for data, kind in zip(videos, kinds, strict=False)]
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
        ("memory under load, the highest", [max(mb for _, mb in run["memory_mb"]) for run in steady], "MB"),
        ("growth of memory under load", [run["memory_mb"][-1][1] - run["memory_mb"][0][1] for run in steady], "MB"),
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
    parser.add_argument("--seconds", type=int_in(1, 3600), default=600, help="time per repeat (default: 600)")
    parser.add_argument("--requests", type=int_in(100), help="request limit per repeat (default: none)")
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
