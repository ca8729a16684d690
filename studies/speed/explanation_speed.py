"""Speed of batched Grad-CAM compared with a forward pass and with the grad-cam package.

  python -m studies.speed.explanation_speed

All three take turns in one process on the same images, in fp32 with random weights; the first turn is discarded. The
results are ratios of the times of one turn, as median and range. The forward pass is batched and without gradient.
Writes a JSON file and the table as .md next to it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from models.detector import Detector
from models.registry import create_model
from studies.speed.summary import write_results
from utils.args import int_in, make_parser, run_script
from utils.explanations.layers import find_layer
from utils.explanations.maps import explain
from utils.files import atomic_write_text
from utils.tables import columns, markdown_table

COLUMNS = columns(what="Time of batched Grad-CAM", median="Median", range="Range", bound="Must be")


class TwoLogits(torch.nn.Module):
    """A detector as a classifier with the logits ``[0, z]``, as grad-cam expects."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.detector(images)
        return torch.stack([torch.zeros_like(logits), logits], dim=1)


def package_cam(detector: Detector) -> Callable[[torch.Tensor], None]:
    """Grad-CAM as in the examples of the package: one image at a time."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = GradCAM(TwoLogits(detector), [detector.get_submodule(find_layer(detector, None))], detector.cam_reshape)

    def run(images: torch.Tensor) -> None:
        for image in images:
            cam(image[None], targets=[ClassifierOutputTarget(1)])

    return run


def measure(model: str, size: int, batch_size: int, repeats: int) -> dict:
    """Time the three in turns; returns seconds per image and the ratios."""
    torch.manual_seed(0)
    # The package leaves its hooks on the model, so it gets a separate one.
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
            started = time.perf_counter()
            work(images)
            if turn:
                times[name].append((time.perf_counter() - started) / batch_size)
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
    """Format the result as Markdown."""
    bounds = {
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
        for key, (what, bound) in bounds.items()
    ]
    return markdown_table(rows, COLUMNS, ".2f")


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure and write the results files."""
    parser = make_parser(__doc__, "python -m studies.speed.explanation_speed")
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--size", type=int_in(32), default=224, help="px")
    parser.add_argument("--batch-size", type=int_in(1), default=8)
    parser.add_argument("--repeats", type=int_in(1), default=7, help="counted turns")
    parser.add_argument("--output", default="results/benchmarks/explanation_speed.json")
    args = parser.parse_args(argv)
    row, threads = measure(args.model, args.size, args.batch_size, args.repeats), torch.get_num_threads()
    facts = write_results(args.output, "explanation_speed", argv, threads=threads, seed=0, rows=[row])
    caption = (
        f"{args.model}, {args.size} px, batch {args.batch_size}, {args.repeats} turns, {threads} thread(s), "
        f"{facts['hardware']}; `{facts['command']}`\n\n"
    )
    atomic_write_text(Path(args.output).with_suffix(".md"), caption + table(row))
    print(table(row), end="")
    return {"rows": [row]}


if __name__ == "__main__":
    run_script(main)
