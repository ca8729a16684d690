"""Images/s of each forgery that train.py makes of real photographs, and of the forger with all of them, on one core.

  python -m studies.speed.forgery_speed

Demo photographs scaled to 256 px, decoded beforehand. Processor seconds are counted, so that other load on the machine
does not count; each figure is the median of several passes after one that is thrown away.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from datasets.forgeries.decoder import DecoderForgery
from datasets.forgeries.forger import DECODER, FORGERIES, KINDS, Forger, Forgery
from datasets.images import read_image
from datasets.spec import open_records
from datasets.transforms import resize_to
from models.autoencoder import STRIDE, Autoencoder
from utils.args import add_seed, int_in, make_parser, run_script
from utils.files import write_json
from utils.runtime import git_commit, hardware, versions

Action = Callable[[np.ndarray, int], object]


def forge_once(forge: Forgery, seed: int, image: np.ndarray, number: int) -> None:
    """Forge an image with draws of its own."""
    forge(image, np.random.default_rng([seed, number]))


def run_forger(forger: Forger, seed: int, image: np.ndarray, number: int) -> None:
    """Treat a real image as train.py does."""
    forger(image, 0, seed + number)


def rates(action: Action, images: Sequence[np.ndarray], repeats: int) -> list[float]:
    """Images/s of each pass over the images; ``action`` takes an image and a number that is new each time."""
    found = []
    for turn in range(repeats + 1):
        started = time.process_time()
        for number, image in enumerate(images):
            action(image, turn * len(images) + number)
        found.append(len(images) / (time.process_time() - started))
    return found[1:]


def main(argv=None) -> dict:
    """Time each forgery and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.forgery_speed")
    parser.add_argument("--data", default="demo", metavar="SPEC", help="default: demo")
    parser.add_argument("--n", type=int_in(1), default=64, help="real images of its test split (default: 64)")
    parser.add_argument("--size", type=int_in(32), default=256, help="px (default: 256)")
    parser.add_argument("--repeats", type=int_in(1), default=5, help="counted passes (default: 5)")
    parser.add_argument("--output", default="results/benchmarks/forgery_speed.json")
    add_seed(parser)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    reals = [record for record in open_records(args.data).records if record.label == 0][: args.n]
    images = [resize_to(read_image(record.path), args.size, args.size) for record in reals]
    summary: list[dict[str, Any]] = []
    decoder = DecoderForgery(Autoencoder(), STRIDE)  # trained or not, it takes as long
    kinds: dict[str, Forgery] = {**FORGERIES, DECODER: decoder}
    actions: dict[str, Action] = {
        f"forgery {name}": partial(forge_once, forge, args.seed) for name, forge in kinds.items()
    }
    actions["forger of all kinds, share 0.5, with JPEG"] = partial(run_forger, Forger(KINDS, 0.5, decoder), args.seed)
    for name, action in actions.items():
        found = rates(action, images, args.repeats)
        what = f"{name}, {args.size} px, one core"
        summary.append(
            {"what": what, "value": statistics.median(found), "range": [min(found), max(found)], "unit": "images/s"}
        )
        print(f"{summary[-1]['value']:.0f} [{min(found):.0f}, {max(found):.0f}] images/s  {what}")
    command = shlex.join(["python", "-m", "studies.speed.forgery_speed", *(sys.argv[1:] if argv is None else argv)])
    write_json(
        args.output,
        {
            "command": command,
            "n_images": len(images),
            "repeats": args.repeats,
            "seed": args.seed,
            "hardware": hardware(),
            "git_commit": git_commit(),
            "versions": versions(),
            "summary": summary,
        },
    )
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
