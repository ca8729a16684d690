"""Run the commands behind the committed results again and report which figures differ.

  python -m studies.reproduce --quick                    only the demo set: no data, no weights, minutes on two cores
  python -m studies.reproduce --data-root data --weights-dir weights
  python -m studies.reproduce --list                     show each step and its state
  python -m studies.reproduce --only demo demo-evaluate

The steps are those of results/steps.txt. All output goes below --output-dir (runs/reproduce), never over the committed
results; the stdout of each step is in its folder logs. A finished step is skipped until its command, its code or an
input changes or its output disappears; an interrupted step is resumed. A step is skipped if its data, its weights or
the output of another step is missing.

At the end, each committed figure of the finished steps is compared with the new one. It agrees if the new one lies in
the committed 95 % interval and comes from the same number of images. The steps and a table are printed; the table is
also written to comparison.csv, .md and .tex:

  demo                    done      466 s
  demo-evaluate           done      341 s
  cnn-faces140k           skipped   no data at data/faces140k
  | Results          | Row                         | Figure | Published            | Found | Verdict |
  | demo/metrics.csv | demo demo test clean        | auc    | 0.986 [0.978, 0.993] | 0.986 | agrees  |
  48 figures agree, 0 differ, 0 of other images, 0 missing, 0 not made, 0 rows not published

The exit code is 1 if a figure differs, is missing or comes from other images, if a step failed, or if no figure agrees.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.args import EXIT_DONE, check_output_dir, exit_code, make_parser, run_script
from utils.errors import UserError, closest
from utils.files import ROOT
from utils.reproduction.steps import DONE, FAILED, SKIPPED, TODO, Step, Workshop, read_steps

STEPS_FILE = ROOT / "results" / "steps.txt"
COMMITTED = ROOT / "results"
QUICK = "demo"  # what the names of the quick steps start with


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of reproduce.py."""
    parser = make_parser(__doc__, "python -m studies.reproduce")
    which = parser.add_argument_group("which steps")
    which.add_argument("--quick", action="store_true", help="only the steps of the demo set")
    which.add_argument("--only", nargs="+", default=[], metavar="STEP", help="only these; their inputs must exist")
    which.add_argument("--list", action="store_true", help="show the steps and their states, and exit")
    where = parser.add_argument_group("where")
    where.add_argument("--data-root", default="data", metavar="DIR", help="folder of the data sets (default: data)")
    weights = "ImageNet weights, safetensors files named after timm models (default: weights)"
    where.add_argument("--weights-dir", default="weights", metavar="DIR", help=weights)
    where.add_argument("--output-dir", default="runs/reproduce", metavar="DIR", help="default: runs/reproduce")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Reproduce; returns ``{"steps": {name: state}, "rows": compared figures, "exit_code": 0 or 1}``."""
    args = get_args_parser().parse_args(argv)
    everything = read_steps(STEPS_FILE)
    steps = choose(everything, args.only, args.quick)
    out = check_output_dir(args.output_dir)
    if COMMITTED.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"expected --output-dir outside of the committed results, got {args.output_dir}")
    workshop = Workshop(out, everything, {"data": Path(args.data_root), "weights": Path(args.weights_dir)}, ROOT)
    if args.list:
        return {"steps": show(workshop, steps), "rows": [], "exit_code": EXIT_DONE}
    states = {step.name: work_on(workshop, step) for step in steps}

    from utils.reproduction.report import AGREES, FAILURES, compare_results, count_verdicts, write_comparison

    done = [step for step in steps if states[step.name] == DONE]
    rows = compare_results(out, COMMITTED, everything, done)
    print(write_comparison(rows, out), end="")
    uncompared = {step.folders[0] for step in done if step.writes_tables} - {row["folder"] for row in rows}
    if uncompared:
        print(f"no committed table for {', '.join(sorted(uncompared))}")
    print(count_verdicts(rows))
    verdicts = {row["verdict"] for row in rows}
    failed = FAILED in states.values() or not verdicts.isdisjoint(FAILURES) or AGREES not in verdicts
    return {"steps": states, "rows": rows, "exit_code": exit_code(failed)}


def choose(steps: Sequence[Step], names: Sequence[str], quick: bool) -> list[Step]:
    """Return the wanted steps in the order of the table. Raises UserError for an unknown name."""
    known = [step.name for step in steps]
    for name in names:
        if name not in known:
            raise UserError(f"expected a step of --list, got {name!r}{closest(name, known)}")
    return [step for step in steps if (not names or step.name in names) and (not quick or step.name.startswith(QUICK))]


def work_on(workshop: Workshop, step: Step) -> str:
    """Run a step unless it is done or cannot run; prints its line and returns its state."""
    if not workshop.is_done(step):
        obstacle = workshop.obstacle(step)
        if obstacle:
            return say(step, SKIPPED, obstacle)
        if workshop.run(step) == FAILED:
            return say(step, FAILED, f"see {workshop.out / 'logs' / step.name}.txt and the lines above")
    return say(step, DONE, f"{workshop.state[step.name]['seconds']:.0f} s")


def show(workshop: Workshop, steps: Sequence[Step]) -> dict[str, str]:
    """Print each step with its state and its command or obstacle, without running any."""
    states: dict[str, str] = {}
    for step in steps:
        blocked = [other.name for other in step.needs(workshop.steps) if states.get(other.name) == SKIPPED]
        obstacle = workshop.absent(step) or (f"needs {', '.join(blocked)}" if blocked else None)
        state = DONE if workshop.is_done(step) else SKIPPED if obstacle else TODO
        states[step.name] = say(step, state, obstacle if state == SKIPPED and obstacle else f"python {step.command}")
    return states


def say(step: Step, state: str, detail: str) -> str:
    """Print the line of a step."""
    print(f"{step.name:24s}{state:10s}{detail}", flush=True)
    return state


if __name__ == "__main__":
    run_script(main)
