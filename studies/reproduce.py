"""Run the commands behind the committed results again, and say which numbers come out differently.

  python -m studies.reproduce --quick                    the demo set only: no data, no weights, minutes on two cores
  python -m studies.reproduce --data-root data --weights-dir weights
  python -m studies.reproduce --list                          what there is to do, and what is in the way
  python -m studies.reproduce --only demo demo-evaluate

The steps are those of results/steps.txt. Each one writes below --output-dir (runs/reproduce) and never over the
committed results; the stdout of each is in logs/ there. A step that has finished is not run again until its command
changes, its output disappears, or something that it reads is made anew; an interrupted one goes on. Steps whose data
sets (folders of --data-root) or weights are not here are skipped, and so are the steps that build on them. At the end
every figure is compared with the committed one: it agrees when it lies in the committed 95 % interval. Printed are the
steps and the table, which is also in comparison.csv, .md and .tex:

  demo                    done      466 s
  demo-evaluate           done      341 s
  cnn-faces140k           skipped   no data at data/faces140k
  | Results | Checkpoint | Data | What      | Figure | Published            | Found | Verdict |
  | demo    | demo       | demo | clean all | auc    | 0.986 [0.978, 0.993] | 0.986 | agrees  |
  8 figures agree, 0 differ, 24 have no published counterpart

The exit code is 1 if a figure differs or a step failed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.args import EXIT_DONE, EXIT_PARTIAL, check_output_dir, make_parser, run_script
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
    which.add_argument("--quick", action="store_true", help="those of the demo set")
    which.add_argument("--only", nargs="+", default=[], metavar="STEP", help="these; what they build on must be done")
    which.add_argument("--list", action="store_true", help="show the steps and what is to be done, and leave")
    where = parser.add_argument_group("where")
    where.add_argument("--data-root", default="data", metavar="DIR", help="folder of the data sets (default: data)")
    where.add_argument(
        "--weights-dir",
        default="weights",
        metavar="DIR",
        help="ImageNet weights, safetensors files named after timm models (default: weights)",
    )
    where.add_argument("--output-dir", default="runs/reproduce", metavar="DIR", help="default: runs/reproduce")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Reproduce; returns ``{"steps": {name: state}, "rows": compared figures, "exit_code": 0 or 1}``."""
    args = get_args_parser().parse_args(argv)
    everything = read_steps(STEPS_FILE)
    steps = choose(everything, args.only, args.quick)
    out = check_output_dir(args.output_dir)
    if COMMITTED.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"expected --output-dir outside of the committed results, got {args.output_dir}")
    places = {"data": Path(args.data_root), "weights": Path(args.weights_dir)}
    workshop = Workshop(out, everything, places, ROOT)
    if args.list:
        return {"steps": show(workshop, steps), "rows": [], "exit_code": EXIT_DONE}
    states = {step.name: work_on(workshop, step) for step in steps}

    from utils.reproduction.report import DIFFERS, compare_folders, count_verdicts, write_comparison

    rows = compare_folders(out / "results", COMMITTED)
    print(write_comparison(rows, out), end="")
    print(count_verdicts(rows))
    failed = FAILED in states.values() or any(row["verdict"] == DIFFERS for row in rows)
    return {"steps": states, "rows": rows, "exit_code": EXIT_PARTIAL if failed else EXIT_DONE}


def choose(steps: Sequence[Step], names: Sequence[str], quick: bool) -> list[Step]:
    """The steps that were asked for, in the order of the table. Raises UserError: there is no such step."""
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
    """Print each step with its state and its command, or with what is in its way; nothing is run."""
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
