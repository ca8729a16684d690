"""Leave one generator out: how well does a recipe detect fakes of a generator it has never seen?

  python -m studies.leave_one_out --data demo --output-dir results/leave_one_out --train --model cnn --epochs 5
  python -m studies.leave_one_out --data data/140k data/wild --train --model tf_efficientnet_b0 --weights imagenet

Trains once on all data and once without each generator; flags after --train are passed to train.py. You can interrupt
and repeat the command: finished runs are skipped and interrupted ones resumed while data and code are unchanged. Writes
matrix.csv, .md, .tex and the figure matrix.pdf and .png, in addition to the output of evaluate.py. The last line on
stdout:

  mean AUC over 3 generators: seen 0.982, unseen 0.871
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from datasets.listing.spec import open_records
from datasets.listing.splits import TrainingData, fake_generators, open_training_data
from utils.args import check_output_dir, check_passed_on, int_in, make_parser, run_script
from utils.errors import UserError
from utils.figures import FAKE_COLOUR, new_figure, save_figure, styled
from utils.files import read_json
from utils.tables import columns, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERYTHING = "none"  # name of the run that leaves nothing out
RESERVED = ("--data", "--output-dir", "--exclude-generator", "--resume", "--overwrite")
COLUMNS = [
    *columns(excluded="Left out", tested="Fakes tested", seen="Seen", n_real="Real", n_fake="Fake"),
    *columns(auc="AUC", fake_acc="Fake acc", real_acc="Real acc"),
]


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of leave_one_out.py."""
    parser = make_parser(__doc__, "python -m studies.leave_one_out")
    parser.add_argument("--data", nargs="+", default=["demo"], metavar="SPEC", help="data sets to mix (default: demo)")
    parser.add_argument("--runs-dir", default="runs/leave_one_out", metavar="DIR", help="default: runs/leave_one_out")
    parser.add_argument(
        "--output-dir", default="results/leave_one_out", metavar="DIR", help="default: results/leave_one_out"
    )
    parser.add_argument("--n-boot", type=int_in(0, 1_000_000), default=1000, help="bootstrap resamples (default: 1000)")
    parser.add_argument(
        "--train", nargs=argparse.REMAINDER, default=[], metavar="FLAG", help="flags for train.py; must come last"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Make the matrix; returns ``{"rows": its cells, "exit_code": 0, or 1 with unreadable images}``."""
    import evaluate
    import train
    from studies.runs import digests, initial_files, seen_sources, train_once

    args = get_args_parser().parse_args(argv)
    check_passed_on(args.train, train.get_args_parser(), RESERVED)
    data = open_training_data(args.data)
    generators, untested = shared_generators(data)
    if untested:
        print(f"note: no test set has real images and fakes of {', '.join(untested)}: not left out", file=sys.stderr)
    names = {listing.name for listing in data.train}
    for flag, file in initial_files(vars(train.get_args_parser().parse_args(args.train))).items():
        if known := sorted(names & {name for seen in seen_sources(file) for name in seen}):
            raise UserError(
                f"expected {flag} that was not trained on the data, whose generators are left out in turn, got {file}, "
                f"which was trained on {', '.join(known)}; choose another, or other --data"
            )
    folder, runs = check_output_dir(args.output_dir), check_output_dir(args.runs_dir)
    inputs = digests([], [*data.train, *data.valid])
    checkpoints = []
    for excluded in (EVERYTHING, *generators):
        flags = ["--data", *args.data, *(["--exclude-generator", excluded] if excluded != EVERYTHING else [])]
        print(f"training without {excluded}" if excluded != EVERYTHING else "training on everything", file=sys.stderr)
        train_once(runs / run_name(excluded), [*flags, *args.train], inputs)
        checkpoints.append(str(runs / run_name(excluded) / "best.pt"))
    flags = ["--output-dir", str(folder), "--n-boot", str(args.n_boot)]
    result = evaluate.main(["--checkpoint", *checkpoints, "--data", *args.data, *flags])
    rows = cells(read_json(folder / "metrics.json"), args.data)
    seen, unseen = ([row["auc"] for row in rows if row["seen"] == answer] for answer in ("yes", "no"))
    means = f"seen {statistics.mean(seen):.3f}, unseen {statistics.mean(unseen):.3f}"
    caption = f"Leave one generator out; 95 % bootstrap intervals. Mean AUC: {means}."
    write_table(rows, COLUMNS, folder / "matrix", caption)
    save_figure(matrix_figure(rows), folder / "matrix")
    print((folder / "matrix.md").read_text(encoding="utf-8"), end="")
    print(f"mean AUC over {len(generators)} generators: {means}")
    return {"rows": rows, "exit_code": result["exit_code"]}


def shared_generators(data: TrainingData) -> tuple[list[str], list[str]]:
    """Return the generators with fakes to train on and, in a set with real images, to test on; then the others.

    Raises:
        UserError: there are fewer than two; without one of them, no fakes would remain for training.
    """
    trained = {name for item in data.train for name in fake_generators(item)}
    with_reals = [item for item in data.test if any(record.label == 0 for record in item.records)]
    shared = trained & {name for item in with_reals for name in fake_generators(item)}
    if len(shared) < 2:
        found = ", ".join(sorted(shared)) or "none"
        raise UserError(
            "expected fakes of two or more generators in train splits, and in test splits with real images, found "
            f"{found}; python -m studies.leave_source_out takes sets of one class"
        )
    return sorted(shared), sorted(trained - shared)


def run_name(generator: str) -> str:
    """Name the run, and its folder, that leaves a generator out."""
    return generator.replace("/", "_")


def cells(rows: Sequence[dict], specs: Sequence[str]) -> list[dict]:
    """Select the metrics rows that compare the fakes of one generator with the reals of the same data set."""
    only = {}  # evaluate.py writes no rows by generator for a set with a single generator
    for text in specs:
        listing = open_records(text)
        names = fake_generators(listing)
        only[listing.name] = names[0] if len(names) == 1 else None
    picked = []
    for row in rows:
        tested = row["generator"] if row["generator"] != "all" else only.get(row["dataset"])
        if tested and row["auc"] is not None:
            seen = "no" if row["checkpoint"] == run_name(tested) else "yes"
            picked.append({**row, "excluded": row["checkpoint"], "tested": tested, "seen": seen})
    return picked


@styled
def matrix_figure(rows: Sequence[dict]) -> Figure:
    """Draw the AUC as a shaded table, one row per run, one column per generator tested; unseen cells are framed."""
    from matplotlib.patches import Rectangle

    runs, tested = (list(dict.fromkeys(row[key] for row in rows)) for key in ("excluded", "tested"))
    grid = np.full((len(runs), len(tested)), np.nan)
    figure, (axes,) = new_figure(2.4 + 0.95 * len(tested), 1.5 + 0.42 * len(runs))
    for row in {(row["excluded"], row["tested"]): row for row in rows}.values():
        i, j = runs.index(row["excluded"]), tested.index(row["tested"])
        grid[i, j] = row["auc"]
        colour = "white" if row["auc"] < 0.75 else "black"
        axes.text(j, i, f"{row['auc']:.2f}", ha="center", va="center", color=colour, fontsize=9)
        if row["seen"] == "no":
            axes.add_patch(
                Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, edgecolor=FAKE_COLOUR, linewidth=2.2)
            )
    image = axes.imshow(grid, cmap="cividis", vmin=0.5, vmax=1, aspect="auto")
    axes.set_xticks(range(len(tested)), tested, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(runs)), runs)
    axes.set(xlabel="Fakes tested", ylabel="Left out of training")
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="AUC (framed: unseen)")
    return figure


if __name__ == "__main__":
    run_script(main)
