"""Measure the images/s of each forgery of train.py --forgeries, and of the forger with all of them, on one core.

  python -m studies.speed.forgery_speed

The images are demo photographs scaled to 256 px and decoded beforehand. Processor seconds count, so that other load on
the machine does not matter; each figure is the median of several passes after a warm-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from datasets.forgeries.decoder import DecoderForgery
from datasets.forgeries.forger import DECODER, FORGERIES, KINDS, Forger, Forgery
from datasets.images import read_record
from datasets.spec import open_records
from datasets.transforms import resize_to
from models.autoencoder import STRIDE, Autoencoder
from studies.speed.summary import summary_row, write_results
from utils.args import add_seed, int_in, make_parser, run_script

Action = Callable[[np.ndarray, int], object]


def rates(action: Action, images: Sequence[np.ndarray], repeats: int) -> list[float]:
    """Images/s of each pass over the images; ``action`` takes an image and a number that is unique per call."""
    found = []
    for turn in range(repeats + 1):
        started = time.process_time()
        for number, image in enumerate(images):
            action(image, turn * len(images) + number)
        found.append(len(images) / (time.process_time() - started))
    return found[1:]


def main(argv: Sequence[str] | None = None) -> dict:
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
    images = [resize_to(read_record(record), args.size, args.size) for record in reals]
    decoder = DecoderForgery(Autoencoder(), STRIDE)  # training does not change its speed
    forger = Forger(KINDS, 0.5, decoder)

    def timed(forge: Forgery) -> Action:
        return lambda image, number: forge(image, np.random.default_rng([args.seed, number]))

    kinds: dict[str, Forgery] = {**FORGERIES, DECODER: decoder}
    actions = {f"forgery {name}": timed(forge) for name, forge in kinds.items()}
    actions["forger of all kinds, share 0.5, with JPEG"] = lambda image, number: forger(image, 0, args.seed + number)
    summary = [
        summary_row(f"{name}, {args.size} px, one core", rates(action, images, args.repeats), "images/s")
        for name, action in actions.items()
    ]
    facts = {"n_images": len(images), "repeats": args.repeats, "seed": args.seed}
    write_results(args.output, "forgery_speed", argv, **facts, summary=summary)
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
