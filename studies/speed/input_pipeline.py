"""Measure training images per second: the cached input pipeline, timm's loader, and PIL with albumentations.

  python -m studies.speed.input_pipeline --data data/140k@limit=1000

All three read the same images with the same number of worker processes and yield batches of float tensors of
224 x 224 px; nothing is trained. Ours and PIL with albumentations crop, flip, and apply blur, noise and JPEG with the
probabilities of --augmentation forensic; timm's loader uses its default augmentation (random resized crop, flip, colour
jitter). Turns alternate after a warm-up; medians with ranges, ratios turn by turn. A breakdown of our time is measured
in this process: an item of the cached loader and each of its steps, over up to 500 images.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datasets.augmentation import blur, jpeg, noise
from datasets.image_cache import cache_listing
from datasets.listing.spec import Record, open_records
from datasets.loading import EpochSampler, ImageDataset, make_loader
from datasets.transforms import Geometry, TrainTransform, as_floats
from studies.speed.summary import summary_row, write_results
from utils.args import int_in, make_parser, run_script
from utils.errors import UserError

SIDE = 224
OURS = "cached crop + flip + JPEG + blur + noise"
STEPS = ((blur, 0.2), (noise, 0.2), (jpeg, 0.4))


class PilImages(Dataset):
    """Images opened with PIL and passed to a transform, as in most training scripts."""

    def __init__(self, records: Sequence[Record], transform: Any) -> None:
        self.records, self.transform = records, transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        record = self.records[index]
        with Image.open(record.path) as image:
            return self.transform(image.convert("RGB")), record.label


def cached_loader(records: Sequence[Record], batch_size: int, workers: int) -> DataLoader:
    """This project's loader over records whose decoded images are in a cache."""
    transform = TrainTransform(Geometry("crop", SIDE), "light", as_bytes=True)
    transform.steps = STEPS
    sampler = EpochSampler(len(records), seed=0)
    return make_loader(ImageDataset(records, transform), batch_size, sampler, workers, drop_last=True)


def albumentations_loader(records: Sequence[Record], batch_size: int, workers: int) -> DataLoader:
    """PIL, then albumentations with the same steps, as its documentation shows them."""
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    steps = A.Compose(
        [
            A.RandomCrop(SIDE, SIDE),
            A.HorizontalFlip(p=0.5),
            A.GaussianBlur(sigma_limit=(0.3, 2.0), blur_limit=0, p=0.2),
            A.GaussNoise(std_range=(0.005, 0.04), p=0.2),
            A.ImageCompression(quality_range=(40, 95), p=0.4),
            A.Normalize(),
            ToTensorV2(),
        ]
    )
    images = PilImages(records, lambda image: steps(image=np.asarray(image))["image"])
    return DataLoader(images, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)


def timm_loader(records: Sequence[Record], batch_size: int, workers: int) -> Any:
    """timm's training loader with its defaults, which normalises whole batches."""
    from timm.data import create_loader

    images: Any = PilImages(records, None)  # timm sets the transform
    return create_loader(
        images,
        (3, SIDE, SIDE),
        batch_size,
        is_training=True,
        use_prefetcher=True,
        num_workers=workers,
        device=torch.device("cpu"),
        pin_memory=False,
        persistent_workers=True,
    )


def one_epoch(loader: Any) -> float:
    """Iterate over a loader once; returns images/s."""
    started, images = time.perf_counter(), 0
    for batch in loader:
        images += len(as_floats(batch.images) if hasattr(batch, "images") else batch[0])
    return images / (time.perf_counter() - started)


def check_sizes(records: Sequence[Record], batch_size: int) -> None:
    """Raise UserError unless there is a batch of images, all of which are large enough for a crop."""
    if len(records) < batch_size:
        raise UserError(f"expected --data of at least {batch_size} images, one batch, got {len(records)}")
    dataset = ImageDataset(records, TrainTransform(Geometry("crop", SIDE)))
    smallest = min(min(dataset.read(index).shape[:2]) for index in range(len(records)))
    if smallest < SIDE:
        raise UserError(
            f"expected --data of images of at least {SIDE} px, got one of {smallest} px; choose another dataset"
        )


def exact_blur(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The blur that ``datasets.augmentation.blur`` replaces."""
    return cv2.GaussianBlur(image, (0, 0), generator.uniform(0.3, 2.0))


def microseconds(dataset: ImageDataset) -> dict[str, float]:
    """Mean time per image in this process: of an item of the cached loader, and of single steps on its crops."""
    crops = [np.ascontiguousarray(dataset.read(index)[:SIDE, :SIDE]) for index in range(min(500, len(dataset)))]
    generator = np.random.default_rng(0)
    steps: dict[str, Callable[[int], object]] = {
        "whole item of the cached loader": lambda index: dataset[index, index],
        "step JPEG": lambda index: jpeg(crops[index], generator),
        "step blur": lambda index: blur(crops[index], generator),
        "step OpenCV's exact blur": lambda index: exact_blur(crops[index], generator),
        "step noise": lambda index: noise(crops[index], generator),
    }
    found = {}
    for name, step in steps.items():
        started = time.perf_counter()
        for index in range(len(crops)):
            step(index)
        found[name] = 1e6 * (time.perf_counter() - started) / len(crops)
    return found


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure all three in turns and write the results file."""
    parser = make_parser(__doc__, "python -m studies.speed.input_pipeline")
    parser.add_argument("--data", default="demo@size=256", metavar="SPEC", help="images of at least 224 px")
    parser.add_argument("--workers", type=int_in(1), default=2)
    parser.add_argument("--batch-size", type=int_in(1), default=32)
    parser.add_argument("--repeats", type=int_in(1), default=5, help="counted turns of each loader")
    parser.add_argument("--output", default="results/benchmarks/input_pipeline.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    listing = open_records(args.data)
    with tempfile.TemporaryDirectory() as folder:
        cached = cache_listing(listing, Path(folder), args.workers)
        check_sizes(cached.records, args.batch_size)
        loaders = {
            OURS: cached_loader(cached.records, args.batch_size, args.workers),
            "timm, its own steps": timm_loader(listing.records, args.batch_size, args.workers),
            "PIL + albumentations, same steps": albumentations_loader(listing.records, args.batch_size, args.workers),
        }
        turns = [{name: one_epoch(loader) for name, loader in loaders.items()} for _ in range(args.repeats + 1)][1:]
        parts = [microseconds(loaders[OURS].dataset) for _ in range(args.repeats + 1)][1:]
    workers, alone = f"{SIDE} px, {args.workers} workers", f"{SIDE} px, one process"
    columns = {(f"loader: {name}, {workers}", "images/s"): [turn[name] for turn in turns] for name in loaders}
    columns |= {
        (f"loader: cached against {name}, {workers}", "ratio of images/s"): [turn[OURS] / turn[name] for turn in turns]
        for name in loaders
        if name != OURS
    }
    columns |= {(f"loader: {name}, {alone}", "µs per image"): [part[name] for part in parts] for name in parts[0]}
    summary = [summary_row(what, values, unit) for (what, unit), values in columns.items()]
    write_results(args.output, "input_pipeline", argv, n_images=len(listing.records), summary=summary)
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
