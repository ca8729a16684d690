"""Fit the calibration and the thresholds of a checkpoint again, on validation images of the source it will be used on.

  python calibrate.py --checkpoint checkpoints/cnn-140k --data data/wild --output-dir checkpoints/cnn-140k-wild
  python calibrate.py --checkpoint checkpoints/cnn-140k --data data/140k --tiers clean web --output-dir checkpoints/web

The weights stay the same. Only the mappings from logit to p_fake and from p_fake to verdict are fitted, on the
validation split of --data (or a tenth of its training images if it has none), never on a test split. This helps a
detector with a high AUC but low accuracy, whose threshold was fitted on another source. With --tiers, the validation
images are first degraded as each tier delivers them (datasets/perturbations.py), for a detector that will see shared
pictures. The detector is not trained on --data, which stays an unseen source for evaluate.py. The output is a new
checkpoint; the last lines on stdout are

  test wild n_real=300 n_fake=300 auc=0.998 [0.997,1.000] acc=0.980 [0.967,0.990] ... threshold=0.573
  checkpoint checkpoints/cnn-140k-wild/best.pt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datasets.perturbations import pick_tiers
from datasets.splits import open_training_data
from utils.args import (
    add_device_group,
    check_checkpoint_file,
    check_output_dir,
    command_line,
    exit_code,
    int_in,
    make_parser,
    run_script,
)
from utils.errors import UserError


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of calibrate.py."""
    parser = make_parser(__doc__, "calibrate.py")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="its file or run folder")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="SPEC", help="data sets with validation images to fit on"
    )
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="run folder of the new checkpoint")
    parser.add_argument("--tiers", nargs="+", default=["clean"], metavar="TIER", help="clean web hard (default: clean)")
    parser.add_argument("--calibration", choices=("temperature", "isotonic", "none"), default="temperature")
    parser.add_argument("--batch-size", type=int_in(1), default=32)
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Calibrate; returns ``{"checkpoint": path, "rows": test rows, "exit_code": 0, or 1 with unreadable images}``."""
    args = get_args_parser().parse_args(argv)
    path = check_checkpoint_file(args.checkpoint, needs_weights=True)
    tiers = pick_tiers(args.tiers)
    data = open_training_data(args.data)
    target = check_output_dir(args.output_dir) / "best.pt"
    if target.exists():
        raise UserError(f"expected no checkpoint in {args.output_dir}, found {target}; choose another --output-dir")

    from utils.checkpoints.file import load_checkpoint, save_checkpoint
    from utils.evaluation.finalize import finalize
    from utils.runtime import set_up
    from utils.scoring.scorer import Settings

    machine = set_up(args.device, args.precision, args.workers, args.threads)
    checkpoint = load_checkpoint(path)
    calibrated_on = [entry for entry in data.describe() if entry["split"] != "train"]
    checkpoint["data"] = [entry for entry in checkpoint.get("data") or [] if entry["split"] == "train"]
    checkpoint["train_args"] = {
        **checkpoint["train_args"],
        "calibrated_by": command_line("calibrate.py", argv),
        "calibrated_on": calibrated_on,
    }
    checkpoint.pop("format_version")  # save_checkpoint writes its own
    save_checkpoint(target, checkpoint)
    settings = Settings(args.batch_size, machine.workers, machine.dtype)
    rows, unreadable = finalize(target, data, settings, machine.device, args.calibration, tiers)
    return {"checkpoint": str(target), "rows": rows, "exit_code": exit_code(len(unreadable))}


if __name__ == "__main__":
    run_script(main)
