"""The time that the scripts take to print --help and to reject a wrong command.

  python -m studies.speed.startup

Starts each command several times as a new process and writes the median and the range in seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from studies.speed.summary import write_results
from utils.args import int_in, make_parser, run_script
from utils.files import ROOT

COMMANDS = (
    "train.py --help",
    "evaluate.py --help",
    "predict.py --help",
    "ensemble.py --help",
    "audit.py --help",
    "-m studies.model_table --help",
    "train.py --epochs many",
    "train.py --model efficientnet_bO",
    "train.py --data nowhere",
    "evaluate.py --checkpoint absent.pt --data demo",
    "predict.py --checkpoint absent.pt x.jpg",
    "ensemble.py --checkpoint absent.pt --output-dir x",
    "audit.py --data nowhere",
    "-m studies.model_table --models resnet999",
)


def main(argv: Sequence[str] | None = None) -> dict:
    """Time every command and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.startup")
    parser.add_argument("--repeats", type=int_in(1), default=5)
    parser.add_argument("--output", default="results/benchmarks/startup.json")
    args = parser.parse_args(argv)
    rows = []
    for command in COMMANDS:
        times = []
        for _ in range(args.repeats):
            started = time.perf_counter()
            code = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True).returncode
            times.append(time.perf_counter() - started)
        seconds = {"seconds_median": statistics.median(times), "seconds_range": [min(times), max(times)]}
        rows.append({"command": f"python {command}", "exit_code": code, **seconds})
        print(f"{rows[-1]['seconds_median']:.2f} s  {rows[-1]['command']}")
    write_results(args.output, "startup", argv, repeats=args.repeats, rows=rows)
    return {"rows": rows}


if __name__ == "__main__":
    run_script(main)
