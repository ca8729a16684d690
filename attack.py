"""Attack detectors, and say how much of their accuracy is left.

  python attack.py --checkpoint checkpoints/cnn-demo --data demo
  python attack.py --checkpoint a b --data data/140k@limit=200 --attacks fgsm pgd strong --eps 1/255 2/255
  python attack.py --checkpoint a --data demo --norm l2 --eps 0.5 1 --direction fake-to-real
  python attack.py --checkpoint a b c --data demo --attacks pgd --eps 4/255 --transfer
  python attack.py --checkpoint forest --data demo --attacks square --queries 1000
  python attack.py --checkpoint a --data demo --attacks pgd --eps 2/255 --export adversarial/
  python attack.py --output-dir results/attacks                        tables again, from what is finished

Sizes are in pixel units: 8/255 is eight grey levels of an image in [0, 1]. The attack works on what the detector sees,
after the cropping or resizing that its checkpoint prescribes, and succeeds when p_fake crosses the threshold that the
checkpoint fitted on validation. Attacks: fgsm, pgd, mifgsm, cw, deepfool, square (black box), and strong, the worst of
PGD on the margin, APGD-CE, FAB and Square for each image. The table is printed:

  | Checkpoint | Data | Attack | eps   | n   | Clean acc            | Robust acc           | AUC   | ...
  | cnn-demo   | demo | pgd-20 | 2/255 | 480 | 0.933 [0.907, 0.952] | 0.021 [0.011, 0.038] | 0.004 | ...

Each finished cell (checkpoint x data x attack x eps) is kept in DIR/cells with the score of every image; an interrupted
run goes on where it was, and the tables cover every cell in the folder. Before that, each detector is checked for
reasons not to believe an attack; DIR/checks.md has them, and a failed one marks its rows.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.spec import Listing, open_records, parse_spec
from utils.args import (
    EXIT_DONE,
    EXIT_PARTIAL,
    add_device_group,
    add_seed,
    check_checkpoint_file,
    check_output_dir,
    float_in,
    int_in,
    make_parser,
    run_script,
)
from utils.attacks.names import (
    DEFAULT_EPS,
    DIRECTIONS,
    WHITE_BOX,
    check_alpha,
    check_attacks,
    check_linf_eps,
    parse_size,
)
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.attacks.runs import Target
    from utils.attacks.suite import Plan


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of attack.py."""
    parser = make_parser(__doc__, "attack.py")
    what = parser.add_argument_group("what to attack")
    what.add_argument("--checkpoint", nargs="+", default=[], metavar="PT", help="checkpoints, or run folders")
    what.add_argument("--data", nargs="+", default=[], metavar="SPEC", help="data sets; their test split unless told")
    what.add_argument("--limit", type=int_in(2), help="images of each data set, balanced (default: all)")
    how = parser.add_argument_group("threat model")
    how.add_argument("--attacks", nargs="+", default=["fgsm", "pgd"], metavar="NAME", help="default: fgsm pgd")
    how.add_argument("--norm", choices=("linf", "l2"), default="linf", help="of the change (default: linf)")
    how.add_argument(
        "--eps",
        nargs="+",
        type=parse_size,
        metavar="SIZE",
        help="pixel units (default: 0.5, 1, 2, 4 and 8 /255; 0.25 to 2 for l2)",
    )
    how.add_argument("--direction", choices=tuple(DIRECTIONS), default="both", help="which images are attacked")
    how.add_argument("--steps", type=int_in(1), default=20, help="of each iterative attack (default: 20)")
    how.add_argument("--alpha", type=parse_size, metavar="SIZE", help="size of a step (default: 2.5 eps / steps)")
    how.add_argument("--restarts", type=int_in(1), default=1, help="random starts of pgd; strong adds one to APGD")
    how.add_argument("--queries", type=int_in(1), default=500, help="of square, for each image (default: 500)")
    more = parser.add_argument_group("what else to do")
    more.add_argument("--transfer", action="store_true", help="score each detector on the images of each other one")
    more.add_argument(
        "--smoothing",
        type=float_in(0.001, 10),
        metavar="SIGMA",
        help="certificates by randomised smoothing, for --limit images (default: 50)",
    )
    more.add_argument("--export", metavar="DIR", help="adversarial images as PNG, a data set for evaluate.py per cell")
    more.add_argument("--output-dir", metavar="DIR", default="results/attacks", help="default: results/attacks")
    more.add_argument("--batch-size", type=int_in(1), default=32)
    add_seed(more)
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Attack; returns ``{"rows": rows of the table, "exit_code": 0 or 1}``."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if bool(args.checkpoint) != bool(args.data):
        parser.error("expected --checkpoint PT... together with --data SPEC..., or neither")
    args.command = shlex.join(["python", "attack.py", *(sys.argv[1:] if argv is None else argv)])
    args.eps = args.eps or [parse_size(text) for text in DEFAULT_EPS[args.norm]]
    for eps in args.eps if args.norm == "linf" else []:
        check_linf_eps(eps)
    check_alpha(args.alpha, args.eps)
    check_attacks(args.attacks, args.norm)
    folder = check_output_dir(args.output_dir)
    paths = [check_checkpoint_file(path) for path in args.checkpoint]
    listings = [open_for_attack(text, args.direction, args.limit) for text in args.data]
    if args.checkpoint:
        attack_all(args, paths, listings, folder)

    from utils.attacks.report import write_attack_report

    rows = write_attack_report(folder)
    if not rows:
        raise UserError(f"expected finished cells in {folder}, got none; pass --checkpoint and --data")
    print((folder / "attacks.md").read_text(encoding="utf-8").partition("\n\n")[2], end="")
    if (folder / "transfer.md").exists():
        print("\n" + (folder / "transfer.md").read_text(encoding="utf-8"), end="")
    exit_code = EXIT_PARTIAL if any(row["unreadable"] for row in rows) else EXIT_DONE
    return {"rows": rows, "exit_code": exit_code}


def open_for_attack(text: str, direction: str, limit: int | None) -> Listing:
    """Open a spec whose images are labelled and hold every class that the direction attacks.

    Raises:
        UserError: a label is missing, or a class.
    """
    spec = parse_spec(text)
    if limit is not None:
        spec = type(spec)(spec.kind, spec.location, {**spec.options, "limit": str(limit)})
    listing = open_records(spec)
    labels = {record.label for record in listing.records}
    if None in labels:
        raise UserError(f"expected a label for every image of {text!r}, got some without; name them with labels=")
    if missing := set(DIRECTIONS[direction]) - labels:
        found, other = ("fake", "fake-to-real") if 0 in missing else ("real", "real-to-fake")
        raise UserError(
            f"expected real and fake images in {text!r} for --direction {direction}, got only {found}; "
            f"pass --direction {other}, or add the other class"
        )
    return listing


def attack_all(args: argparse.Namespace, paths: list[Path], listings: list[Listing], folder: Path) -> None:
    """Compute every cell that is not finished yet, data set by data set."""
    from utils.attacks.runs import check_source, make_target
    from utils.attacks.suite import Plan
    from utils.checkpoints.file import load_detector
    from utils.evaluation.evaluate import Candidate, checkpoint_names
    from utils.runtime import pick_device, pick_precision, set_threads
    from utils.scoring.cache import file_digest

    device = pick_device(args.device)
    dtype = pick_precision(args.precision, device, training=False)
    set_threads(args.threads)
    names = checkpoint_names(paths)
    targets = [
        make_target(Candidate(name, *load_detector(path, device), file_digest(path)), dtype)
        for name, path in zip(names, paths, strict=True)
    ]
    for target in targets:
        target.candidate.detector.to(device).eval()
    sources = usable_sources(targets, args.attacks, args.transfer)
    for listing in listings:
        for source in sources:
            middle = sorted(args.eps)[len(args.eps) // 2]
            check_source(
                source, listing, Plan("pgd", args.norm, middle, steps=args.steps, seed=args.seed), device, folder
            )
            goals = targets if args.transfer else [source]
            for attack in args.attacks:
                for eps in sorted(args.eps):
                    plan = Plan(attack, args.norm, eps, args.alpha, args.steps, args.restarts, args.queries, args.seed)
                    attack_cells(args, source, goals, listing, plan, device, folder)
        if args.smoothing:
            from utils.attacks.smoothing_report import write_certificates

            write_certificates(targets, listing, args.smoothing, args.limit or 50, args.seed, device, folder)


def usable_sources(targets: Sequence[Target], attacks: Sequence[str], transfer: bool) -> list[Target]:
    """The detectors that images are crafted with: with --transfer those that have a gradient, else all must have one.

    Raises:
        UserError: a white-box attack is asked for on a detector without a gradient.
    """
    needs = [name for name in attacks if name in WHITE_BOX]
    blind = [target for target in targets if needs and not target.candidate.detector.has_input_gradient]
    sources = [target for target in targets if target not in blind]
    if blind and not (transfer and sources):
        model = blind[0].candidate.checkpoint["model"]
        raise UserError(
            f"expected a detector with input gradients for {', '.join(needs)}, got {blind[0].name} ({model}); pass "
            "--attacks square, or --transfer together with a neural checkpoint"
        )
    return sources


def attack_cells(
    args: argparse.Namespace,
    source: Target,
    goals: Sequence[Target],
    listing: Listing,
    plan: Plan,
    device,
    folder: Path,
) -> None:
    """Run one attack against all goals at once, unless every one of their cells is finished."""
    from utils.attacks.cells import cell_key, is_finished, write_cell
    from utils.attacks.export import Exporter
    from utils.attacks.runs import cell_name, cell_settings, run_cells
    from utils.runtime import git_commit, hardware, versions

    how = (args.direction, args.batch_size)
    keys = {goal.name: cell_key(cell_settings(source, goal, listing, plan, *how)) for goal in goals}
    stems = {goal.name: folder / "cells" / cell_name(source, goal, listing, plan, args.direction) for goal in goals}
    exporter = Exporter(Path(args.export) / stems[source.name].name, listing, source) if args.export else None
    if all(is_finished(stems[name], key) for name, key in keys.items()) and not exporter:
        return
    cells = run_cells(source, goals, listing, plan, *how, device, exporter)
    facts: dict[str, Any] = {
        "command": args.command,
        "hardware": hardware(),
        "git_commit": git_commit(),
        "versions": versions(),
    }
    for goal, cell in zip(goals, cells, strict=True):
        cell.info |= {"key": keys[goal.name], **facts}
        write_cell(stems[goal.name], cell)
    if exporter:
        exporter.draw_example(next(cell for cell in cells if cell.info["checkpoint"] == source.name))
    for item in cells[0].info["unreadable"]:
        print(f"unreadable: {item['path']}: {item['reason']}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
