"""Measure time and memory for a dataset of 140,000 images: opening its spec, an epoch of the sampler, its scores.

  python -m studies.speed.memory --folder /dev/shm/many

Tiny files are generated in a temporary folder below --folder. Opening is timed in new processes after a first listing,
so the file names are in the system's cache. Processor time is given next to wall-clock time, which other work on the
machine lengthens. The memory is the peak of the process that opens the spec, draws an epoch and writes its scores.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.speed.summary import summary_row, write_results
from utils.args import int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import ROOT

SPLITS = {"train": 10, "valid": 2, "test": 2}  # parts of 14
CLOCKS = ("on the clock", "processor time")
OPEN = """
import json, sys, time
started, busy = time.perf_counter(), time.process_time()
from datasets.listing.spec import open_records
listing = open_records(sys.argv[1])
print(json.dumps([time.perf_counter() - started, time.process_time() - busy]))
"""


def make_files(folder: Path, n_images: int) -> None:
    """Write tiny files in the layout of the 140k set; they are never decoded."""
    for split, parts in SPLITS.items():
        for name in ("real", "fake"):
            (folder / split / name).mkdir(parents=True)
            for number in range(n_images * parts // 28):
                (folder / split / name / f"{number:06d}.jpg").write_bytes(b"x" * (number % 50 + 1))


def work(folder: str) -> None:
    """Open all splits, draw an epoch and write scores: the process whose memory is measured."""
    import numpy as np

    from datasets.listing.splits import open_training_data
    from datasets.loading import EpochSampler
    from models.operating_point import OperatingPoint
    from utils.scoring.scorer import Scores, score_table
    from utils.scoring.table import write_scores

    base = peak()
    data = open_training_data([folder])
    listing = data.train[0]
    n = sum(1 for _ in EpochSampler(len(listing.records), 0))
    scores = Scores(np.arange(n), np.random.default_rng(0).normal(size=n))
    table = score_table(listing.records, scores, OperatingPoint(), listing.name)
    with tempfile.TemporaryDirectory() as target:
        write_scores(Path(target) / "scores.csv", table)
    print(json.dumps({"base_mib": base, "peak_mib": peak(), "n_train": n}))


def peak() -> float:
    """Highest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(folder: str, *command: str) -> Any:
    """Run a Python process in a folder and parse the last line of its output as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["a measuring process failed"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> dict:
    """Generate, measure, delete, and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.memory")
    parser.add_argument("--folder", default="/dev/shm", metavar="DIR", help="where the files are generated")
    parser.add_argument("--images", type=int_in(28), default=140_000)
    parser.add_argument("--repeats", type=int_in(1), default=5)
    parser.add_argument("--output", default="results/benchmarks/memory.json")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=Path(args.folder).resolve()) as folder:
        make_files(Path(folder) / "many", args.images)
        spec = f"{folder}/many@split=all"
        first, *times = [run(folder, "-c", OPEN, spec) for _ in range(args.repeats + 1)]
        memory = run(folder, "-c", f"import studies.speed.memory as m; m.work({str(Path(folder) / 'many')!r})")
    what = f"a spec of {args.images:,} files"
    columns = {f"opening {what}, first time, {name}": ([value], "s") for name, value in zip(CLOCKS, first, strict=True)}
    columns |= {
        f"opening {what}, again, {name}": (list(values), "s")
        for name, values in zip(CLOCKS, zip(*times, strict=True), strict=True)
    }
    columns[f"peak memory of listing, sampler and scores, {what}"] = [memory["peak_mib"]], "MiB"
    columns["of which Python and the libraries"] = [memory["base_mib"]], "MiB"
    summary = [summary_row(name, values, unit) for name, (values, unit) in columns.items()]
    write_results(args.output, "memory", argv, repeats=args.repeats, summary=summary)
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
