"""Training speed of train.py against a bare PyTorch loop over images in memory.

  python -m studies.speed.training_speed --data data/140k@limit=256

Both loops run in one process, in turns, with the same model, batch size, precision, crop and optimiser. The first turn
of each is a warm-up. The bare loop crops and flips with numpy slices and does nothing else; train.py reads files
(decoded once, then kept), augments with albumentations, averages weights and clips gradients. The result is the ratio
of their images/s per turn: its median and its range. train.py also runs with --compile, against itself without it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import train
from datasets.decoding.images import read_image
from datasets.listing.splits import open_training_data
from models.detector import Detector
from models.registry import create_model
from studies.speed.summary import write_results
from utils.args import make_parser, run_script
from utils.runtime import autocast
from utils.training.recipe import make_recipe
from utils.training.setup import build_detector, prepare


def bare_epoch(
    model: Detector,
    optimizer: torch.optim.Optimizer,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    crop: int,
    dtype: torch.dtype,
) -> float:
    """Run one epoch of a minimal loop; returns images/s."""
    started = time.perf_counter()
    model.train()
    order = np.random.permutation(len(images))
    steps = len(images) // batch_size
    for step in range(steps):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        top, left = np.random.randint(0, images.shape[1] - crop + 1, 2)
        batch = images[chosen, top : top + crop, left : left + crop]
        if np.random.rand() < 0.5:
            batch = batch[:, :, ::-1]
        x = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float().div_(255)
        x = x.contiguous(memory_format=torch.channels_last)
        with autocast(torch.device("cpu"), dtype):
            logits = model(x)
        loss = binary_cross_entropy_with_logits(logits.float(), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps * batch_size / (time.perf_counter() - started)


def measure(model_name: str, spec: str, crop: int, batch_size: int, repeats: int) -> dict:
    """Run both loops in turns for one model; returns images/s and ratios."""
    flags = ["--model", model_name, "--data", spec, "--image-size", str(crop), "--batch-size", str(batch_size)]
    recipe = make_recipe(vars(train.get_args_parser().parse_args([*flags, "--epochs", str(repeats + 1)])), "")
    data, device = open_training_data(recipe.data), torch.device("cpu")
    records = data.train_records
    detector = build_detector(recipe, records, device)
    state, loader = prepare(recipe, detector, data, Path("runs/training_speed"), device)
    images = np.stack([read_image(record.path) for record in records])
    labels = np.array([record.label for record in records], dtype=np.float32)
    bare = create_model(model_name).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    compiling = replace(recipe, compile=True)
    ours: list[float] = []
    theirs: list[float] = []
    compiled: list[float] = []
    for turn in range(repeats + 1):
        theirs.append(bare_epoch(bare, optimizer, images, labels, batch_size, crop, state.dtype))
        loader.sampler.epoch = turn
        for settings, speeds in ((recipe, ours), (compiling, compiled)):
            epoch = train.train_epoch(settings, state, loader, {})
            speeds.append(epoch.images / epoch.seconds)
    ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
    gains = [a / b for a, b in zip(compiled[1:], ours[1:], strict=True)]
    return {
        "model": model_name,
        "crop": crop,
        "batch_size": batch_size,
        "precision": str(state.dtype).removeprefix("torch."),
        "n_images": len(records),
        "turns": repeats,
        "train_py_images_per_s": statistics.median(ours[1:]),
        "bare_loop_images_per_s": statistics.median(theirs[1:]),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "compiled_images_per_s": statistics.median(compiled[1:]),
        "compiled_ratio_median": statistics.median(gains),
        "compiled_ratio_range": [min(gains), max(gains)],
    }


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure each model and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.training_speed")
    parser.add_argument("--data", default="demo", metavar="SPEC", help="images of one size, at least crop px")
    parser.add_argument("--models", nargs="+", default=["cnn", "tf_efficientnet_b0"])
    parser.add_argument("--crop", type=int, default=224, help="px")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5, help="measured turns of each loop")
    parser.add_argument("--output", default="results/benchmarks/training_speed.json")
    args = parser.parse_args(argv)
    rows = [measure(model, args.data, args.crop, args.batch_size, args.repeats) for model in args.models]
    write_results(args.output, "training_speed", argv, threads=torch.get_num_threads(), rows=rows)
    for row in rows:
        print(
            f"{row['model']}: {row['train_py_images_per_s']:.1f} images/s, bare loop "
            f"{row['bare_loop_images_per_s']:.1f}, ratio {row['ratio_median']:.2f} {row['ratio_range']}; with "
            f"--compile {row['compiled_ratio_median']:.2f} times that, {row['compiled_ratio_range']}"
        )
    return {"rows": rows}


if __name__ == "__main__":
    run_script(main)
