"""Training speed of the recipes for the full 140k set, and the hours that they would take on this machine.

  python -m studies.speed.recipes --data data/140k@limit=128

Each recipe of the README trains for one epoch on the given images. It starts from random weights, which does not change
the speed. The result is the images/s that train.py logs, and from it the hours for 100,000 training images and all
epochs of the recipe.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import train
from studies.speed.summary import write_results
from utils.args import int_in, make_parser, run_script

N_TRAIN = 100_000  # training images of the 140k set
RECIPES = {
    "InceptionResNetV2": "--model inception_resnet_v2 --model-args head=dense512 --freeze 24 --geometry resize "
    "--image-size 224 --augmentation none --lr 1e-4 --epochs 7",
    "plain CNN": "--model cnn_baseline --model-args input_size=256 --image-size 256 --lr 1e-3 --epochs 12",
    "ours": "--model tf_efficientnet_b0 --model-args dropout=0.2 stem_stride=1 --image-size 256 --train-size 160 "
    "--lr 8e-4 --epochs 10",
}


def main(argv: Sequence[str] | None = None) -> dict:
    """Time every recipe and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.recipes")
    parser.add_argument("--data", default="demo@n=240,size=256", metavar="SPEC")
    parser.add_argument("--batch-size", type=int_in(2), default=16)
    parser.add_argument("--output", default="results/benchmarks/recipes.json")
    args = parser.parse_args(argv)
    summary = []
    for name, recipe in RECIPES.items():
        flags = recipe.split()
        epochs = int(flags[flags.index("--epochs") + 1])
        with tempfile.TemporaryDirectory() as folder:
            once = ["--epochs", "1", "--batch-size", str(args.batch_size), "--data", args.data, "--output-dir", folder]
            train.main([*flags, *once])
            with (Path(folder) / "log.csv").open() as file:
                rate = float(next(csv.DictReader(file))["images_per_second"])
        for what, value, unit in (
            (f"train.py, recipe {name}", rate, "images/s"),
            (f"recipe {name}, {epochs} epochs of the 140k set", N_TRAIN * epochs / rate / 3600, "hours, estimated"),
        ):
            summary.append({"what": what, "value": value, "range": [value, value], "unit": unit})
    write_results(args.output, "recipes", argv, batch_size=args.batch_size, summary=summary)
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
