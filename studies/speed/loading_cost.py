"""What loading data costs train.py: images/s of its epochs against the same steps on a batch that is already there.

  python -m studies.speed.loading_cost --data data/140k --models tf_efficientnet_b0 vit_base_patch16_224

Both loops are `train_epoch` of train.py, with the same model, optimiser and precision, in turns in one process; the
first turn is a warm-up. One reads, decodes and augments images; the other gets one batch of random pixels on the device
again and again. With --augmentation light, images of one size stay in the memory of a GPU; others are augmented by the
loader processes. The result is the ratio of images/s per turn: its median and its range.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import train
from datasets.listing.splits import open_training_data
from datasets.loading import Batch
from studies.speed.summary import summary_row, write_results
from utils.args import add_device_group, check_output_dir, int_in, make_parser, run_script
from utils.runtime import Machine, set_up
from utils.training.recipe import make_recipe
from utils.training.setup import TrainingLoader, build_detector, prepare


class SyntheticLoader:
    """Yields one batch of random pixels on a device, as often as another loader yields batches."""

    num_workers = 0

    def __init__(self, like: TrainingLoader, device: torch.device) -> None:
        batch = next(iter(like))
        self.dataset, self.sampler, self.length = like.dataset, like.sampler, len(like)
        pixels = torch.randint_like(batch.images, 256, device=device)
        self.batch = Batch(pixels, batch.labels.to(device), batch.indices, [])

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.length)


def measure(model: str, augmentation: str, flags: Sequence[str], turns: int, machine: Machine) -> dict:
    """Run both loops in turns for one model; returns images/s and ratios."""
    named = ["--model", model, "--augmentation", augmentation, "--epochs", str(2 * turns + 2), *flags]
    recipe = make_recipe(vars(train.get_args_parser().parse_args(named)), "")
    data = open_training_data(recipe.data)
    detector = build_detector(recipe, data.train_records, machine.device)
    state, loader = prepare(recipe, detector, data, Path("runs/loading_cost"), machine.device, machine.workers)
    synthetic = SyntheticLoader(loader, machine.device)
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns + 1):
        loader.sampler.epoch = turn
        for is_real, batches in ((False, synthetic), (True, loader)):
            epoch = train.train_epoch(recipe, state, batches, {})
            speeds[is_real].append(epoch.images / epoch.seconds)
    where = "GPU" if machine.device.type == "cuda" else "CPU"
    what = f"{model}, {recipe.image_size} px, batch {recipe.batch_size}, {augmentation}, on a {where}"
    ours, theirs = speeds[True][1:], speeds[False][1:]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "model": model,
        "augmentation": augmentation,
        "image_size": recipe.image_size,
        "batch_size": recipe.batch_size,
        "precision": str(state.dtype).removeprefix("torch."),
        "workers": loader.num_workers,
        "n_images": len(data.train_records),
        "turns": turns,
        "synthetic_images_per_s": statistics.median(theirs),
        "summary": [
            summary_row(f"train.py: {what}", ours, "images/s"),
            summary_row(f"train.py against synthetic images: {what}", ratios, "ratio of images/s"),
        ],
    }


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure each model with each augmentation and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.loading_cost")
    parser.add_argument("--data", nargs="+", default=["demo"], metavar="SPEC", help="images to train on")
    parser.add_argument("--models", nargs="+", default=["tf_efficientnet_b0"], metavar="NAME")
    parser.add_argument("--augmentations", nargs="+", default=["light", "delivery"], metavar="NAME")
    parser.add_argument("--image-size", type=int_in(16, 4096), default=224, metavar="PX")
    parser.add_argument("--batch-size", type=int_in(2), default=128)
    parser.add_argument("--turns", type=int_in(1), default=3, help="measured turns of each loop")
    parser.add_argument("--output", default="results/benchmarks/loading_cost.json")
    add_device_group(parser)
    args = parser.parse_args(argv)
    check_output_dir(Path(args.output).parent, "--output")
    machine = set_up(args.device, workers=args.workers, threads=args.threads)
    flags = ["--data", *args.data, "--precision", args.precision]
    flags += ["--image-size", str(args.image_size), "--batch-size", str(args.batch_size)]
    rows = [
        measure(model, augmentation, flags, args.turns, machine)
        for model in args.models
        for augmentation in args.augmentations
    ]
    summary = [line for row in rows for line in row.pop("summary")]
    write_results(args.output, "loading_cost", argv, rows=rows, summary=summary)
    return {"rows": rows, "summary": summary}


if __name__ == "__main__":
    run_script(main)
