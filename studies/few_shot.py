"""Few-shot adaptation: how many images of a new source does a detector need before it can be trusted there?

  python -m studies.few_shot --checkpoint checkpoints/cnn-140k --data data/wild --shots 10 50 200 --seeds 3
  python -m studies.few_shot --checkpoint checkpoints/cnn-140k --data data/wild --keep data/140k --train --lr 2e-4

For each number of shots and each seed, that many training images of the new source are drawn, half of them real where
it has enough; a fifth of them (one of each class at least) is set aside for validation, and the rest goes on training
the detector. It is tested on the whole test split of the new source, and of the sources of --keep, to see what it
forgets. What follows --train goes to train.py. Finished runs are skipped. Writes adaptation.csv, .md, .tex, .json, .pdf
and .png, and prints the points:

  shots 50: wild AUC 0.871 [0.852, 0.880] over 3 seeds
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.spec import Listing, Record, open_records, parse_spec
from datasets.splits import check_two_classes
from utils.args import (
    EXIT_DONE,
    EXIT_PARTIAL,
    check_checkpoint_file,
    check_output_dir,
    check_passed_on,
    int_in,
    make_parser,
    run_script,
)
from utils.errors import UserError
from utils.files import atomic_write_text, read_json, write_json

VALID_SHARE = 0.2
RESERVED = ("--model", "--data", "--output-dir", "--weights", "--seed", "--resume", "--overwrite", "--model-args")
COLUMNS = [
    ("shots", "Shots"),
    ("dataset", "Test data"),
    ("n_real", "Real"),
    ("n_fake", "Fake"),
    ("seeds", "Seeds"),
    ("auc", "AUC"),
    ("acc", "Acc"),
]


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of few_shot.py."""
    parser = make_parser(__doc__, "python -m studies.few_shot")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="the detector to adapt")
    parser.add_argument("--data", required=True, metavar="SPEC", help="the new source, with train and test splits")
    parser.add_argument("--keep", nargs="+", default=[], metavar="SPEC", help="sources to test for what is forgotten")
    parser.add_argument("--shots", type=int_in(4), nargs="+", default=[10, 50, 200], metavar="N", help="images")
    parser.add_argument("--seeds", type=int_in(1, 100), default=3, help="draws and trainings per number (default: 3)")
    parser.add_argument("--epochs", type=int_in(1), default=8, help="passes over the drawn images (default: 8)")
    parser.add_argument("--runs-dir", default="runs/few_shot", metavar="DIR", help="default: runs/few_shot")
    parser.add_argument("--output-dir", default="results/few_shot", metavar="DIR", help="default: results/few_shot")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], metavar="FLAG", help="flags of train.py; last")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Draw the curve; returns ``{"rows": its points, "exit_code": 0, or 1 if images could not be read}``."""
    import train

    args = get_args_parser().parse_args(argv)
    checkpoint = check_checkpoint_file(args.checkpoint, needs_weights=True)
    check_passed_on(args.train, train.get_args_parser(), RESERVED)
    source = open_records(parse_spec(args.data), "train")
    check_two_classes(source.records, "train")
    if source.split != "train" or "test" not in source.splits:
        raise UserError(f"expected a source with train and test splits, found {', '.join(source.splits) or 'none'}")
    too_many = [shots for shots in args.shots if shots > len(source.records)]
    if too_many:
        raise UserError(f"expected --shots up to the {len(source.records)} training images, got {too_many[0]}")
    folder, runs = check_output_dir(args.output_dir), check_output_dir(args.runs_dir)

    from utils.runtime import git_commit, hardware

    tests = [args.data, *args.keep]
    results = {(0, 0): score(checkpoint, tests, runs / "shots0")}
    for shots in sorted(set(args.shots)):
        for seed in range(args.seeds):
            run = runs / f"shots{shots}-seed{seed}"
            adapt(args, checkpoint, source, shots, seed, run)
            results[shots, seed] = score(run / "best.pt", tests, run / "evaluation")
    rows = summarise(results)
    write_curve(rows, folder)
    write_json(
        folder / "adaptation.json",
        {
            "command": shlex.join(["python", "few_shot.py", *(sys.argv[1:] if argv is None else argv)]),
            "hardware": hardware(),
            "git_commit": git_commit(),
            "rows": rows,
            "runs": [{"shots": shots, "seed": seed, **row} for (shots, seed), line in results.items() for row in line],
        },
    )
    for row in rows:
        low, high = row["auc_ci"]
        value = f"AUC {row['auc']:.3f} [{low:.3f}, {high:.3f}] over {row['seeds']} seeds"
        print(f"shots {row['shots']}: {row['dataset']} {value}")
    partial = any(row["unreadable"] for line in results.values() for row in line)
    return {"rows": rows, "exit_code": EXIT_PARTIAL if partial else EXIT_DONE}


def draw(source: Listing, shots: int, seed: int) -> list[tuple[Record, str]]:
    """Draw records for training and validation, as even over the classes as they allow; pairs of record and split."""
    import numpy as np

    rng = np.random.default_rng([seed, shots])
    queues = [[record for record in source.records if record.label == label] for label in (0, 1)]
    queues = [[queue[i] for i in rng.permutation(len(queue))] for queue in queues]
    n_real = min(len(queues[0]), max(shots // 2, shots - len(queues[1])))
    drawn = []
    for queue, n in zip(queues, (n_real, shots - n_real), strict=True):
        n_valid = max(1, round(VALID_SHARE * n))
        drawn += [(record, "valid" if i < n_valid else "train") for i, record in enumerate(queue[:n])]
    return drawn


def adapt(args: argparse.Namespace, checkpoint: Path, source: Listing, shots: int, seed: int, run: Path) -> None:
    """Go on training the detector on a few images, unless that is done."""
    import train
    from utils.checkpoints.file import load_checkpoint

    known = load_checkpoint(checkpoint)
    if any(isinstance(value, dict | list) for value in known["model_args"].values()) or is_classical(known["model"]):
        raise UserError(f"expected a neural detector that train.py can go on training, got {known['model']}")
    geometry = known["geometry"]
    plan = {"checkpoint": str(checkpoint), "data": args.data, "epochs": args.epochs, "train": args.train}
    file = run / "plan.json"
    if file.exists():
        if read_json(file) != plan:
            raise UserError(f"expected the flags of the runs in {run.parent}, got others; choose another --runs-dir")
        return
    check_output_dir(run)
    write_list(run / "images.csv", draw(source, shots, seed))
    flags = ["--model", known["model"], "--data", f"csv:{run / 'images.csv'}", "--weights", str(checkpoint)]
    flags += ["--output-dir", str(run), "--overwrite", "--seed", str(seed), "--epochs", str(args.epochs)]
    flags += ["--geometry", geometry["mode"], "--image-size", str(geometry["size"])]
    flags += ["--resize-to", str(geometry["resize_to"])] if geometry["resize_to"] else []
    # Moderate defaults, which --train may overrule: a small rate keeps what was learnt elsewhere.
    flags += ["--lr", "2e-4", "--batch-size", "8", "--ema-decay", "0.9", "--calibration", "none"]
    model_args = [f"{key}={value}" for key, value in known["model_args"].items()]
    flags += ["--model-args", *model_args] if model_args else []
    train.main([*flags, *args.train])
    write_json(file, plan)


def is_classical(model: str) -> bool:
    """Whether a model learns in one call and so cannot go on learning."""
    from models.registry import create_model

    return create_model(model).is_classical


def write_list(file: Path, drawn: Sequence[tuple[Record, str]]) -> None:
    """Write a CSV list with absolute paths, class names and splits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "generator", "split"])
    for record, split in drawn:
        label = ("real", "fake")[record.label or 0]
        writer.writerow([str(Path(record.path).resolve()), label, record.generator, split])
    atomic_write_text(file, text.getvalue())


def score(checkpoint: Path, specs: Sequence[str], folder: Path) -> list[dict]:
    """Evaluate a checkpoint on the test splits, silently; returns the metrics rows over all generators."""
    import contextlib

    import evaluate

    file = folder / "metrics.json"
    if not file.exists():
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate.main(
                ["--checkpoint", str(checkpoint), "--data", *specs, "--output-dir", str(folder), "--n-boot", "0"]
            )
    return [row for row in read_json(file) if row["generator"] == "all"]


def summarise(results: dict[tuple[int, int], list[dict]]) -> list[dict]:
    """Median and range over the seeds, a row for each number of shots and data set."""
    rows = []
    for shots in sorted({shots for shots, _ in results}):
        runs = [line for (number, _), line in sorted(results.items()) if number == shots]
        for same in zip(*runs, strict=True):
            row = {"shots": shots, "seeds": len(same), **{key: same[0][key] for key in ("dataset", "n_real", "n_fake")}}
            for key in ("auc", "acc"):
                values = [cell[key] for cell in same]
                row |= {key: statistics.median(values), f"{key}_ci": [min(values), max(values)]}
            rows.append(row)
    return rows


def write_curve(rows: Sequence[dict], folder: Path) -> None:
    """Write the table and the figure."""
    from studies.protocol_figures import adaptation_figure
    from utils.figures import save_figure
    from utils.tables import write_table

    write_table(rows, COLUMNS, folder / "adaptation", "Few-shot adaptation; median and range over the seeds.")
    curves: dict[str, list[dict]] = {}
    for row in rows:
        low, high = row["auc_ci"]
        curves.setdefault(row["dataset"], []).append(
            {"x": row["shots"], "median": row["auc"], "low": low, "high": high}
        )
    save_figure(adaptation_figure(curves, "Images of the new source", "Test AUC"), folder / "adaptation")


if __name__ == "__main__":
    run_script(main)
