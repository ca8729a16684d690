"""Combine checkpoints into one: an ensemble of detectors, a soup of weights, or several views of each image.

  python ensemble.py --checkpoint checkpoints/a checkpoints/b --data data/140k --output-dir checkpoints/both
  python ensemble.py --checkpoint checkpoints/seed0 checkpoints/seed1 --data data/140k --method soup \\
      --output-dir checkpoints/soup
  python ensemble.py --checkpoint checkpoints/a --views flip --data data/140k --output-dir checkpoints/a-flip

Methods: `mean` of the members' calibrated logits; `weighted` by how far the validation AUC of each lies above chance;
`stacked`, a logistic regression on the members' validation logits, in which sources count, not images, if some have one
class only; `soup`, one network with the mean of the members' weights (Wortsman et al., ICML 2022, arXiv 2203.05482).
--views averages the logits of one detector over the image and its mirror image (flip), four corner crops or a slight
blur (test-time augmentation).

The result is an ordinary checkpoint. Calibration and thresholds are fitted on the validation images of --data; its
training data are those of the members. The last lines on stdout are as in train.py:

  test faces140k n_real=101 n_fake=125 auc=0.988 [0.975,0.997] acc=0.947 [0.916,0.973] threshold=0.480
  checkpoint checkpoints/both/best.pt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from datasets.spec import Listing
from datasets.splits import open_training_data
from datasets.transforms import AUGMENTATIONS
from utils.args import (
    add_device_group,
    add_face_detector,
    check_checkpoint_file,
    check_output_dir,
    command_line,
    exit_code,
    int_in,
    make_parser,
    run_script,
)
from utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from models.detector import Detector
    from models.ensemble import Ensemble
    from utils.scoring.scorer import Scores, Settings

METHODS = ("mean", "weighted", "stacked", "soup")
FITTED = ("weighted", "stacked")  # on validation logits
VIEWS = ("flip", "crops", "blur")  # as in models/views.py, which imports torch


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of ensemble.py."""
    parser = make_parser(__doc__, "ensemble.py")
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="PT", help="two or more members, or one with --views"
    )
    parser.add_argument(
        "--data", nargs="+", default=["demo"], metavar="SPEC", help="valid and test splits (default: demo)"
    )
    parser.add_argument("--method", choices=METHODS, default="mean", help="default: mean")
    parser.add_argument("--views", nargs="+", choices=VIEWS, help="test-time augmentation of a single --checkpoint")
    parser.add_argument("--batch-size", type=int_in(1), default=32)
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="run folder of the result")
    add_face_detector(parser)
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Combine; returns ``{"checkpoint": path, "rows": test rows, "exit_code": 0 or 1}``."""
    args = get_args_parser().parse_args(argv)
    if args.views and (len(args.checkpoint) > 1 or args.method != "mean"):
        got = f"{len(args.checkpoint)} and --method {args.method}"
        raise UserError(f"expected one --checkpoint and no --method with --views, got {got}")
    if len(args.checkpoint) < 2 and not args.views:
        raise UserError(f"expected two or more --checkpoint, got {len(args.checkpoint)}")
    paths = [check_checkpoint_file(path, needs_weights=True) for path in args.checkpoint]
    data = open_training_data(args.data)
    target = check_output_dir(args.output_dir) / "best.pt"
    if any(path.resolve() == target.resolve() for path in paths):
        raise UserError(f"expected --output-dir other than the folder of a member, got {args.output_dir}")

    from datasets.face_boxes import with_faces
    from datasets.faces import check_face_detector, open_finder
    from utils.checkpoints.file import describe_checkpoint, load_detector, save_checkpoint
    from utils.evaluation.finalize import finalize
    from utils.runtime import set_up
    from utils.scoring.scorer import Settings

    check_face_detector(args.face_detector)
    machine = set_up(args.device, args.precision, args.workers, args.threads)
    device = machine.device
    detectors, checkpoints = zip(*(load_detector(path, device) for path in paths), strict=True)
    finder = open_finder(args.face_detector, any(detector.geometry.needs_face for detector in detectors))
    data = data.map(lambda listing: with_faces(listing, finder))
    if args.views:
        result = with_views(detectors[0], args.views)
    elif args.method == "soup":
        result = soup(detectors)
    else:
        result = combine(detectors)
    scoring = Settings(args.batch_size, machine.workers, machine.dtype)
    score_valid = None
    if args.method in FITTED:
        score_valid = fit_ensemble(cast("Ensemble", result), args.method, data.valid, scoring, device)
    settings = {
        "augmentation": strongest_augmentation(checkpoints),
        "command": command_line("ensemble.py", argv),
        "method": "views" if args.views else args.method,
        "checkpoint": args.checkpoint,
    }
    description = describe_checkpoint(result, settings, training_data(checkpoints))
    save_checkpoint(target, {**description, "state_dict": result.state_dict()})
    rows, unreadable = finalize(target, data, scoring, device, score_valid=score_valid)
    return {"checkpoint": str(target), "rows": rows, "exit_code": exit_code(len(unreadable))}


def describe_member(detector: Detector) -> dict[str, Any]:
    """Return the description from which ``create_model`` rebuilds a detector inside another one."""
    return {"model": detector.name, "model_args": detector.model_args, "geometry": detector.geometry.to_dict()}


def with_views(detector: Detector, views: Sequence[str]) -> Detector:
    """Return a detector that averages the logits of ``detector`` over views of each image."""
    from models.registry import create_model

    # A view that is named twice counts once.
    result = create_model("views", member=describe_member(detector), views=list(dict.fromkeys(views)))
    cast("Detector", result.get_submodule("member")).take_weights(detector)
    return result


def soup(detectors: Sequence[Detector]) -> Detector:
    """Average the weights of detectors with one architecture and one geometry, in place of those of the first."""
    import torch

    for what, values in (
        ("architecture", {f"{detector.name} {detector.model_args}" for detector in detectors}),
        ("geometry", {str(detector.geometry) for detector in detectors}),
    ):
        if len(values) > 1:
            raise UserError(
                f"expected checkpoints of one {what} for a soup, got {', '.join(sorted(values))}; use --method mean"
            )
    if not detectors[0].has_input_gradient:
        raise UserError(f"expected networks for a soup, got {detectors[0].name}, whose weights cannot be averaged")
    states = [detector.state_dict() for detector in detectors]
    average = {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        for key, value in states[0].items()
    }
    detectors[0].load_state_dict(average)
    return detectors[0]


def combine(detectors: Sequence[Detector]) -> Ensemble:
    """Build the ensemble of detectors, with equal weights."""
    from models.registry import create_model

    members = [
        {**describe_member(detector), "calibration": detector.operating_point.calibration} for detector in detectors
    ]
    ensemble = cast("Ensemble", create_model("ensemble", members=members).to(detectors[0].mean.device).eval())
    for member, detector in zip(ensemble.members, detectors, strict=True):
        cast("Detector", member).take_weights(detector)
    frame = ensemble.geometry
    seen = f"{frame.margin:g} times the face" if frame.needs_face else f"the central {frame.size} px"
    whole = ("crop", "resize") if frame.needs_face else ("resize",) if frame.mode == "crop" else ()
    if cut := [detector.name for detector in detectors if detector.geometry.mode in whole]:
        print(f"note: {', '.join(cut)} sees more of a picture alone, but only {seen} here", file=sys.stderr)
    return ensemble


def fit_ensemble(
    ensemble: Ensemble, method: str, valid: Sequence[Listing], settings: Settings, device: torch.device
) -> Callable[[Detector], list[Scores]]:
    """Fit the weights of an ensemble on the validation images, and return what scores these without another pass."""
    import numpy as np
    import torch

    from models.operating_point import OperatingPoint
    from utils.evaluation.operating_point import image_weights
    from utils.scoring.scorer import Scores, score_table
    from utils.scoring.table import ScoreTable

    found = [member_scores(ensemble, listing, settings, device) for listing in valid]
    firsts = [Scores(scores.indices, scores.logits[:, 0], scores.unreadable) for scores in found]
    rows = zip(valid, firsts, strict=True)
    table = ScoreTable.join([score_table(item.records, one, OperatingPoint(), item.name) for item, one in rows])
    logits = np.concatenate([scores.logits for scores in found])
    weights, bias = fit_weights(logits, table.label, method, image_weights(table))
    ensemble.weights.copy_(torch.tensor(weights))
    ensemble.bias.fill_(bias)
    return lambda _: [Scores(s.indices, s.logits @ np.array(weights) + bias, s.unreadable) for s in found]


def member_scores(ensemble: Ensemble, listing: Listing, settings: Settings, device: torch.device) -> Scores:
    """Return the members' calibrated logits (N, M) of the readable images of a listing."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from datasets.loading import ImageDataset, make_loader
    from datasets.transforms import EvalTransform
    from utils.runtime import autocast
    from utils.scoring.scorer import Scores

    dataset = ImageDataset(listing.records, EvalTransform(ensemble.geometry))
    indices, logits, unreadable = [], [np.empty((0, len(ensemble.members)))], []
    loader = make_loader(dataset, settings.batch_size, workers=settings.workers)
    for batch in tqdm(loader, f"{listing.name} valid", disable=None, leave=False):
        unreadable += [(item.index, item.reason) for item in batch.unreadable]
        if len(batch.images):
            indices += batch.indices.tolist()
            with torch.inference_mode(), autocast(device, settings.dtype):
                logits.append(ensemble.member_logits(batch.images.to(device)).cpu().numpy())
    return Scores(np.array(indices, np.int64), np.concatenate(logits), unreadable)


def fit_weights(
    logits: np.ndarray, labels: np.ndarray, method: str, counts: np.ndarray | None = None
) -> tuple[list[float], float]:
    """Return weights (M,) and bias for logits (N, M): by validation AUC (weighted) or logistic regression (stacked).

    Each image enters the regression as often as ``counts`` ``(N,)`` says, by default once.
    """
    from sklearn.linear_model import LogisticRegression

    from models.operating_point import sigmoid
    from utils.metrics.binary import auc

    if method == "stacked":
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(logits, labels, counts)
        return fitted.coef_[0].tolist(), float(fitted.intercept_[0])
    # At least 0.01, so that members at chance still make an ensemble.
    merits = [max(0.01, (auc(labels, sigmoid(column)) or 0.5) - 0.5) for column in logits.T]
    return [merit / sum(merits) for merit in merits], 0.0


def training_data(checkpoints: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the union of the members' training sets; their validation sets and --data are not trained on."""
    entries = [entry for checkpoint in checkpoints for entry in checkpoint.get("data") or []]
    return [entry for i, entry in enumerate(entries) if entry["split"] == "train" and entry not in entries[:i]]


def strongest_augmentation(checkpoints: Sequence[dict[str, Any]]) -> str | None:
    """Return the strongest augmentation of the members: evaluate.py marks a tier that any member has trained on."""
    used = [(checkpoint.get("train_args") or {}).get("augmentation") for checkpoint in checkpoints]
    return next((name for name in reversed(AUGMENTATIONS) if name in used), None)


if __name__ == "__main__":
    run_script(main)
