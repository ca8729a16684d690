"""Fit the calibration and the thresholds of a checkpoint again, on validation images of the source it will be used on.

  python calibrate.py --checkpoint checkpoints/cnn-140k --data data/wild --output-dir checkpoints/cnn-140k-wild
  python calibrate.py --checkpoint checkpoints/cnn-140k --data data/140k --tiers clean web --output-dir checkpoints/web
  python calibrate.py --checkpoint checkpoints/cnn --from-scores scores/*__left-out.csv.gz --output-dir checkpoints/new

The weights stay the same. Only the mappings from logit to p_fake and from p_fake to verdict are fitted, on the
validation split of --data (or a tenth of its training images if it has none), never on a test split. This helps a
detector with a high AUC but low accuracy, whose threshold was fitted on another source. With --tiers, the validation
images are first degraded as each tier delivers them (datasets/perturbations.py), for a detector that will see shared
pictures. The detector is not trained on --data, which stays an unseen source for evaluate.py. The output is a new
checkpoint; the last lines on stdout are

  test wild n_real=300 n_fake=300 auc=0.998 [0.997,1.000] acc=0.980 [0.967,0.990] ... threshold=0.573
  checkpoint checkpoints/cnn-140k-wild/best.pt

--from-scores fits on scores files instead: those of detectors of the same recipe, each on a source that was left out of
its training (studies/leave_source_out.py writes them). The verdicts then hold for sources that no detector has seen.
Files of a detector that was trained on the source are refused. Pass the checkpoint as it was trained: its calibration
relates its logits to those of the other runs. Scores that evaluate.py wrote for the checkpoint itself work as well. One
line per source has the verdicts:

  stock real n=259 called_fake=0.027 unsure=0.154
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datasets.listing.splits import open_training_data
from datasets.perturbations import CLEAN, pick_tiers
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
from utils.evaluation.left_out import (
    check_calibrated_on_training_sources,
    check_recipe,
    count_images,
    on_scale_of,
    read_left_out,
    save_fitted,
)


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of calibrate.py."""
    parser = make_parser(__doc__, "calibrate.py")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="a checkpoint or its run folder")
    parser.add_argument("--data", nargs="+", metavar="SPEC", help="data sets with validation images to fit on")
    parser.add_argument("--from-scores", nargs="+", metavar="CSV", help="fit on scores of left-out sources instead")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="run folder of the new checkpoint")
    parser.add_argument(
        "--tiers", nargs="+", metavar="TIER", help="clean web hard common (default: clean, or all in the files)"
    )
    parser.add_argument("--calibration", choices=("temperature", "isotonic", "none"), default="temperature")
    parser.add_argument("--batch-size", type=int_in(1), default=32)
    add_face_detector(parser)
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Calibrate; returns ``{"checkpoint": path, "rows": rows, "exit_code": 0, or 1 with unreadable images}``.

    The rows are those of the test splits, or with --from-scores the verdicts of each source.
    """
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if bool(args.data) == bool(args.from_scores):
        parser.error("expected either --data SPEC... or --from-scores CSV...")
    if args.from_scores and args.face_detector:
        raise UserError("expected pictures for --face-detector, got --from-scores; drop the flag, or pass --data")
    path = check_checkpoint_file(args.checkpoint, needs_weights=True)
    tiers = pick_tiers(args.tiers or [CLEAN])
    data = open_training_data(args.data, needs_train=False) if args.data else None
    left_out = read_left_out(args.from_scores, args.tiers) if args.from_scores else []
    target = check_output_dir(args.output_dir) / "best.pt"
    if target.exists():
        raise UserError(f"expected no checkpoint in {args.output_dir}, found {target}; choose another --output-dir")

    from datasets.faces.boxes import with_faces
    from datasets.faces.finder import check_face_detector, open_finder
    from datasets.transforms import Geometry
    from utils.checkpoints.file import load_checkpoint, save_checkpoint
    from utils.evaluation.finalize import finalize
    from utils.runtime import set_up
    from utils.scoring.scorer import Settings

    check_face_detector(args.face_detector)
    checkpoint = load_checkpoint(path)
    check_recipe(left_out, checkpoint)
    if any(scored.info.get("calibration") for scored in left_out):  # of other runs, not of the checkpoint itself
        check_calibrated_on_training_sources(path, checkpoint)
    unseen = on_scale_of(checkpoint.get("calibration"), left_out)
    calibrated_on = [entry for entry in data.describe() if entry["split"] != "train"] if data else count_images(unseen)
    checkpoint["data"] = [entry for entry in checkpoint.get("data") or [] if entry["split"] == "train"]
    checkpoint["train_args"] = {
        **checkpoint["train_args"],
        "calibrated_by": command_line("calibrate.py", argv),
        "calibrated_on": calibrated_on,
    }
    if not data:
        _, rows = save_fitted(target, checkpoint, unseen, args.calibration)
        return {"checkpoint": str(target), "rows": rows, "exit_code": EXIT_DONE}
    machine = set_up(args.device, args.precision, args.workers, args.threads)
    finder = open_finder(args.face_detector, Geometry(**checkpoint["geometry"]).needs_face)
    data = data.map(lambda listing: with_faces(listing, finder))
    save_checkpoint(target, checkpoint)
    settings = Settings(args.batch_size, machine.workers, machine.dtype)
    rows, unreadable = finalize(target, data, settings, machine.device, args.calibration, tiers)
    return {"checkpoint": str(target), "rows": rows, "exit_code": exit_code(len(unreadable))}


if __name__ == "__main__":
    run_script(main)
