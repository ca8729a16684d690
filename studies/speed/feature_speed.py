"""Images/s of the handcrafted feature banks, all together and one by one.

  python -m studies.speed.feature_speed

Noise images of 256 px: the banks do the same work on any content. Each figure is the median of several passes after
one that is thrown away; `workers` processes share the cores, one thread each.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time

import torch

from models.features.extract import FEATURE_BANKS, extract_features
from utils.args import int_in, make_parser, run_script
from utils.files import write_json
from utils.runtime import git_commit, hardware


def images_per_second(job: tuple[list[str], int, int]) -> list[float]:
    """Time passes over 32 images in one process."""
    banks, size, repeats = job
    torch.set_num_threads(1)
    images = torch.rand(32, 3, size, size, generator=torch.Generator().manual_seed(0))
    rates = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        extract_features(images, banks)
        rates.append(len(images) / (time.perf_counter() - started))
    return rates[1:]


def main(argv=None) -> dict:
    """Time the banks and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.feature_speed")
    parser.add_argument("--size", type=int_in(32), default=256, help="px")
    parser.add_argument("--repeats", type=int_in(1), default=5)
    parser.add_argument("--workers", type=int_in(1), default=os.cpu_count() or 1)
    parser.add_argument("--output", default="results/benchmarks/feature_speed.json")
    args = parser.parse_args(argv)
    every = list(FEATURE_BANKS)
    rows = []
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for banks in (every, *([bank] for bank in every)):
            for workers in (1, args.workers):
                rates = pool.map(images_per_second, [(banks, args.size, args.repeats)] * workers, chunksize=1)
                totals = [sum(turn) for turn in zip(*rates, strict=True)]
                rows.append(
                    {
                        "banks": ",".join(banks),
                        "processes": workers,
                        "images_per_s": statistics.median(totals),
                        "range": [min(totals), max(totals)],
                    }
                )
                print(f"{rows[-1]['images_per_s']:.0f} images/s  {workers} process(es)  {rows[-1]['banks']}")
    write_json(
        args.output,
        {
            "command": "python -m studies.speed.feature_speed",
            "size": args.size,
            "repeats": args.repeats,
            "hardware": hardware(),
            "git_commit": git_commit(),
            "rows": rows,
        },
    )
    return {"rows": rows}


if __name__ == "__main__":
    run_script(main)
