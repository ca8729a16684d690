"""Leave one generator out: how well does a recipe find fakes of a generator that it has never seen?

  python -m studies.leave_one_out --data demo --output-dir results/leave_one_out --train --model cnn --epochs 5
  python -m studies.leave_one_out --data data/140k data/wild --train --model tf_efficientnet_b0 --weights imagenet

Trains once on everything and once without each generator of the data; what follows --train goes to train.py. A run
that is finished is skipped and an interrupted one goes on, so the command can be killed and repeated. Writes
matrix.csv, .md, .tex and the figure matrix.pdf and .png, besides what evaluate.py writes. The last line on stdout:

  mean AUC over 3 generators: seen 0.982, unseen 0.871
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.splits import fake_generators, open_training_data
from utils.args import EXIT_DONE, EXIT_PARTIAL, check_output_dir, check_passed_on, int_in, make_parser, run_script
from utils.errors import UserError
from utils.files import read_json, write_json

EVERYTHING = "none"  # the run that leaves nothing out
RESERVED = ("--data", "--output-dir", "--exclude-generator", "--resume", "--overwrite")
COLUMNS = [
    ("excluded", "Left out"),
    ("tested", "Fakes tested"),
    ("seen", "Seen"),
    ("n_real", "Real"),
    ("n_fake", "Fake"),
    ("auc", "AUC"),
    ("fake_acc", "Fake acc"),
    ("real_acc", "Real acc"),
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
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], metavar="FLAG", help="flags of train.py; last")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Make the matrix; returns ``{"rows": its cells, "exit_code": 0, or 1 if images could not be read}``."""
    import evaluate
    import train

    args = get_args_parser().parse_args(argv)
    check_passed_on(args.train, train.get_args_parser(), RESERVED)
    generators = generators_of(args.data)
    folder, runs = check_output_dir(args.output_dir), check_output_dir(args.runs_dir)
    for excluded in (EVERYTHING, *generators):
        train_without(args, excluded, runs / run_name(excluded))
    checkpoints = [str(runs / run_name(excluded) / "best.pt") for excluded in (EVERYTHING, *generators)]
    flags = ["--output-dir", str(folder), "--n-boot", str(args.n_boot)]
    result = evaluate.main(["--checkpoint", *checkpoints, "--data", *args.data, *flags])
    rows = cells(read_json(folder / "metrics.json"), args.data)
    seen, unseen = ([row["auc"] for row in rows if row["seen"] == answer] for answer in ("yes", "no"))
    means = f"seen {statistics.mean(seen):.3f}, unseen {statistics.mean(unseen):.3f}"
    write_matrix(rows, folder, means)
    print((folder / "matrix.md").read_text(encoding="utf-8"), end="")
    print(f"mean AUC over {len(generators)} generators: {means}")
    return {"rows": rows, "exit_code": EXIT_PARTIAL if result["exit_code"] == EXIT_PARTIAL else EXIT_DONE}


def generators_of(specs: Sequence[str]) -> list[str]:
    """The generators with fakes to train on and to test on.

    Raises:
        UserError: there are fewer than two, so that nothing would be left to train on.
    """
    data = open_training_data(specs)
    trained = {name for listing in data.train for name in fake_generators(listing)}
    tested = {name for listing in data.test for name in fake_generators(listing)}
    if len(trained & tested) < 2:
        found = ", ".join(sorted(trained & tested)) or "none"
        raise UserError(f"expected fakes of two or more generators in the train and test splits, found {found}")
    return sorted(trained & tested)


def run_name(generator: str) -> str:
    """Name of the run, and of its folder, that leaves a generator out."""
    return generator.replace("/", "_")


def train_without(args: argparse.Namespace, excluded: str, run: Path) -> None:
    """Train one run unless it is finished; go on where it was interrupted.

    Raises:
        UserError: the folder holds a run with other flags.
    """
    import train

    flags = ["--data", *args.data, *(["--exclude-generator", excluded] if excluded != EVERYTHING else []), *args.train]
    plan = run / "plan.json"
    known = read_json(plan) if plan.exists() else None
    if known and known["flags"] != flags:
        raise UserError(f"expected the flags of the runs in {run.parent}, got others; choose another --runs-dir")
    if known and known["finished"]:
        return
    print(f"training without {excluded}" if excluded != EVERYTHING else "training on everything", file=sys.stderr)
    if known and (run / "last.pt").exists():
        train.main(["--resume", "--output-dir", str(run)])
    else:
        write_json(plan, {"flags": flags, "finished": False})
        train.main([*flags, "--output-dir", str(run), "--overwrite"])
    write_json(plan, {"flags": flags, "finished": True})


def cells(rows: Sequence[dict], specs: Sequence[str]) -> list[dict]:
    """Pick the metrics rows of one generator's fakes against the reals of their own data set."""
    from datasets.spec import open_records

    only = {}  # evaluate.py has no rows by generator for a set that holds one generator
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


def write_matrix(rows: Sequence[dict], folder: Path, means: str) -> None:
    """Write the table and the figure: a line per run, a column per generator tested, unseen cells framed."""
    from studies.protocol_figures import matrix_figure
    from utils.figures import save_figure
    from utils.tables import write_table

    caption = f"Leave one generator out; 95 % bootstrap intervals. Mean AUC: {means}."
    write_table(rows, COLUMNS, folder / "matrix", caption)
    runs = list(dict.fromkeys(row["excluded"] for row in rows))
    tested = list(dict.fromkeys(row["tested"] for row in rows))
    value = {(row["excluded"], row["tested"]): row["auc"] for row in rows}
    marked = {(row["excluded"], row["tested"]) for row in rows if row["seen"] == "no"}
    figure = matrix_figure(
        [[value.get((run, name)) for name in tested] for run in runs],
        runs,
        tested,
        marked=[[(run, name) in marked for name in tested] for run in runs],
        x_label="Fakes tested",
        y_label="Left out of training",
        value_label="AUC (framed: unseen)",
    )
    save_figure(figure, folder / "matrix")


if __name__ == "__main__":
    run_script(main)
