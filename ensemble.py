"""Join checkpoints into one: an ensemble of detectors, a soup of the weights of one architecture, or views of one.

  python ensemble.py --checkpoint checkpoints/a checkpoints/b --data data/140k --output-dir checkpoints/both
  python ensemble.py --checkpoint checkpoints/seed0 checkpoints/seed1 --data data/140k --method soup
  python ensemble.py --checkpoint checkpoints/a --views flip --data data/140k --output-dir checkpoints/a-flip

Methods: `mean` of the members' calibrated logits; `weighted` by how far each one's validation AUC lies above chance;
`stacked`, a logistic regression on the members' validation logits; `soup`, one network whose weights are the mean of
the members' (Wortsman et al., ICML 2022, arXiv 2203.05482). With --views a single detector is asked several times
(test-time augmentation): about the image and its mirror image (flip), four corner crops, a slight blur; the logits are
averaged. The result is a checkpoint like any other. Its calibration and thresholds are fitted on validation. The last
lines on stdout are as those of train.py:

  test faces140k n_real=101 n_fake=125 auc=0.988 [0.975,0.997] acc=0.947 [0.916,0.973] threshold=0.480
  checkpoint checkpoints/both/best.pt
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from datasets.splits import TrainingData, open_training_data
from utils.args import (
    EXIT_DONE,
    EXIT_PARTIAL,
    add_device_group,
    check_checkpoint_file,
    check_output_dir,
    int_in,
    make_parser,
    run_script,
)
from utils.errors import UserError

if TYPE_CHECKING:
    from models.ensemble import Ensemble
    from models.views import Views

METHODS = ("mean", "weighted", "stacked", "soup")
VIEWS = ("flip", "crops", "blur")  # as in models/views.py, which needs torch


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of ensemble.py."""
    parser = make_parser(__doc__, "ensemble.py")
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="PT", help="two or more members, or one and --views"
    )
    parser.add_argument(
        "--data", nargs="+", default=["demo"], metavar="SPEC", help="valid and test splits (default: demo)"
    )
    parser.add_argument("--method", choices=METHODS, default="mean", help="default: mean")
    parser.add_argument("--views", nargs="+", choices=VIEWS, help="test-time augmentation of a single --checkpoint")
    parser.add_argument("--batch-size", type=int_in(1), default=32)
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="run folder of the result")
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Join; returns ``{"checkpoint": path, "rows": test rows, "exit_code": 0 or 1}``."""
    args = get_args_parser().parse_args(argv)
    args.command = shlex.join(["python", "ensemble.py", *(sys.argv[1:] if argv is None else argv)])
    if args.views and (len(args.checkpoint) > 1 or args.method != "mean"):
        got = f"{len(args.checkpoint)} and --method {args.method}"
        raise UserError(f"expected one --checkpoint and no --method with --views, got {got}")
    if len(args.checkpoint) < 2 and not args.views:
        raise UserError(f"expected two or more --checkpoint, got {len(args.checkpoint)}")
    paths = [check_checkpoint_file(path, needs_weights=True) for path in args.checkpoint]
    data = open_training_data(args.data)
    folder = check_output_dir(args.output_dir)
    if any(path.resolve() == (folder / "best.pt").resolve() for path in paths):
        raise UserError(
            f"expected --output-dir to be no member's folder, got {folder}; its checkpoint would be replaced"
        )

    from utils.checkpoints.file import save_checkpoint
    from utils.evaluation.finalize import finalize
    from utils.runtime import pick_device, set_threads
    from utils.scoring.scorer import Settings

    device = pick_device(args.device)
    set_threads(args.threads)
    join = show_views if args.views else soup if args.method == "soup" else fit_ensemble
    save_checkpoint(folder / "best.pt", join(args, paths, data, device))
    rows, unreadable = finalize(folder / "best.pt", data, Settings(args.batch_size), device)
    return {"checkpoint": str(folder / "best.pt"), "rows": rows, "exit_code": EXIT_PARTIAL if unreadable else EXIT_DONE}


def fit_ensemble(args: argparse.Namespace, paths: list[Path], data: TrainingData, device) -> dict:
    """Build the ensemble and fit its weights on the validation images."""
    import torch

    from models.registry import create_model
    from utils.checkpoints.file import load_detector

    loaded = [load_detector(path, device) for path in paths]
    members = [
        {key: checkpoint[key] for key in ("model", "model_args", "geometry", "calibration")} for _, checkpoint in loaded
    ]
    detector = cast("Ensemble", create_model("ensemble", members=members))
    for member, (trained, _) in zip(detector.members, loaded, strict=True):
        member.load_state_dict(trained.state_dict())
    detector.to(device).eval()
    if args.method != "mean":
        logits, labels = member_logits(detector, data, args.batch_size)
        weights, bias = fit_weights(logits, labels, args.method)
        detector.weights.copy_(torch.tensor(weights))
        detector.bias.fill_(bias)
    return describe(args, paths, detector, "ensemble", {"members": members}, data)


def member_logits(detector, data: TrainingData, batch_size: int):
    """Calibrated logits (N, M) of the members on all readable validation images, and their labels (N,)."""
    import numpy as np
    import torch

    from datasets.loading import ImageDataset, make_loader
    from datasets.transforms import EvalTransform

    logits, labels = [], []
    with torch.inference_mode():
        for listing in data.valid:
            for batch in make_loader(ImageDataset(listing.records, EvalTransform(detector.geometry)), batch_size):
                if len(batch.images):
                    logits.append(detector.member_logits(batch.images.to(detector.weights.device)).cpu().numpy())
                    labels.append(batch.labels.numpy())
    return np.concatenate(logits), np.concatenate(labels)


def fit_weights(logits, labels, method: str) -> tuple[list[float], float]:
    """Weights (M,) and bias of the members' logits (N, M): by validation AUC, or by logistic regression."""
    from sklearn.linear_model import LogisticRegression

    from models.operating_point import sigmoid
    from utils.metrics.binary import auc

    if method == "stacked":
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(logits, labels)
        return fitted.coef_[0].tolist(), float(fitted.intercept_[0])
    # A hundredth at least: members that are all at chance still make an ensemble.
    merits = [max(0.01, (auc(labels, sigmoid(column)) or 0.5) - 0.5) for column in logits.T]
    return [merit / sum(merits) for merit in merits], 0.0


def soup(args: argparse.Namespace, paths: list[Path], data: TrainingData, device) -> dict:
    """Average the weights of checkpoints of one architecture."""
    import torch

    from utils.checkpoints.file import load_detector

    loaded = [load_detector(path, device) for path in paths]
    kinds = {(checkpoint["model"], str(checkpoint["model_args"])) for _, checkpoint in loaded}
    if len(kinds) > 1:
        names = ", ".join(sorted(f"{model} {arguments}" for model, arguments in kinds))
        raise UserError(f"expected checkpoints of one architecture for a soup, got {names}; use --method mean")
    detector, checkpoint = loaded[0]
    if not detector.has_input_gradient:
        raise UserError(f"expected networks for a soup, got {checkpoint['model']}, whose weights cannot be averaged")
    states = [member.state_dict() for member, _ in loaded]
    average = {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        for key, value in states[0].items()
    }
    detector.load_state_dict(average)
    return describe(args, paths, detector, checkpoint["model"], checkpoint["model_args"], data)


def show_views(args: argparse.Namespace, paths: list[Path], data: TrainingData, device) -> dict:
    """Put test-time augmentation around a detector."""
    from models.registry import create_model
    from utils.checkpoints.file import load_detector

    trained, checkpoint = load_detector(paths[0], device)
    member = {key: checkpoint[key] for key in ("model", "model_args", "geometry")}
    model_args = {"member": member, "views": list(dict.fromkeys(args.views))}  # named twice, a view still counts once
    detector = cast("Views", create_model("views", **model_args))
    detector.member.load_state_dict(trained.state_dict())
    return describe(args, paths, detector, "views", model_args, data)


def describe(
    args: argparse.Namespace, paths: list[Path], detector, model: str, model_args: dict, data: TrainingData
) -> dict:
    """The checkpoint of the result."""
    from utils.runtime import git_commit, versions

    return {
        "model": model,
        "model_args": model_args,
        "state_dict": detector.state_dict(),
        "geometry": detector.geometry.to_dict(),
        "thresholds": None,
        "calibration": None,
        "metrics": {},
        "train_args": {
            "augmentation": strongest_augmentation(paths),
            "command": args.command,
            "method": "views" if args.views else args.method,
            "checkpoint": [str(path) for path in args.checkpoint],
        },
        "data": data.describe(),
        "seed": 0,
        "epoch": 0,
        "git_commit": git_commit(),
        "versions": versions(),
    }


def strongest_augmentation(paths: list[Path]) -> str | None:
    """The augmentation that degrades images most among the members' own: a tier is marked if any member knows it."""
    from datasets.transforms import AUGMENTATIONS
    from utils.checkpoints.file import load_checkpoint

    own = [(load_checkpoint(path).get("train_args") or {}).get("augmentation") for path in paths]
    return next((name for name in reversed(AUGMENTATIONS) if name in own), None)


if __name__ == "__main__":
    run_script(main)
