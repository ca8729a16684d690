"""Combine checkpoints into one: an ensemble of detectors, a soup of weights, or several views of each image.

  python ensemble.py --checkpoint checkpoints/a checkpoints/b --data data/140k --output-dir checkpoints/both
  python ensemble.py --checkpoint checkpoints/seed0 checkpoints/seed1 --data data/140k --method soup \\
      --output-dir checkpoints/soup
  python ensemble.py --checkpoint checkpoints/a --views flip --data data/140k --output-dir checkpoints/a-flip

Methods: `mean` of the members' calibrated logits; `weighted` by how far the validation AUC of each lies above chance;
`stacked`, a logistic regression on the members' validation logits, with equal weight for each source if some have one
class only; `soup`, one network with the mean of the members' weights (Wortsman et al., ICML 2022, arXiv 2203.05482).
--views averages the logits of one detector over the image and its mirror image (flip), four corner crops or a slight
blur (test-time augmentation).

The result is an ordinary checkpoint. Calibration and thresholds are fitted on the validation images of --data; its
training data are those of the members. The last lines on stdout are as in train.py:

  test faces140k n_real=101 n_fake=125 auc=0.988 [0.975,0.997] acc=0.947 [0.916,0.973] threshold=0.480
  checkpoint checkpoints/both/best.pt

With --method stacked --scores DIR DIR, calibration and thresholds are fitted on sources left out of training instead,
and the weights on these and on validation images of the other sources: one folder for each member, with the scores that
studies.leave_source_out wrote for its recipe. No image is scored; the scores of the ensemble go into scores/ of the run
folder. Pass members as they were trained: their calibration relates their logits to those of the scores.

--specialists names members that know some kinds of fakes only, such as a head trained on composites. A low logit of
theirs says nothing about other kinds, so they only count above their threshold fpr01, which one in a thousand of their
validation reals exceeds. They see the frame of the other members. With --scores, they score the images of the scores,
so --data must name their data sets; they must not have been trained on the sources left out:

  python ensemble.py --checkpoint checkpoints/a checkpoints/b --specialists checkpoints/composites \\
      --method stacked --scores results/a results/b --data data/140k data/sdxl --output-dir checkpoints/three
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datasets.listing.splits import open_training_data
from datasets.transforms import AUGMENTATIONS
from utils.args import (
    EXIT_DONE,
    add_device_group,
    add_face_detector,
    check_output_dir,
    command_line,
    exit_code,
    int_in,
    make_parser,
    run_script,
)
from utils.checkpoint_files import check_checkpoint_file
from utils.errors import UserError

if TYPE_CHECKING:
    from models.detector import Detector
    from models.ensemble import Ensemble

METHODS = ("mean", "weighted", "stacked", "soup")
FITTED = ("weighted", "stacked")  # on validation logits
VIEWS = ("flip", "crops", "blur")  # as in models/views.py, which imports torch


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of ensemble.py."""
    parser = make_parser(__doc__, "ensemble.py")
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="PT", help="two or more members, or one with --views"
    )
    parser.add_argument("--data", nargs="+", metavar="SPEC", help="valid and test splits (default: demo)")
    parser.add_argument(
        "--scores", nargs="+", metavar="DIR", help="scores of left-out sources, one folder per member (stacked)"
    )
    parser.add_argument(
        "--specialists",
        nargs="+",
        default=[],
        metavar="PT",
        help="members that know some kinds of fakes only (stacked)",
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
        got = f"{len(args.checkpoint)}" + ("" if args.method == "mean" else f" and --method {args.method}")
        raise UserError(f"expected one --checkpoint and no --method with --views, got {got}")
    if len(args.checkpoint) + len(args.specialists) < 2 and not args.views:
        raise UserError(f"expected two or more --checkpoint, got {len(args.checkpoint)}")
    if args.specialists and args.method != "stacked":
        raise UserError(f"expected --method stacked with --specialists, got --method {args.method}")
    if args.scores:
        members, has_specialists = len(args.checkpoint), bool(args.specialists)
        check_scores(args.scores, args.method, members, has_specialists, args.data, args.face_detector)
    paths = [check_checkpoint_file(path, needs_weights=True) for path in (*args.checkpoint, *args.specialists)]
    needs_images = args.specialists or not args.scores
    data = open_training_data(args.data or ["demo"], needs_train=False) if needs_images else None
    target = check_output_dir(args.output_dir) / "best.pt"
    if any(path.resolve() == target.resolve() for path in paths):
        raise UserError(f"expected --output-dir other than the folder of a member, got {args.output_dir}")
    if target.exists():
        raise UserError(f"expected no checkpoint in {args.output_dir}, found {target}; choose another --output-dir")

    from datasets.faces.boxes import with_faces
    from datasets.faces.finder import check_face_detector, open_finder
    from utils.checkpoints.file import describe_checkpoint, load_detector, save_checkpoint
    from utils.evaluation.finalize import finalize
    from utils.evaluation.left_out import check_calibrated_on_training_sources
    from utils.evaluation.member_weights import add_specialists, fit_on_images, fit_on_left_out, of_scores, read_members
    from utils.runtime import set_up
    from utils.scoring.scorer import Settings

    check_face_detector(args.face_detector)
    machine = set_up(args.device, args.precision, args.workers, args.threads)
    device = machine.device
    parts = read_members(args.scores) if args.scores else []
    detectors, checkpoints = zip(*(load_detector(path, device) for path in paths), strict=True)
    generalists = len(args.checkpoint)
    if args.scores:
        for path, checkpoint in zip(args.checkpoint, checkpoints[:generalists], strict=True):
            check_calibrated_on_training_sources(path, checkpoint)
    needs_face = bool(data) and any(detector.geometry.needs_face for detector in detectors)
    finder = open_finder(args.face_detector, needs_face)
    if data and not parts:
        data = data.map(lambda listing: with_faces(listing, finder))
    if args.views:
        result = with_views(detectors[0], args.views)
    elif args.method == "soup":
        result = soup(detectors)
    else:
        floors = [floor_of(path, of) for path, of in zip(args.specialists, detectors[generalists:], strict=True)]
        result = combine(detectors, [*[None] * generalists, *floors])
    scoring = Settings(args.batch_size, machine.workers, machine.dtype)
    score_valid = None
    if data and parts:
        trained_on = {entry["dataset"] for entry in training_data(checkpoints[generalists:])}
        listings = of_scores([*data.train, *data.valid], parts)
        listings = [with_faces(listing, finder) for listing in listings]
        add_specialists(parts, cast("Ensemble", result), trained_on, listings, scoring, device)
    elif data and args.method in FITTED:
        score_valid = fit_on_images(cast("Ensemble", result), args.method, data.valid, scoring, device)
    settings = {
        "augmentation": strongest_augmentation(checkpoints),
        "command": command_line("ensemble.py", argv),
        "method": "views" if args.views else args.method,
        "checkpoint": [*args.checkpoint, *args.specialists],
    }
    description = describe_checkpoint(result, settings, training_data(checkpoints))
    if args.scores or not data:
        rows = fit_on_left_out(cast("Ensemble", result), parts, target, description)
        return {"checkpoint": str(target), "rows": rows, "exit_code": EXIT_DONE}
    save_checkpoint(target, {**description, "state_dict": result.state_dict()})
    rows, unreadable = finalize(target, data, scoring, device, score_valid=score_valid)
    return {"checkpoint": str(target), "rows": rows, "exit_code": exit_code(len(unreadable))}


def check_scores(
    folders: Sequence[str],
    method: str,
    members: int,
    has_specialists: bool,
    data: Sequence[str] | None,
    face_detector: str | None,
) -> None:
    """Raise UserError unless --scores has a folder of scores for each member and fits the other flags."""
    wants_images = bool(data or face_detector)
    if method != "stacked" or (wants_images and not has_specialists):
        got = f"--method {method}" + (" and one of these" if wants_images else "")
        raise UserError(f"expected --method stacked and no --data or --face-detector with --scores, got {got}")
    if has_specialists and not data:
        raise UserError("expected --data with the data sets of the scores, for the --specialists to score; got none")
    if len(folders) != members:
        raise UserError(f"expected --scores with one folder for each of {members} members, got {len(folders)}")
    for folder in folders:
        if not any(Path(folder).glob("*.csv.gz")):
            raise UserError(
                f"expected --scores with folders of *.csv.gz, got {folder}; pass those of studies.leave_source_out"
            )


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


def floor_of(path: str, specialist: Detector) -> float:
    """Return the calibrated logit above which a specialist counts."""
    import numpy as np

    from utils.metrics.ranked import logit

    threshold = specialist.operating_point.thresholds.get("fpr01")
    if threshold is None:
        raise UserError(f"expected a specialist with thresholds, got {path} without; run calibrate.py first")
    return float(logit(np.array(threshold)))


def combine(detectors: Sequence[Detector], floors: Sequence[float | None]) -> Ensemble:
    """Build the ensemble of detectors, with equal weights; those with a floor are specialists."""
    from models.registry import create_model

    descriptions = []
    for detector, floor in zip(detectors, floors, strict=True):
        description = {**describe_member(detector), "calibration": detector.operating_point.calibration}
        descriptions.append(description if floor is None else {**description, "floor": floor})
    ensemble = cast("Ensemble", create_model("ensemble", members=descriptions).to(detectors[0].mean.device).eval())
    for member, detector in zip(ensemble.members, detectors, strict=True):
        cast("Detector", member).take_weights(detector)
    ensemble.find_stem()
    frame = ensemble.geometry
    seen = f"{frame.margin:g} times the face" if frame.needs_face else f"the central {frame.size} px"
    whole = ("crop", "resize") if frame.needs_face else ("resize",) if frame.mode == "crop" else ()
    if cut := [detector.name for detector in detectors if detector.geometry.mode in whole]:
        print(f"note: {', '.join(cut)} would see more of a picture alone; here all members see {seen}", file=sys.stderr)
    return ensemble


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
