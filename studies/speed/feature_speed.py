"""Measure the images/s of the handcrafted feature banks, together and one by one.

  python -m studies.speed.feature_speed

The images are noise of 256 px, since the cost does not depend on the content. Each figure is the median of several
passes after a warm-up; `workers` processes run in parallel, one thread each.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence

import torch

from models.features.extract import FEATURE_BANKS, extract_features
from studies.speed.summary import write_results
from utils.args import int_in, make_parser, run_script


def images_per_second(job: tuple[list[str], int, int]) -> list[float]:
    """Time passes over 32 images in one process; ``job`` is banks, side in px and number of passes."""
    banks, size, repeats = job
    torch.set_num_threads(1)
    images = torch.rand(32, 3, size, size, generator=torch.Generator().manual_seed(0))
    rates = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        extract_features(images, banks)
        rates.append(len(images) / (time.perf_counter() - started))
    return rates[1:]


def main(argv: Sequence[str] | None = None) -> dict:
    """Time the banks and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.feature_speed")
    parser.add_argument("--size", type=int_in(32), default=256, help="px")
    parser.add_argument("--repeats", type=int_in(1), default=5)
    parser.add_argument("--workers", type=int_in(1), default=os.cpu_count() or 1)
    parser.add_argument("--output", default="results/benchmarks/feature_speed.json")
    args = parser.parse_args(argv)
    every, rows = list(FEATURE_BANKS), []
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for banks in (every, *([bank] for bank in every)):
            for workers in (1, args.workers):
                rates = pool.map(images_per_second, [(banks, args.size, args.repeats)] * workers, chunksize=1)
                totals = [sum(turn) for turn in zip(*rates, strict=True)]
                row = {"banks": ",".join(banks), "processes": workers, "images_per_s": statistics.median(totals)}
                rows.append({**row, "range": [min(totals), max(totals)]})
                print(f"{row['images_per_s']:.0f} images/s  {workers} process(es)  {row['banks']}")
    write_results(args.output, "feature_speed", argv, size=args.size, repeats=args.repeats, rows=rows)
    return {"rows": rows}


if __name__ == "__main__":
    run_script(main)
