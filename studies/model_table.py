"""Train and evaluate a list of models with the same budget, and write the table that compares them.

  python -m studies.model_table --data data/140k data/openforensics --output-dir results/models
  python -m studies.model_table --data demo@n=240 --models cnn xgboost --epochs 2 --output-dir runs/table
  python -m studies.model_table --data data/140k --weights-dir imagenet --epochs 8 --image-size 0 --runs-dir runs/full

Each model is one run of train.py in --runs-dir. Finished runs are skipped and interrupted ones resumed while data,
weights and code are unchanged; a run with other settings is an error. A backbone starts from
WEIGHTS_DIR/<model>.safetensors if that file exists (--weights-dir imagenet: from timm's hub) and is marked "scratch"
otherwise. Writes models.csv, .md and .tex and the bar figure models.pdf and .png, in addition to the output of
evaluate.py. `--list` prints the names.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.listing.splits import open_training_data
from utils.args import (
    EXIT_DONE,
    EXIT_PARTIAL,
    add_device_group,
    add_seed,
    check_output_dir,
    exit_code,
    float_in,
    int_in,
    make_parser,
    run_script,
)
from utils.errors import UserError
from utils.figures import interval_bar_figure, save_figure
from utils.tables import columns, write_table

CLASSICAL = ("random_forest", "gradient_boosting", "xgboost", "lightgbm", "logistic_regression")
BACKBONES = (
    *("resnet50", "densenet121", "xception", "inception_resnet_v2"),
    *("efficientnet_b0", "convnext_tiny", "vit_small_patch16_224"),
)


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
    *(Entry(name, name, (), name) for name in BACKBONES),
]

COLUMNS = [
    *columns(name="Model", parameters="Params (M)", gmacs="GMACs", image_size="Input (px)", start="Start"),
    *columns(epochs="Epochs", minutes="Training (min)", dataset="Test data", auc="AUC", acc="Acc"),
    *columns(images_per_s="Scoring (images/s)"),
]


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of model_table.py."""
    parser = make_parser(__doc__, "python -m studies.model_table")
    parser.add_argument("--data", nargs="+", default=["demo"], metavar="SPEC", help="data sets to train and test on")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="some names of --list (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names and exit")
    parser.add_argument("--epochs", type=int_in(1), default=3, help="for neural models (default: 3)")
    parser.add_argument(
        "--image-size", type=int_in(0, 4096), default=128, help="px; 0: the default of each model (default: 128)"
    )
    parser.add_argument("--batch-size", type=int_in(2), default=16)
    parser.add_argument("--lr", type=float_in(0, 10), default=6e-4, help="peak learning rate (default: 0.0006)")
    parser.add_argument(
        "--weights-dir", metavar="DIR", help="folder of safetensors files named after models, or imagenet"
    )
    parser.add_argument("--runs-dir", default="runs/models", metavar="DIR", help="default: runs/models")
    parser.add_argument("--output-dir", default="results/models", metavar="DIR", help="default: results/models")
    add_seed(parser)
    add_device_group(parser, workers="")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Make the table; returns ``{"rows": table rows, "failed": names, "exit_code": 0, or 1 if anything failed}``."""
    args = get_args_parser().parse_args(argv)
    entries = choose(args.models)
    if args.list:
        print("\n".join(entry.name for entry in entries))
        return {"rows": [], "exit_code": EXIT_DONE}
    if 0 < args.image_size < 16:
        raise UserError(f"expected --image-size 0 or in 16..4096 px, got {args.image_size}")
    data = open_training_data(args.data)  # reports a wrong spec once, not for every model
    folder, runs = check_output_dir(args.output_dir), check_output_dir(args.runs_dir)

    from studies.runs import digests, train_once

    shared = ["--data", *args.data, "--seed", str(args.seed), "--precision", args.precision]
    shared += ["--batch-size", str(args.batch_size)]
    steps = ["--epochs", str(args.epochs), "--lr", str(args.lr)]  # a classical model takes none
    machine = ["--device", args.device, *(["--threads", str(args.threads)] if args.threads else [])]
    facts, failed = {}, []
    for entry in entries:
        weights = weights_of(entry, args.weights_dir)
        inputs = digests([Path(weights)] if weights not in (None, "imagenet") else [], [*data.train, *data.valid])
        own = entry_flags(entry, args.image_size, weights)
        flags = [*shared, *([] if entry.model in CLASSICAL else steps), *own]
        try:
            minutes = train_once(runs / entry.name, flags, inputs, machine)
        except UserError as error:  # a model that cannot be built must not stop the others
            print(f"{entry.name}: {error}", file=sys.stderr)
            failed.append(entry.name)
            continue
        start, epochs = ("-", None) if entry.model in CLASSICAL else ("ImageNet" if weights else "scratch", args.epochs)
        facts[entry.name] = {"minutes": minutes, "start": start, "epochs": epochs, **cost(runs / entry.name)}
    if not facts:
        return {"rows": [], "failed": failed, "exit_code": EXIT_PARTIAL}

    import evaluate

    checkpoints = [str(runs / name / "best.pt") for name in facts]
    flags = ["--output-dir", str(folder), "--device", args.device]
    result = evaluate.main(["--checkpoint", *checkpoints, "--data", *args.data, *flags])
    rows = [{**row, **facts[row["checkpoint"]], "name": row["checkpoint"]} for row in result["rows"]]
    rows.sort(key=lambda row: (row["dataset"], -(row["auc"] or 0)))
    write_rows(rows, folder)
    is_partial = bool(failed) or any(row["unreadable"] for row in rows)
    return {"rows": rows, "failed": failed, "exit_code": exit_code(is_partial)}


def choose(names: Sequence[str] | None) -> list[Entry]:
    """Return the entries with these names, in the order of the table.

    Raises:
        UserError: a name is not in the table.
    """
    known = {entry.name: entry for entry in ENTRIES}
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise UserError(f"expected --models of {', '.join(known)}, got {', '.join(unknown)}")
    return [entry for entry in ENTRIES if names is None or entry.name in names]


def entry_flags(entry: Entry, image_size: int, weights: str | None) -> list[str]:
    """Return the flags of train.py that are specific to an entry."""
    size = 0 if entry.model in CLASSICAL else image_size
    model_args = [argument.format(size=size or 256) for argument in entry.model_args]
    flags = ["--model", entry.model, *(["--image-size", str(size)] if size else [])]
    return [
        *flags,
        *(["--weights", weights] if weights else []),
        *(["--model-args", *model_args] if model_args else []),
    ]


def weights_of(entry: Entry, folder: str | None) -> str | None:
    """Return the --weights of an entry: a file of the folder, imagenet (timm's hub), or None."""
    if not folder or not entry.weights:
        return None
    if folder == "imagenet":
        return folder
    file = Path(folder) / f"{entry.weights}.safetensors"
    return str(file) if file.is_file() else None


def write_rows(rows: list[dict], folder: Path) -> None:
    """Write the table and the figure, and print the table."""
    formats = {"parameters": ".2f", "gmacs": ".2f", "minutes": ".1f", "images_per_s": ".0f", "auc": ".3f", "acc": ".3f"}
    write_table(rows, COLUMNS, folder / "models", "Models over one budget; 95 % bootstrap intervals.", fmt=formats)
    labels = [f"{row['dataset']}: {row['name']}" for row in rows]
    aucs, intervals = [row["auc"] for row in rows], [row["auc_ci"] for row in rows]
    save_figure(interval_bar_figure(labels, aucs, intervals, x_label="Test AUC"), folder / "models")
    print((folder / "models.md").read_text(encoding="utf-8"), end="")


def cost(run: Path) -> dict:
    """Measure parameters (millions), multiply-accumulates (billions) per image, and images/s in float32 at batch 8."""
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
        "gmacs": counter.get_total_flops() / 2e9 if detector.has_input_gradient else None,  # trees do not multiply
        "image_size": size,
        "images_per_s": len(images) / statistics.median(times[1:]),
    }


if __name__ == "__main__":
    run_script(main)
