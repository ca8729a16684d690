"""Score data sets with checkpoints, and make tables and figures of the scores.

  python evaluate.py --checkpoint checkpoints/cnn-demo/best.pt --data demo
  python evaluate.py --checkpoint a/best.pt b/best.pt --data data/140k data/openforensics --output-dir results/ab
  python evaluate.py --from-scores results/ab/scores/*.csv --output-dir results/again

The first form writes scores/<checkpoint>__<data>__<split>.csv (one row per image) with a JSON file of the same name
(threshold, unreadable images, data fingerprint). Everything else is made of those files alone, so --from-scores gives
the same tables and figures with no model and no images: metrics.json; metrics and generators as .csv, .md and .tex;
ROC, precision-recall, confusion and score figures as .pdf and .png. The table is printed:

  | Checkpoint | Data      | Split | n   | AUC                  | Acc                  | ...
  | cnn-demo   | demo      | test  | 480 | 0.984 [0.975, 0.992] | 0.938 [0.917, 0.958] | ...

Intervals are 95 % percentile bootstrap. The threshold is the one that the checkpoint fitted on validation.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets.spec import Listing, open_records, parse_spec
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


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of evaluate.py."""
    parser = make_parser(__doc__, "evaluate.py")
    what = parser.add_argument_group("what to evaluate")
    what.add_argument("--checkpoint", nargs="+", default=[], metavar="PT", help="checkpoints, or run folders")
    what.add_argument("--data", nargs="+", default=[], metavar="SPEC", help="data sets; their test split unless told")
    what.add_argument("--from-scores", nargs="+", default=[], metavar="CSV", help="scores files instead of both")
    how = parser.add_argument_group("how")
    how.add_argument("--output-dir", metavar="DIR", default="results/evaluation", help="default: results/evaluation")
    how.add_argument("--batch-size", type=int_in(1), default=32)
    how.add_argument("--n-boot", type=int_in(0, 1_000_000), default=1000, help="bootstrap resamples (default: 1000)")
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Evaluate; returns ``{"rows": metrics rows, "scores": score files, "exit_code": 0 or 1}``."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if bool(args.from_scores) == bool(args.checkpoint) or bool(args.checkpoint) != bool(args.data):
        parser.error("expected either --checkpoint PT... with --data SPEC..., or --from-scores CSV...")
    args.command = shlex.join(["python", "evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    folder = check_output_dir(args.output_dir)
    if args.from_scores:
        files = [Path(path) for path in args.from_scores]
    else:
        checkpoints = [check_checkpoint_file(path) for path in args.checkpoint]
        listings = with_distinct_names(args.data, [open_labelled(text) for text in args.data])
        files = score_all(args, checkpoints, listings, folder)

    from utils.score_report import read_evaluations, write_report

    rows, unreadable = write_report(read_evaluations(files), folder, args.n_boot)
    if unreadable:
        print(f"{unreadable} unreadable images have no score; see the JSON files beside the scores", file=sys.stderr)
    print((folder / "metrics.md").read_text(encoding="utf-8"), end="")
    exit_code = EXIT_PARTIAL if unreadable else EXIT_DONE
    return {"rows": rows, "scores": [str(file) for file in files], "exit_code": exit_code}


def open_labelled(text: str) -> Listing:
    """Open a spec for evaluation; unlike predict.py it needs a label for every image."""
    listing = open_records(parse_spec(text))
    missing = sum(record.label is None for record in listing.records)
    if missing:
        raise UserError(f"expected a label for every image of {text!r}, got {missing} without; predict.py needs none")
    return listing


def with_distinct_names(specs: Sequence[str], listings: list[Listing]) -> list[Listing]:
    """Number data sets that share name and split, as a/faces and b/faces do, so that each keeps its own scores."""
    from utils.score_report import unique_names

    if len({(listing.name, listing.split) for listing in listings}) == len(listings):
        return listings
    names = unique_names([listing.name for listing in listings])
    for name, text in zip(names, specs, strict=True):
        print(f"{name} is {text}", file=sys.stderr)
    return [replace(listing, name=name) for listing, name in zip(listings, names, strict=True)]


def score_all(args: argparse.Namespace, checkpoints: list[Path], listings: list[Listing], folder: Path) -> list[Path]:
    """Score every listing with every checkpoint; returns the scores files."""
    from utils.checkpoint import load_detector
    from utils.reports import checkpoint_names, evaluate_listing
    from utils.runtime import hardware, pick_device, pick_precision, pick_workers, set_threads
    from utils.scores import write_scores, write_sidecar

    device = pick_device(args.device)
    dtype = pick_precision(args.precision, device, training=False)
    set_threads(args.threads)
    files = []
    for path, name in zip(checkpoints, checkpoint_names(checkpoints), strict=True):
        detector, checkpoint = load_detector(path, device)
        trained_on = {entry["fingerprint"] for entry in checkpoint.get("data", []) if entry["split"] == "train"}
        for listing in listings:
            if listing.fingerprint in trained_on:
                print(f"warning: {name} was trained on these very images of {listing.name}", file=sys.stderr)
            result = evaluate_listing(
                detector, checkpoint, listing, name=name, batch_size=args.batch_size, n_boot=0,
                workers=pick_workers(args.workers, device), dtype=dtype,
            )  # fmt: skip
            for item in result.unreadable:
                print(f"unreadable: {item['path']}: {item['reason']}", file=sys.stderr)
            if not len(result.table):
                raise UserError(f"expected images in {listing.name}, but none of {len(listing.records)} could be read")
            file = folder / "scores" / f"{name}__{listing.name}__{listing.split}.csv"
            write_scores(file, result.table)
            write_sidecar(
                file, checkpoint=name, model=checkpoint["model"], threshold=result.row["threshold"],
                thresholds=checkpoint["thresholds"], dataset=listing.name, split=listing.split,
                unreadable=result.unreadable, n_images=len(listing.records), data_fingerprint=listing.fingerprint,
                command=args.command, hardware=hardware(), **training_facts(checkpoint),
            )  # fmt: skip
            files.append(file)
    return files


def training_facts(checkpoint: dict) -> dict:
    """Where a checkpoint came from, for whoever reads its scores later."""
    return {
        "train_command": checkpoint.get("train_args", {}).get("command"),
        "trained_on": sorted({entry["dataset"] for entry in checkpoint.get("data", [])}),
        **{key: checkpoint.get(key) for key in ("epoch", "seed", "git_commit", "versions")},
    }


if __name__ == "__main__":
    run_script(main)
