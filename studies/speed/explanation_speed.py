"""Speed of batched Grad-CAM against a forward pass and against the grad-cam package, image by image.

  python -m studies.speed.explanation_speed

All three run in turns in one process on the same images, fp32, random weights; the first turn is thrown away. The
figures are ratios of the times of one turn: their median and range. A forward pass is a batched one without gradient.
Writes a JSON file and, beside it, the table as .md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from utils.explanations.cam import TwoLogits, find_layer

from models.detector import Detector
from models.registry import create_model
from utils.args import int_in, make_parser, run_script
from utils.explanations.methods import explain
from utils.files import atomic_write_text, write_json
from utils.runtime import git_commit, hardware, versions
from utils.tables import markdown_table

COLUMNS = (("what", "Time of batched Grad-CAM"), ("median", "Median"), ("range", "Range"), ("bound", "Must be"))


def package_cam(detector: Detector) -> Callable[[torch.Tensor], None]:
    """Grad-CAM as the package's own examples run it: one image at a time through the two-logit wrapper."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = GradCAM(TwoLogits(detector), [detector.get_submodule(find_layer(detector, None))], detector.cam_reshape)

    def run(images: torch.Tensor) -> None:
        for image in images:
            cam(image[None], targets=[ClassifierOutputTarget(1)])

    return run


def seconds(work: Callable[[torch.Tensor], object], images: torch.Tensor) -> float:
    """Time of one call."""
    started = time.perf_counter()
    work(images)
    return time.perf_counter() - started


def measure(model: str, size: int, batch_size: int, repeats: int) -> dict:
    """Time forward pass, batched Grad-CAM and the package in turns; returns seconds per image and the ratios."""
    torch.manual_seed(0)
    # The package's hooks stay on the model that it was given, so it gets one of its own.
    ours, theirs = (create_model(model).eval().to(memory_format=torch.channels_last) for _ in range(2))
    images = torch.rand(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    sign = torch.ones(batch_size)
    runs = {
        "forward": torch.inference_mode()(ours.forward),
        "batched": lambda batch: explain(ours, batch, ["gradcam"], sign),
        "package": package_cam(theirs),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, work in runs.items():
            elapsed = seconds(work, images)
            if turn:
                times[name].append(elapsed / batch_size)
    ratios = {
        "forward_passes": [a / b for a, b in zip(times["batched"], times["forward"], strict=True)],
        "faster_than_package": [a / b for a, b in zip(times["package"], times["batched"], strict=True)],
    }
    return {
        "model": model,
        "size": size,
        "batch_size": batch_size,
        "turns": repeats,
        "seconds_per_image": {name: statistics.median(values) for name, values in times.items()},
        **{key: {"median": statistics.median(each), "range": [min(each), max(each)]} for key, each in ratios.items()},
    }


def table(row: dict) -> str:
    """The result as Markdown."""
    names = {
        "forward_passes": ("in forward passes", "at most 2.5"),
        "faster_than_package": ("the package takes so many times as long", "at least 2"),
    }
    rows = [
        {
            "what": what,
            "median": row[key]["median"],
            "bound": bound,
            "range": "{:.2f} to {:.2f}".format(*row[key]["range"]),
        }
        for key, (what, bound) in names.items()
    ]
    return markdown_table(rows, COLUMNS, ".2f")


def main(argv=None) -> dict:
    """Measure and write the results files."""
    parser = make_parser(__doc__, "python -m studies.speed.explanation_speed")
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--size", type=int_in(32), default=224, help="px")
    parser.add_argument("--batch-size", type=int_in(1), default=8)
    parser.add_argument("--repeats", type=int_in(1), default=7, help="counted turns")
    parser.add_argument("--output", default="results/benchmarks/explanation_speed.json")
    args = parser.parse_args(argv)
    row = measure(args.model, args.size, args.batch_size, args.repeats)
    command = (
        f"python -m studies.speed.explanation_speed --model {args.model} --size {args.size} "
        f"--batch-size {args.batch_size} --repeats {args.repeats}"
    )
    write_json(
        args.output,
        {
            "command": command,
            "hardware": hardware(),
            "threads": torch.get_num_threads(),
            "seed": 0,
            "git_commit": git_commit(),
            "versions": versions(),
            "rows": [row],
        },
    )
    caption = (
        f"{row['model']}, {row['size']} px, batch {row['batch_size']}, {row['turns']} turns, "
        f"{torch.get_num_threads()} thread(s), {hardware()}; `{command}`\n\n"
    )
    atomic_write_text(Path(args.output).with_suffix(".md"), caption + table(row))
    print(table(row), end="")
    return {"rows": [row]}


if __name__ == "__main__":
    run_script(main)
