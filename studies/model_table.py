"""Train and evaluate the list of models over one budget, and write the table that compares them.

  python -m studies.model_table --data data/140k data/openforensics --output-dir results/models
  python -m studies.model_table --data demo@n=240 --models cnn xgboost --epochs 2 --output-dir runs/table
  python -m studies.model_table --data data/140k --weights-dir imagenet --epochs 8 --image-size 0 --runs-dir runs/full

Each model is one run of train.py in --runs-dir and is skipped when it is finished, resumed when it was interrupted. A
run of other settings is refused, not mixed in.
A backbone starts from WEIGHTS_DIR/<model>.safetensors where that file exists (--weights-dir imagenet: from timm's hub),
and is marked "scratch" otherwise. Writes models.csv, .md and .tex and the bar figure models.pdf and .png, besides
what evaluate.py writes. `--list` prints the names.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.splits import open_training_data
from utils.args import (
    EXIT_DONE,
    EXIT_PARTIAL,
    add_device_group,
    add_seed,
    check_output_dir,
    float_in,
    int_in,
    make_parser,
    run_script,
)
from utils.errors import UserError
from utils.files import read_json, write_json

CLASSICAL = ("random_forest", "gradient_boosting", "xgboost", "lightgbm", "logistic_regression")


@dataclass(frozen=True)
class Entry:
    """One row of the table: its name, the model, its --model-args, and the stem of its weights file."""

    name: str
    model: str
    model_args: tuple[str, ...] = ()
    weights: str = ""


ENTRIES = [
    *(Entry(name, name) for name in CLASSICAL),
    Entry("cnn", "cnn"),
    Entry("cnn_baseline", "cnn_baseline", ("input_size={size}",)),
    Entry("npr", "npr"),
    Entry("cnn_lstm", "cnn_lstm", ("backbone=tf_efficientnet_b0",), "tf_efficientnet_b0"),
    Entry("cnn_mean", "cnn_lstm", ("backbone=tf_efficientnet_b0", "reader=mean"), "tf_efficientnet_b0"),
    Entry("tf_efficientnet_b0", "tf_efficientnet_b0", (), "tf_efficientnet_b0"),
    Entry("mobilenetv2_100", "mobilenetv2_100", ("pad_type=same",), "mobilenetv2_100"),
    Entry("mobilenetv1_100", "mobilenetv1_100", ("pad_type=same",), "mobilenetv1_100"),
    *(
        Entry(name, name, (), name)
        for name in (
            "resnet50",
            "densenet121",
            "xception",
            "inception_resnet_v2",
            "efficientnet_b0",
            "convnext_tiny",
            "vit_small_patch16_224",
        )
    ),
]

COLUMNS = [
    ("name", "Model"),
    ("parameters", "Params (M)"),
    ("gmacs", "GMACs"),
    ("image_size", "Input (px)"),
    ("start", "Start"),
    ("epochs", "Epochs"),
    ("minutes", "Training (min)"),
    ("dataset", "Test data"),
    ("auc", "AUC"),
    ("acc", "Acc"),
    ("images_per_s", "Scoring (images/s)"),
]


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of model_table.py."""
    parser = make_parser(__doc__, "python -m studies.model_table")
    parser.add_argument("--data", nargs="+", default=["demo"], metavar="SPEC", help="trained on and tested on")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="some names of --list (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names and leave")
    parser.add_argument("--epochs", type=int_in(1), default=3, help="of the neural models (default: 3)")
    parser.add_argument(
        "--image-size", type=int_in(0, 4096), default=128, help="px; 0 is each model's own (default: 128)"
    )
    parser.add_argument("--batch-size", type=int_in(2), default=16)
    parser.add_argument("--lr", type=float_in(0, 10), default=6e-4, help="peak learning rate (default: 0.0006)")
    parser.add_argument(
        "--weights-dir", metavar="DIR", help="folder of safetensors files named after models, or imagenet"
    )
    parser.add_argument("--runs-dir", default="runs/models", metavar="DIR", help="default: runs/models")
    parser.add_argument("--output-dir", default="results/models", metavar="DIR", help="default: results/models")
    add_seed(parser)
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Make the table; returns ``{"rows": table rows, "exit_code": 0, or 1 if a model or an image failed}``."""
    args = get_args_parser().parse_args(argv)
    entries = choose(args.models)
    if args.list:
        print("\n".join(entry.name for entry in entries))
        return {"rows": [], "exit_code": EXIT_DONE}
    if 0 < args.image_size < 16:
        raise UserError(f"expected --image-size 0 or in 16..4096 px, got {args.image_size}")
    open_training_data(args.data)  # a wrong spec is reported once and now, not for every model
    folder, runs = check_output_dir(args.output_dir), check_output_dir(args.runs_dir)
    done, failed = [], []
    for entry in entries:
        try:
            train_entry(args, entry, runs / entry.name)
            done.append(entry)
        except UserError as error:  # one model that cannot be built must not cost the others
            print(f"{entry.name}: {error}", file=sys.stderr)
            failed.append(entry.name)
    rows = tabulate(args, done, runs, folder) if done else []
    is_partial = failed or any(row["unreadable"] for row in rows)
    return {"rows": rows, "failed": failed, "exit_code": EXIT_PARTIAL if is_partial else EXIT_DONE}


def choose(names: Sequence[str] | None) -> list[Entry]:
    """The entries of these names, in the order of the table.

    Raises:
        UserError: a name is not in the table.
    """
    known = {entry.name: entry for entry in ENTRIES}
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise UserError(f"expected --models of {', '.join(known)}, got {', '.join(unknown)}")
    return [entry for entry in ENTRIES if names is None or entry.name in names]


def train_entry(args: argparse.Namespace, entry: Entry, run: Path) -> None:
    """Run train.py for one entry unless it is finished; go on where it was interrupted."""
    import train

    recipe = recipe_of(args, entry)
    known, finished, started = run / "recipe.json", (run / "facts.json").exists(), (run / "last.pt").exists()
    if (finished or started) and known.exists() and read_json(known) != recipe:
        raise UserError(f"expected a run of these settings in {run}, got one of others; pass another --runs-dir")
    if finished:
        return
    if not started:
        write_json(known, recipe)
    flags = [*recipe, "--output-dir", str(run), "--device", args.device]
    flags += ["--threads", str(args.threads)] if args.threads else []
    since = time.perf_counter()
    train.main(["--resume", "--output-dir", str(run)] if started else [*flags, "--overwrite"])
    minutes = (time.perf_counter() - since) / 60
    log = run / "log.csv"
    if log.exists():  # a resumed run counts all its epochs, not only those since
        import csv

        with log.open() as file:
            minutes = sum(float(row["train_seconds"]) for row in csv.DictReader(file)) / 60
    classical = entry.model in CLASSICAL
    start = "-" if classical else ("ImageNet" if weights_of(args, entry) else "scratch")
    write_json(run / "facts.json", {"minutes": minutes, "start": start, "epochs": None if classical else args.epochs})


def recipe_of(args: argparse.Namespace, entry: Entry) -> list[str]:
    """The flags of train.py that an entry's figures depend on."""
    classical = entry.model in CLASSICAL
    size = 256 if classical else args.image_size
    flags = ["--model", entry.model, "--data", *args.data, "--seed", str(args.seed), "--precision", args.precision]
    flags += ["--epochs", str(args.epochs), "--batch-size", str(args.batch_size), "--lr", str(args.lr)]
    flags += ["--image-size", str(size)] if size and not classical else []
    weights = weights_of(args, entry)
    flags += ["--weights", weights] if weights else []
    model_args = [argument.format(size=size or 256) for argument in entry.model_args]
    return flags + (["--model-args", *model_args] if model_args else [])


def weights_of(args: argparse.Namespace, entry: Entry) -> str | None:
    """The --weights of an entry: a file of the folder, timm's hub, or nothing."""
    if not args.weights_dir or not entry.weights:
        return None
    if args.weights_dir == "imagenet":
        return "imagenet"
    file = Path(args.weights_dir) / f"{entry.weights}.safetensors"
    return str(file) if file.is_file() else None


def tabulate(args: argparse.Namespace, entries: list[Entry], runs: Path, folder: Path) -> list[dict]:
    """Evaluate all runs, add sizes and speeds, and write the table and the figure."""
    import evaluate
    from utils.figures import interval_bar_figure, save_figure
    from utils.tables import write_table

    checkpoints = [str(runs / entry.name / "best.pt") for entry in entries]
    flags = ["--output-dir", str(folder), "--device", args.device]
    result = evaluate.main(["--checkpoint", *checkpoints, "--data", *args.data, *flags])
    facts = {
        entry.name: {**read_json(runs / entry.name / "facts.json"), **cost(runs / entry.name)} for entry in entries
    }
    rows = [{**row, **facts[row["checkpoint"]], "name": row["checkpoint"]} for row in result["rows"]]
    rows.sort(key=lambda row: (row["dataset"], -(row["auc"] or 0)))
    formats = {"parameters": ".2f", "gmacs": ".2f", "minutes": ".1f", "images_per_s": ".0f", "auc": ".3f", "acc": ".3f"}
    write_table(rows, COLUMNS, folder / "models", "Models over one budget; 95 % bootstrap intervals.", fmt=formats)
    labels = [f"{row['dataset']}: {row['name']}" for row in rows]
    figure = interval_bar_figure(
        labels, [row["auc"] for row in rows], [row["auc_ci"] for row in rows], x_label="Test AUC"
    )
    save_figure(figure, folder / "models")
    print((folder / "models.md").read_text(encoding="utf-8"), end="")
    return rows


def cost(run: Path) -> dict:
    """Parameters (millions), multiply-accumulates (billions) per image, and images/s in float32 at batch 8."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from models.detector import count_parameters
    from utils.checkpoints.file import load_detector

    detector, _ = load_detector(run / "best.pt")
    size = detector.geometry.size
    images = torch.rand(8, 3, size, size)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            detector(images[:1])
        times = []
        for _ in range(4):
            started = time.perf_counter()
            detector(images)
            times.append(time.perf_counter() - started)
    return {
        "parameters": count_parameters(detector) / 1e6 or None,
        "gmacs": counter.get_total_flops() / 2e9 if detector.has_input_gradient else None,  # trees multiply nothing
        "image_size": size,
        "images_per_s": len(images) / statistics.median(times[1:]),
    }


if __name__ == "__main__":
    run_script(main)
