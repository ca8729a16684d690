"""Few-shot adaptation: how many images of a new source does a detector need to work on it?

  python -m studies.few_shot --checkpoint checkpoints/cnn-140k --data data/wild --shots 10 50 200 --seeds 3
  python -m studies.few_shot --checkpoint checkpoints/cnn-140k --data data/wild --keep data/140k --train --lr 2e-4

For each number of shots and each seed, the study draws that many training images of the new source, half of them real
where the source has enough. A fifth of them (at least one of each class) is used for validation, the others to
fine-tune the detector, which is then tested on the whole test split of the new source and of the --keep sources; the
latter shows what it forgets. Flags after --train are passed to train.py. Runs are reused while checkpoint, images and
code are unchanged. Writes adaptation.csv, .md, .tex, .json, .pdf and .png, and prints the points:

  shots 50: wild AUC 0.871 [0.852, 0.880] over 3 seeds

A --keep source of one class has its accuracy in place of the AUC.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.listing.spec import Listing, Record, open_records, parse_spec
from datasets.listing.splits import check_two_classes
from utils.args import check_output_dir, check_passed_on, command_line, exit_code, int_in, make_parser, run_script
from utils.checkpoint_files import check_checkpoint_file
from utils.errors import UserError
from utils.figures import legend_below, line_style, new_figure, save_figure, styled
from utils.files import atomic_write_text, write_json
from utils.tables import columns, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VALID_SHARE = 0.2
RESERVED = ("--model", "--data", "--output-dir", "--weights", "--seed", "--resume", "--overwrite", "--model-args")
COLUMNS = columns(shots="Shots", dataset="Test data", n_real="Real", n_fake="Fake", seeds="Seeds", auc="AUC", acc="Acc")


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of few_shot.py."""
    parser = make_parser(__doc__, "python -m studies.few_shot")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="the detector to adapt")
    parser.add_argument("--data", required=True, metavar="SPEC", help="the new source, with train and test splits")
    parser.add_argument("--keep", nargs="+", default=[], metavar="SPEC", help="sources to test for forgetting")
    parser.add_argument("--shots", type=int_in(4), nargs="+", default=[10, 50, 200], metavar="N", help="10 50 200")
    parser.add_argument("--seeds", type=int_in(1, 100), default=3, help="draws and runs per number (default: 3)")
    parser.add_argument("--epochs", type=int_in(1), default=8, help="passes over the drawn images (default: 8)")
    parser.add_argument("--runs-dir", default="runs/few_shot", metavar="DIR", help="default: runs/few_shot")
    parser.add_argument("--output-dir", default="results/few_shot", metavar="DIR", help="default: results/few_shot")
    parser.add_argument(
        "--train", nargs=argparse.REMAINDER, default=[], metavar="FLAG", help="flags for train.py; must come last"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Draw the curve; returns ``{"rows": its points, "exit_code": 0, or 1 with unreadable images}``."""
    import train

    args = get_args_parser().parse_args(argv)
    checkpoint = check_checkpoint_file(args.checkpoint, needs_weights=True)
    check_passed_on(args.train, train.get_args_parser(), RESERVED)
    source = open_source(args.data, max(args.shots))
    folder, runs = check_output_dir(args.output_dir), check_output_dir(args.runs_dir)

    from studies.runs import digests, evaluate_once, train_once
    from utils.checkpoints.file import load_checkpoint
    from utils.runtime import run_facts

    specs = [args.data, *args.keep]
    inputs = digests([checkpoint], [source])
    flags = [*finetune_flags(checkpoint, load_checkpoint(checkpoint)), "--epochs", str(args.epochs), *args.train]
    results = {(0, 0): evaluate_once(checkpoint, specs, runs / "shots0")}
    for shots in sorted(set(args.shots)):
        for seed in range(args.seeds):
            run = runs / f"shots{shots}-seed{seed}"
            write_list(run / "images.csv", draw(source, shots, seed))
            train_once(run, ["--data", f"csv:{run / 'images.csv'}", "--seed", str(seed), *flags], inputs)
            results[shots, seed] = evaluate_once(run / "best.pt", specs, run / "evaluation")
    rows = summarise(results)
    write_table(rows, COLUMNS, folder / "adaptation", "Few-shot adaptation; median and range over the seeds.")
    save_figure(adaptation_figure(rows), folder / "adaptation")
    each = [{"shots": shots, "seed": seed, **row} for (shots, seed), line in results.items() for row in line]
    facts = run_facts(command_line("-m studies.few_shot", argv))
    write_json(folder / "adaptation.json", {**facts, "rows": rows, "runs": each})
    for row in rows:
        key = "auc" if row["auc"] is not None else "acc"  # of one class
        low, high = row[f"{key}_ci"]
        value = f"{key.upper()} {row[key]:.3f} [{low:.3f}, {high:.3f}] over {row['seeds']} seeds"
        print(f"shots {row['shots']}: {row['dataset']} {value}")
    partial = any(row["unreadable"] for line in results.values() for row in line)
    return {"rows": rows, "exit_code": exit_code(partial)}


def open_source(spec: str, most: int) -> Listing:
    """Open the training images of the new source.

    Raises:
        UserError: it lacks a class, a train or a test split, or has fewer than ``most`` training images.
    """
    source = open_records(parse_spec(spec), "train")
    check_two_classes(source.records, "train")
    if source.split != "train" or "test" not in source.splits:
        raise UserError(f"expected a source with train and test splits, found {', '.join(source.splits) or 'none'}")
    if most > len(source.records):
        raise UserError(f"expected --shots up to the {len(source.records)} training images, got {most}")
    return source


def draw(source: Listing, shots: int, seed: int) -> list[tuple[Record, str]]:
    """Draw records, balanced over the classes where possible; returns pairs of record and split (train or valid)."""
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


def finetune_flags(file: Path, checkpoint: dict[str, Any]) -> list[str]:
    """Return the flags with which train.py fine-tunes a checkpoint; flags given later override the learning rate etc.

    Raises:
        UserError: train.py cannot continue from this kind of model.
    """
    from models.registry import create_model

    name, model_args, geometry = checkpoint["model"], checkpoint["model_args"], checkpoint["geometry"]
    if any(isinstance(value, dict | list) for value in model_args.values()) or create_model(name).is_classical:
        raise UserError(f"expected a neural detector that train.py can fine-tune, got {name}")
    flags = ["--model", name, "--weights", str(file), "--geometry", geometry["mode"]]
    flags += ["--image-size", str(geometry["size"])]
    flags += ["--resize-to", str(geometry["resize_to"])] if geometry["resize_to"] else []
    flags += ["--margin", str(geometry["margin"])] if "margin" in geometry else []
    flags += ["--model-args", *(f"{key}={value}" for key, value in model_args.items())] if model_args else []
    # A small learning rate, so that the detector keeps what it has learnt on other sources.
    return [*flags, *"--lr 2e-4 --batch-size 8 --ema-decay 0.9 --calibration none".split()]


def write_list(file: Path, drawn: Sequence[tuple[Record, str]]) -> None:
    """Write a CSV list with absolute paths, class names and splits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "generator", "split"])
    for record, split in drawn:
        label = ("real", "fake")[record.label or 0]
        writer.writerow([str(Path(record.path).resolve()), label, record.generator, split])
    atomic_write_text(file, text.getvalue())


def summarise(results: dict[tuple[int, int], list[dict]]) -> list[dict]:
    """Compute median and range over the seeds, one row per number of shots and data set."""
    rows = []
    for shots in sorted({shots for shots, _ in results}):
        runs = [line for (number, _), line in sorted(results.items()) if number == shots]
        for same in zip(*runs, strict=True):
            row = {"shots": shots, "seeds": len(same), **{key: same[0][key] for key in ("dataset", "n_real", "n_fake")}}
            for key in ("auc", "acc"):
                values = [cell[key] for cell in same if cell[key] is not None]
                row[key] = statistics.median(values) if values else None
                row[f"{key}_ci"] = [min(values), max(values)] if values else None
            rows.append(row)
    return rows


@styled
def adaptation_figure(rows: Sequence[dict]) -> Figure:
    """Draw the median AUC over the shots, with its range as a band, one curve per data set.

    The x axis shows steps, not a scale: 0, 10, 50 and 200 are equally far apart.
    """
    figure, (axes,) = new_figure(5.2, 3.6)
    rows = [row for row in rows if row["auc"] is not None]
    steps = sorted({row["shots"] for row in rows})
    for index, name in enumerate(dict.fromkeys(row["dataset"] for row in rows)):
        points = [row for row in rows if row["dataset"] == name]
        places, style = [steps.index(row["shots"]) for row in points], line_style(index)
        axes.plot(places, [row["auc"] for row in points], label=name, **style)
        low, high = zip(*(row["auc_ci"] for row in points), strict=True)
        axes.fill_between(places, low, high, alpha=0.15, color=style["color"], linewidth=0)
    axes.set_xticks(range(len(steps)), [str(step) for step in steps])
    axes.set(xlabel="Images of the new source", ylabel="Test AUC")
    legend_below(figure, axes)
    return figure


if __name__ == "__main__":
    run_script(main)
