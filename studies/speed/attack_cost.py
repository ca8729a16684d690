"""Cost of PGD-20 relative to bare passes of the model, and its agreement with torchattacks.

  python -m studies.speed.attack_cost --models cnn tf_efficientnet_b0 --size 96 --threads 1

A bare pass is one forward pass and one backward pass to the image, of the model alone, in evaluation mode and without
gradients of the parameters: the least that a gradient step can cost. Twenty of them and one PGD-20 take turns on the
same batch; the first turn is discarded. The table has the median and range of the ratio of their CPU seconds, so other
load on the machine does not count. Agreement is the share of pixel values that differ from torchattacks by more than
1e-5 for the same seed: where a gradient is zero up to rounding, its sign is random in both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.registry import create_model
from studies.speed.summary import write_results
from utils.args import int_in, make_parser, run_script
from utils.attacks.gradient import attackable, pgd
from utils.attacks.torchattacks_bridge import TwoClass
from utils.runtime import set_threads
from utils.tables import columns, write_table

EPS, ALPHA, STEPS = 4 / 255, 1 / 255, 20
COLUMNS = [
    *columns(model="Model", size="Input (px)", batch_size="Batch", ratio="PGD-20 / 20 passes", low="lowest"),
    *columns(high="highest", passes_per_s="Passes of one image/s", fgsm_difference="FGSM differs"),
    *columns(pgd_difference="PGD-20 differs"),
]


def bare_passes(model: nn.Module, images: torch.Tensor) -> float:
    """CPU seconds of STEPS forward and backward passes to the image."""
    started = time.process_time()
    for _ in range(STEPS):
        leaf = images.detach().requires_grad_(True)
        torch.autograd.grad(model(leaf).sum(), leaf)
    return time.process_time() - started


def share_that_differs(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Share of pixel values that differ by more than 1e-5."""
    return ((ours - theirs).abs() > 1e-5).float().mean().item()


def measure(name: str, size: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Time one model in turns and compare its attacks with torchattacks."""
    import torchattacks

    torch.manual_seed(0)
    model = create_model(name).eval().to(memory_format=torch.channels_last)
    images = torch.rand(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size).float() % 2
    bare, attack = [], []
    with attackable(model):
        for _ in range(repeats + 1):
            bare.append(bare_passes(model, images))
            started = time.process_time()
            pgd(model, images, labels, EPS, alpha=ALPHA, steps=STEPS)
            attack.append(time.process_time() - started)
        wrapped = TwoClass(model, images.device)
        fgsm = pgd(model, images, labels, EPS, alpha=EPS, steps=1, random_start=False, loss="ce")
        fgsm_difference = share_that_differs(fgsm, torchattacks.FGSM(wrapped, eps=EPS)(images, labels.long()))
        torch.manual_seed(1)
        theirs = torchattacks.PGD(wrapped, eps=EPS, alpha=ALPHA, steps=STEPS)(images, labels.long())
        torch.manual_seed(1)
        ours = pgd(model, images, labels, EPS, alpha=ALPHA, steps=STEPS, loss="ce")
    ratios = [a / b for a, b in zip(attack[1:], bare[1:], strict=True)]
    return {
        "model": name,
        "size": size,
        "batch_size": batch_size,
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "passes_per_s": STEPS * batch_size / statistics.median(bare[1:]),
        "fgsm_difference": fgsm_difference,
        "pgd_difference": share_that_differs(ours, theirs),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure each model and write the results files; returns ``{"rows": rows of the table}``."""
    parser = make_parser(__doc__, "python -m studies.speed.attack_cost")
    parser.add_argument("--models", nargs="+", default=["cnn", "tf_efficientnet_b0"])
    parser.add_argument("--size", type=int_in(32), default=96, help="px (default: 96)")
    parser.add_argument("--batch-size", type=int_in(1), default=16)
    parser.add_argument("--repeats", type=int_in(1), default=5, help="counted turns (default: 5)")
    parser.add_argument("--threads", type=int_in(1), help="CPU threads (default: all cores)")
    parser.add_argument("--output", default="results/benchmarks/attack_cost", help="files without their suffix")
    args = parser.parse_args(argv)
    set_threads(args.threads)
    rows = [measure(name, args.size, args.batch_size, args.repeats) for name in args.models]
    machine = {"threads": torch.get_num_threads(), "repeats": args.repeats}
    facts = write_results(f"{args.output}.json", "attack_cost", argv, **machine, rows=rows)
    caption = f"Cost and agreement of PGD-20; `{facts['command']}`; {facts['hardware']}; {args.repeats} turns."
    formats = {"ratio": ".3f", "passes_per_s": ".0f", "fgsm_difference": ".1e", "pgd_difference": ".1e"}
    write_table(rows, COLUMNS, args.output, caption, formats)
    print(Path(f"{args.output}.md").read_text(encoding="utf-8"), end="")
    return {"rows": rows}


if __name__ == "__main__":
    run_script(main)
