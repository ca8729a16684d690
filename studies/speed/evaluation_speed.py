"""Seconds of the bootstrap of all metrics, and of audit.py over whole data folders.

  python -m studies.speed.evaluation_speed --audit data/140k data/wild

The bootstrap: 1,000 resamples of 20,000 generated scores, every figure of the metrics row. The audit: a new process
per repeat, from the command to the written report. Each figure is a median with its range.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from studies.speed.summary import summary_row, write_results
from utils.args import int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import ROOT, read_json
from utils.metrics.binary import metrics_row

N_IMAGES, N_BOOT = 20_000, 1000


def timed(action: Callable[[], object], repeats: int) -> list[float]:
    """Run an action several times and return the seconds of each."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return times


def bootstrap() -> None:
    """Compute all metrics of overlapping score distributions, with intervals."""
    rng = np.random.default_rng(0)
    labels = np.arange(N_IMAGES) % 2
    p_fake = 1 / (1 + np.exp(-rng.normal(2.0 * labels - 1.0, 1.0)))
    metrics_row(labels, p_fake, 0.5, n_boot=N_BOOT)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Time both and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.evaluation_speed")
    parser.add_argument("--audit", nargs="+", default=[], metavar="SPEC", help="data sets to audit together")
    parser.add_argument("--repeats", type=int_in(1), default=3)
    parser.add_argument("--output", default="results/benchmarks/evaluation_speed.json")
    args = parser.parse_args(argv)
    bootstrap()  # warm-up
    what = f"bootstrap of all metrics, {N_BOOT:,} resamples of {N_IMAGES:,} scores"
    summary = [summary_row(what, timed(bootstrap, args.repeats), "s")]
    if args.audit:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "audit.py", "--data", *args.audit, "--output-dir", folder]

            def audit() -> None:
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                if done.returncode == 2:
                    raise UserError(done.stderr.strip().splitlines()[-1])

            timing = timed(audit, args.repeats)
            report = read_json(Path(folder) / "audit.json")
        summary.append(summary_row(f"audit.py over {report['n_images']:,} images", timing, "s"))
    write_results(args.output, "evaluation_speed", argv, repeats=args.repeats, summary=summary)
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
