"""Time and memory of a listing of 140,000 images: opening its spec, an epoch of the sampler, and its scores.

  python -m studies.speed.memory --folder /dev/shm/many

Generates that many tiny files in a folder of its own below --folder and deletes them afterwards. Opening is timed in
new processes, with the files' names in the system's memory as they are after a first listing; the processor's time is
stated beside the time on the clock, which other work on the machine lengthens. The memory is the peak of the process
that opens the spec, draws an epoch and lays out and writes its scores.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from utils.args import int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import ROOT, write_json

SPLITS = {"train": 10, "valid": 2, "test": 2}  # parts of 14
CLOCKS = ("on the clock", "processor time")
OPEN = """
import json, sys, time
started, busy = time.perf_counter(), time.process_time()
from datasets.spec import open_records
from utils.files import ROOT
listing = open_records(sys.argv[1])
print(json.dumps([time.perf_counter() - started, time.process_time() - busy]))
"""


def make_files(folder: Path, n_images: int) -> None:
    """Tiny files in the layout of the 140k set; what is in them is never looked at."""
    for split, parts in SPLITS.items():
        for name in ("real", "fake"):
            (folder / split / name).mkdir(parents=True)
            for number in range(n_images * parts // 28):
                (folder / split / name / f"{number:06d}.jpg").write_bytes(b"x" * (number % 50 + 1))


def work(folder: str) -> None:
    """The process whose memory is measured: listings of all splits, an epoch's order, scores and their file."""
    import numpy as np

    from datasets.loading import EpochSampler
    from datasets.splits import open_training_data
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


def run(folder: str, *command: str):
    """Run a Python process in a folder, where it leaves its index, and read its last line as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["a measuring process failed"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv=None) -> dict:
    """Generate, measure, delete, and write the results file."""
    from utils.runtime import git_commit, hardware

    parser = make_parser(__doc__, "python -m studies.speed.memory")
    parser.add_argument("--folder", default="/dev/shm", metavar="DIR", help="where the files are generated")
    parser.add_argument("--images", type=int_in(28), default=140_000)
    parser.add_argument("--repeats", type=int_in(1), default=5)
    parser.add_argument("--output", default="results/benchmarks/memory.json")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        make_files(Path(folder) / "many", args.images)
        spec = f"{folder}/many@split=all"
        first, *times = [run(folder, "-c", OPEN, spec) for _ in range(args.repeats + 1)]
        memory = run(folder, "-c", f"import studies.speed.memory as m; m.work({str(Path(folder) / 'many')!r})")
    what = f"a spec of {args.images:,} files"
    summary = [
        *(
            {"what": f"opening {what}, first time, {name}", "value": value, "range": [value, value], "unit": "s"}
            for name, value in zip(CLOCKS, first, strict=True)
        ),
        *(
            {
                "what": f"opening {what}, from its index, {name}",
                "value": statistics.median(values),
                "range": [min(values), max(values)],
                "unit": "s",
            }
            for name, values in zip(CLOCKS, zip(*times, strict=True), strict=True)
        ),
        {
            "what": f"peak memory of listing, sampler and scores, {what}",
            "value": memory["peak_mib"],
            "range": [memory["peak_mib"]] * 2,
            "unit": "MiB",
        },
        {
            "what": "of which Python and the libraries",
            "value": memory["base_mib"],
            "range": [memory["base_mib"]] * 2,
            "unit": "MiB",
        },
    ]
    for row in summary:
        print(f"{row['value']:.2f} {row['unit']}  {row['what']}")
    write_json(
        args.output,
        {
            "command": f"python -m studies.speed.memory --images {args.images}",
            "hardware": hardware(),
            "repeats": args.repeats,
            "git_commit": git_commit(),
            "summary": summary,
        },
    )
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
