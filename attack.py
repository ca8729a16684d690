"""Attack detectors and measure how much of their accuracy remains.

  python attack.py --checkpoint checkpoints/cnn-demo --data demo
  python attack.py --checkpoint a b --data data/140k@limit=200 --attacks fgsm pgd strong --eps 1/255 2/255
  python attack.py --checkpoint a --data demo --norm l2 --eps 0.5 1 --direction fake-to-real
  python attack.py --checkpoint a b c --data demo --attacks pgd --eps 4/255 --transfer
  python attack.py --checkpoint forest --data demo --attacks square --queries 1000
  python attack.py --checkpoint a --data demo --attacks pgd --eps 2/255 --export adversarial/
  python attack.py --output-dir results/attacks                        write the tables of finished runs again

Sizes are in pixel units: 8/255 is eight grey levels of an image in [0, 1]. The attack works on the detector's input,
after the cropping or resizing that its checkpoint prescribes, and succeeds when p_fake crosses the threshold that was
fitted on validation. ATTACKS `strong` is the worst of PGD on the margin, APGD, FAB and Square for each image. The table
is printed:

  | Checkpoint | Data | Attack | eps   | n   | Clean acc            | Robust acc           | AUC   | ...
  | cnn-demo   | demo | pgd-20 | 2/255 | 480 | 0.933 [0.907, 0.952] | 0.021 [0.011, 0.038] | 0.004 | ...

Each finished cell (checkpoint x data x attack with its settings x eps) is stored in DIR/cells with the score of every
image; an interrupted run resumes there, and the tables cover every cell in the folder. Each detector first undergoes
sanity checks; DIR/checks.md lists them, and the table marks the rows of a detector that failed one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.listing.spec import Listing, distinct_names, open_limited
from utils.args import (
    add_device_group,
    add_face_detector,
    add_seed,
    check_output_dir,
    command_line,
    exit_code,
    float_in,
    int_in,
    make_parser,
    named_flags,
    run_script,
)
from utils.attacks.threat_model import (
    DEFAULT_EPS,
    DIRECTIONS,
    NORMS,
    SETTINGS,
    Plan,
    attack_traits,
    check_attacks,
    check_linf_eps,
    check_settings,
    parse_size,
)
from utils.checkpoint_files import check_checkpoint_file
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.attacks.runs import Target, Trial

TRIED = "limit attacks norm eps direction steps restarts queries transfer smoothing export".split()


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of attack.py."""
    parser = make_parser((__doc__ or "").replace("ATTACKS", f"Attacks: {', '.join(attack_traits())};"), "attack.py")
    what = parser.add_argument_group("what to attack")
    what.add_argument("--checkpoint", nargs="+", default=[], metavar="PT", help="checkpoints, or run folders")
    what.add_argument("--data", nargs="+", default=[], metavar="SPEC", help="data sets (default: their test split)")
    what.add_argument("--limit", type=int_in(2), help="images of each data set, balanced (default: all)")
    how = parser.add_argument_group("threat model")
    how.add_argument("--attacks", nargs="+", default=["fgsm", "pgd"], metavar="NAME", help="default: fgsm pgd")
    how.add_argument("--norm", choices=NORMS, default="linf", help="norm of the change (default: linf)")
    how.add_argument(
        "--eps",
        nargs="+",
        type=parse_size,
        metavar="SIZE",
        help="pixel units (default: 0.5, 1, 2, 4 and 8 /255; 0.25 to 2 for l2)",
    )
    how.add_argument(
        "--direction", choices=tuple(DIRECTIONS), default="both", help="images to attack (default: both classes)"
    )
    how.add_argument("--steps", type=int_in(1), help="steps of each iterative attack (default: 20)")
    how.add_argument("--restarts", type=int_in(1), help="random starts of pgd and strong (default: 1)")
    how.add_argument("--queries", type=int_in(1), help="queries of square and strong per image (default: 500)")
    more = parser.add_argument_group("further outputs")
    more.add_argument(
        "--transfer", action="store_true", help="score each detector on the images crafted with the others"
    )
    more.add_argument(
        "--smoothing",
        type=float_in(0.001, 10),
        metavar="SIGMA",
        help="certify --limit images (default: 50) by randomised smoothing",
    )
    more.add_argument("--export", metavar="DIR", help="write adversarial images as PNG, one data set per cell")
    more.add_argument("--output-dir", metavar="DIR", default="results/attacks", help="default: results/attacks")
    more.add_argument("--batch-size", type=int_in(1), default=32, help="random starts differ with it (default: 32)")
    add_seed(more)
    add_face_detector(more)
    add_device_group(parser, workers="")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Attack; returns ``{"rows": rows of the table, "exit_code": 0 or 1}``."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if bool(args.checkpoint) != bool(args.data):
        parser.error("expected --checkpoint PT... together with --data SPEC..., or neither")
    if not args.checkpoint and (unused := named_flags(parser, argv, TRIED)):
        parser.error(f"expected --checkpoint and --data with {', '.join(unused)}; without, earlier results are shown")
    if args.transfer and len(args.checkpoint) == 1:
        parser.error("expected two or more --checkpoint with --transfer, got one; add another or drop --transfer")
    sizes = sorted(args.eps or [parse_size(text) for text in DEFAULT_EPS[args.norm]])
    for eps in sizes if args.norm == "linf" else []:
        check_linf_eps(eps)
    check_attacks(args.attacks, args.norm)
    given = {"steps": args.steps, "restarts": args.restarts, "queries": args.queries}
    settings = check_settings(given, args.attacks)
    plans = [Plan(attack, args.norm, eps, **own, seed=args.seed) for attack, own in settings.items() for eps in sizes]
    check = Plan("pgd", args.norm, sizes[len(sizes) // 2], steps=args.steps or SETTINGS["steps"], seed=args.seed)
    folder = check_output_dir(args.output_dir)
    export = check_output_dir(args.export, "--export") if args.export else None
    paths = [check_checkpoint_file(path, needs_weights=True) for path in args.checkpoint]
    listings = [open_for_attack(text, args.direction, args.limit) for text in args.data]
    names = distinct_names(args.data, listings)
    listings = [replace(listing, name=name) for name, listing in zip(names, listings, strict=True)]
    current: dict[str, str] = {}
    if args.checkpoint:
        from datasets.faces.boxes import with_faces
        from datasets.faces.finder import check_face_detector, open_finder
        from utils.attacks.checks import check_source
        from utils.attacks.runs import Trial
        from utils.runtime import set_threads

        check_face_detector(args.face_detector)
        set_threads(args.threads)
        targets = load_targets(paths, args.device, args.precision)
        current = {target.name: target.candidate.digest for target in targets}
        sources = usable_sources(targets, args.attacks, args.transfer)
        command = command_line("attack.py", argv)
        needs_face = any(target.candidate.detector.geometry.needs_face for target in targets)
        finder = open_finder(args.face_detector, needs_face)
        for listing in [with_faces(listing, finder) for listing in listings]:
            for source in sources:
                check_source(source, listing, check, folder)
                goals = targets if args.transfer else [source]
                trial = Trial(source, goals, listing, args.direction, args.batch_size)
                if any([attack_cells(trial, plan, folder, command, export) for plan in plans]):
                    for item in trial.clean.unreadable:
                        print(f"unreadable: {item['path']}: {item['reason']}", file=sys.stderr)
            if args.smoothing:
                from utils.attacks.smoothing import write_certificates

                write_certificates(targets, listing, args.smoothing, args.limit or 50, args.seed, folder)
    rows = print_report(folder, current)
    return {"rows": rows, "exit_code": exit_code(any(row["unreadable"] for row in rows))}


def open_for_attack(text: str, direction: str, limit: int | None) -> Listing:
    """Open a spec. Raises UserError: it lacks a class that the direction attacks."""
    listing = open_limited(text, limit)
    labels = {record.label for record in listing.records}
    if missing := set(DIRECTIONS[direction]) - labels:
        found, other = ("fake", "fake-to-real") if 0 in missing else ("real", "real-to-fake")
        raise UserError(
            f"expected real and fake images in {text!r} for --direction {direction}, got only {found}; "
            f"pass --direction {other}, or add the other class"
        )
    return listing


def load_targets(paths: Sequence[Path], device_name: str, precision: str) -> list[Target]:
    """Load checkpoints as targets, under distinct names."""
    from utils.attacks.runs import make_target
    from utils.evaluation.evaluate import load_candidates
    from utils.runtime import pick_device, pick_precision

    device = pick_device(device_name)
    dtype = pick_precision(precision, device, training=False)
    return [make_target(candidate, device, dtype) for candidate in load_candidates(paths, device)]


def usable_sources(targets: Sequence[Target], attacks: Sequence[str], transfer: bool) -> list[Target]:
    """The detectors to craft attacks with: those with a gradient if an attack needs it.

    Raises:
        UserError: without --transfer, a detector has no gradient; with it, none has.
    """
    needs = [name for name in attacks if attack_traits()[name].needs_gradient]
    blind = [target for target in targets if needs and not target.candidate.detector.has_input_gradient]
    sources = [target for target in targets if target not in blind]
    if blind and not (transfer and sources):
        model = blind[0].candidate.checkpoint["model"]
        raise UserError(
            f"expected a detector with input gradients for {', '.join(needs)}, got {blind[0].name} ({model}); pass "
            "--attacks square, or --transfer together with a neural checkpoint"
        )
    return sources


def attack_cells(trial: Trial, plan: Plan, folder: Path, command: str, export: Path | None) -> bool:
    """Run one attack on all targets of a trial, unless every one of their cells is finished; returns whether it ran."""
    from utils.attacks.cells import is_finished, write_cell
    from utils.attacks.export import Exporter
    from utils.runtime import run_facts

    stems = [folder / "cells" / trial.cell_name(target, plan) for target in trial.targets]
    keys = [trial.key(target, plan) for target in trial.targets]
    if not export and all(map(is_finished, stems, keys)):
        return False
    source = trial.source
    own = trial.targets.index(source)
    exporter = Exporter(export / stems[own].name, trial.listing, source.candidate.detector.geometry) if export else None
    cells = trial.run(plan, exporter)
    for stem, key, cell in zip(stems, keys, cells, strict=True):
        cell.info |= {"key": key, **run_facts(command)}
        write_cell(stem, cell)
    if exporter:
        exporter.draw_example(cells[own], trial.clean.indices)
    return True


def print_report(folder: Path, current: Mapping[str, str]) -> list[dict[str, Any]]:
    """Write and print the tables of all finished cells of the ``current`` checkpoints, or all if it is empty.

    Raises:
        UserError: the folder has no finished cells.
    """
    from utils.attacks.report import write_attack_report

    if not any((folder / "cells").glob("*.json")):
        raise UserError(f"expected finished cells in {folder}, got none; pass --checkpoint and --data")
    rows = write_attack_report(folder, current)
    print((folder / "attacks.md").read_text(encoding="utf-8").partition("\n\n")[2], end="")
    if (folder / "transfer.md").exists():
        print("\n" + (folder / "transfer.md").read_text(encoding="utf-8"), end="")
    return rows


if __name__ == "__main__":
    run_script(main)
