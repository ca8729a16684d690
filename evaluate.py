"""Score data sets with checkpoints, and make tables and figures of the scores.

  python evaluate.py --checkpoint checkpoints/cnn-demo/best.pt --data demo
  python evaluate.py --checkpoint a/best.pt b/best.pt --data data/140k data/openforensics --tiers clean web hard
  python evaluate.py --checkpoint a/best.pt --data demo --severity jpeg resize --output-dir results/ab
  python evaluate.py --checkpoint a/best.pt b/best.pt --data data/140k --compare --gallery
  python evaluate.py --from-scores results/ab/scores/*.csv.gz --output-dir results/again

The first forms write scores/<checkpoint>__<data>__<split>.csv.gz (one row per image and tier) with a JSON file of the
same name (threshold, unreadable images, data fingerprint). Everything else is made of those files alone, so
--from-scores gives the same tables and figures with no model and no images: metrics.json; metrics and generators as
.csv, .md and .tex; ROC, precision-recall, reliability and coverage figures per tier, confusion and score figures per
set, as .pdf and .png. The table is printed; sources that the checkpoint has never seen come first:

  | Checkpoint | Data      | Split | Seen      | Tier  | Real | Fake | AUC                  | ...
  | cnn-demo   | wild      | all   | unseen    | clean | 200  | 200  | 0.731 [0.682, 0.778] | ...
  | cnn-demo   | demo      | test  | in-domain | clean | 240  | 240  | 0.984 [0.975, 0.992] | ...

Tiers degrade each image, always in the same way, before it is scored: web is one upload to a web site, hard is
several rounds of sharing. --severity raises one degradation step by step and adds the table severity and curves over
the steps. A dagger marks what --augmentation forensic already applied in training. Scores are kept in --score-cache
and taken from there when checkpoint, images, tier and code are the same, so an interrupted evaluation goes on where it
was. Intervals are 95 % percentile bootstrap. The threshold is the one that the checkpoint fitted on validation.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.perturbations import pick_tiers
from datasets.spec import Listing, open_records, parse_spec
from utils.args import (
    EXIT_DONE,
    EXIT_PARTIAL,
    add_device_group,
    add_face_group,
    check_checkpoint_file,
    check_output_dir,
    finder_name,
    int_in,
    make_parser,
    run_script,
)
from utils.distributed import is_first, join_team, team
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.evaluation.evaluate import Candidate
    from utils.evaluation.report import ScoredSet
    from utils.scoring.table import ScoreTable

SCORE_CACHE = "data/scores"


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of evaluate.py."""
    parser = make_parser(__doc__, "evaluate.py")
    what = parser.add_argument_group("what to evaluate")
    what.add_argument("--checkpoint", nargs="+", default=[], metavar="PT", help="checkpoints, or run folders")
    what.add_argument("--data", nargs="+", default=[], metavar="SPEC", help="data sets; their test split unless told")
    what.add_argument("--from-scores", nargs="+", default=[], metavar="CSV", help="scores files instead of both")
    what.add_argument("--tiers", nargs="+", default=["clean"], metavar="TIER", help="clean web hard common")
    what.add_argument(
        "--severity",
        nargs="+",
        default=[],
        metavar="KIND",
        help="jpeg resize blur noise crop, or all: curves over rising degradation",
    )
    what.add_argument("--cache", metavar="DIR", help="keep decoded images there, as train.py does")
    more = parser.add_argument_group("what else to make of the scores")
    more.add_argument("--compare", action="store_true", help="two checkpoints: DeLong, McNemar, paired bootstrap")
    more.add_argument(
        "--pair",
        nargs="+",
        default=[],
        metavar="NAME",
        help="data sets whose reals stand against sets of fakes; best with --tiers common",
    )
    more.add_argument("--gallery", action="store_true", help="gallery.html of the worst errors, and failures.csv")
    more.add_argument("--subgroup", metavar="CSV:COLUMN", help="metrics for each value of a column of a CSV list")
    how = parser.add_argument_group("how")
    how.add_argument("--output-dir", metavar="DIR", default="results/evaluation", help="default: results/evaluation")
    how.add_argument("--batch-size", type=int_in(1), default=32)
    how.add_argument("--n-boot", type=int_in(0, 1_000_000), default=1000, help="bootstrap resamples (default: 1000)")
    cache = how.add_mutually_exclusive_group()
    cache.add_argument(
        "--score-cache",
        metavar="DIR",
        default=SCORE_CACHE,
        help=f"where scores are kept between runs (default: {SCORE_CACHE})",
    )
    cache.add_argument("--no-score-cache", action="store_true", help="score every image, keep nothing")
    add_face_group(parser)
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Evaluate; returns ``{"rows": metrics rows, "scores": score files, "exit_code": 0 or 1}``."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if bool(args.from_scores) == bool(args.checkpoint) or bool(args.checkpoint) != bool(args.data):
        parser.error("expected either --checkpoint PT... with --data SPEC..., or --from-scores CSV...")
    args.command = shlex.join(["python", "evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    folder = check_output_dir(args.output_dir)
    if args.from_scores:
        files = [Path(path) for path in args.from_scores]
    else:
        tiers = pick_tiers(args.tiers, args.severity)
        checkpoints = [check_checkpoint_file(path) for path in args.checkpoint]
        listings = [open_labelled(text) for text in args.data]
        data = list(zip(distinct_names(args.data, listings), listings, strict=True))
        check_pair(args.pair, data)
        files = score_all(args, checkpoints, data, tiers, folder)
        if not is_first():  # of several processes one makes the report
            return {"rows": [], "scores": [], "exit_code": EXIT_DONE}

    from utils.evaluation.report import read_evaluations, write_report

    sets = read_evaluations(files)
    rows, unreadable = write_report(sets, folder, args.n_boot)
    if unreadable:
        print(f"{unreadable} unreadable images have no score; see the JSON files beside the scores", file=sys.stderr)
    print((folder / "metrics.md").read_text(encoding="utf-8"), end="")
    write_extras(args, sets, folder)
    exit_code = EXIT_PARTIAL if unreadable else EXIT_DONE
    return {"rows": rows, "scores": [str(file) for file in files], "exit_code": exit_code}


def write_extras(args: argparse.Namespace, sets: Sequence[ScoredSet], folder: Path) -> None:
    """Make what was asked for beyond tables and figures; the comparison is printed."""
    from utils.evaluation.comparison import write_pair
    from utils.evaluation.extras import write_failures, write_one_class, write_subgroup_table

    if args.pair:
        print("\n" + write_one_class(sets, args.pair, folder, args.n_boot), end="")
    if args.compare:
        print("\n" + write_pair(sets, folder, args.n_boot), end="")
    if args.gallery:
        print(f"gallery {write_failures(sets, folder)}", file=sys.stderr)
    if args.subgroup:
        write_subgroup_table(sets, args.subgroup, folder, args.n_boot)


def open_labelled(text: str) -> Listing:
    """Open a spec for evaluation; unlike predict.py it needs a label for every image."""
    listing = open_records(parse_spec(text))
    missing = sum(record.label is None for record in listing.records)
    if missing:
        raise UserError(f"expected a label for every image of {text!r}, got {missing} without; predict.py needs none")
    return listing


def check_pair(names: Sequence[str], data: Sequence[tuple[str, Listing]]) -> None:
    """Refuse a --pair that cannot be made before anything is scored. Raises UserError."""
    classes = {name: {record.label for record in listing.records} for name, listing in data}
    reals = [name for name, labels in classes.items() if 0 in labels]
    for name in names:
        if name not in reals:
            raise UserError(
                f"expected --pair of data sets with real images, {', '.join(reals) or 'none'}, got {name!r}"
            )
    if names and {1} not in classes.values():
        raise UserError("expected a set of fakes only for --pair, got none; the other sets need no pairing")


def distinct_names(specs: Sequence[str], listings: Sequence[Listing]) -> list[str]:
    """Number data sets that share name and split, as a/faces and b/faces do, so that each keeps its own scores."""
    from utils.evaluation.report import unique_names

    names = [listing.name for listing in listings]
    if len({(listing.name, listing.split) for listing in listings}) == len(listings):
        return names
    names = unique_names(names)
    for name, text in zip(names, specs, strict=True):
        print(f"{name} is {text}", file=sys.stderr)
    return names


def score_all(
    args: argparse.Namespace, paths: list[Path], data: list[tuple[str, Listing]], tiers: list[str], folder: Path
) -> list[Path]:
    """Score every data set, a name and a listing, with every checkpoint; returns the scores files.

    All checkpoints go over a data set together, so that its images are read once.
    """
    from datasets.faces import FaceFinder
    from datasets.image_cache import cache_listing
    from utils.evaluation.evaluate import evaluate_tiers, load_candidates
    from utils.runtime import pick_device, pick_precision, pick_workers, set_threads
    from utils.scoring.cache import ScoreCache
    from utils.scoring.scorer import Settings
    from utils.scoring.table import relative_path

    device = pick_device(args.device)
    join_team(device)
    dtype = pick_precision(args.precision, device, training=False)
    set_threads(args.threads)
    candidates = load_candidates(paths, device)
    # Each machine has scores of its own: taken from there, they would let the processes fall out of step. And scores
    # are kept of whole pictures only.
    no_cache = args.no_score_cache or team.size > 1 or finder_name(args)
    cache = ScoreCache(None if no_cache else Path(args.score_cache), f"{device.type} {dtype}")
    finder = FaceFinder(name) if (name := finder_name(args)) else None
    settings = Settings(args.batch_size, pick_workers(args.workers, device), dtype, finder)
    files: dict[tuple[int, int], Path] = {}
    for column, (dataset, listing) in enumerate(data):
        warn_of_training_images(candidates, dataset, listing)
        listing = cache_listing(listing, Path(args.cache) if args.cache else None)
        results = evaluate_tiers(candidates, listing, tiers, cache, settings, dataset)
        for item in results[0][1]:  # the same for every checkpoint
            print(f"unreadable: {item['path']}: {item['reason']}", file=sys.stderr)
        if not len(results[0][0]):
            raise UserError(f"expected images in {dataset}, but none of {len(listing.records)} could be read")
        for row, (candidate, (table, unreadable)) in enumerate(zip(candidates, results, strict=True)):
            file = folder / "scores" / f"{candidate.name}__{dataset}__{listing.split}.csv.gz"
            lost = [{**item, "path": relative_path(item["path"], listing.root)} for item in unreadable]
            facts = {"dataset": dataset, "unreadable": lost, "command": args.command}
            write_scored(file, candidate, listing, table, facts)
            files[row, column] = file
    return [files[key] for key in sorted(files)]


def warn_of_training_images(candidates: Sequence[Candidate], dataset: str, listing: Listing) -> None:
    """Say which checkpoints have seen these very images in training."""
    for candidate in candidates:
        entries = candidate.checkpoint.get("data", [])
        if listing.fingerprint in {entry["fingerprint"] for entry in entries if entry["split"] == "train"}:
            print(f"warning: {candidate.name} was trained on these very images of {dataset}", file=sys.stderr)


def write_scored(file: Path, candidate: Candidate, listing: Listing, table: ScoreTable, facts: dict) -> None:
    """Write a scores file and, beside it, what belongs to the run and not to an image."""
    from utils.runtime import hardware
    from utils.scoring.table import write_scores, write_sidecar

    checkpoint = candidate.checkpoint
    point = candidate.detector.operating_point
    write_scores(file, table.relative_to(listing.root))
    write_sidecar(
        file,
        checkpoint=candidate.name,
        model=checkpoint["model"],
        thresholds=dict(point.thresholds) or None,
        threshold=point.threshold(),
        source=listing.name,
        root=listing.root,
        split=listing.split,
        n_images=len(listing.records),
        data_fingerprint=listing.fingerprint,
        hardware=hardware(),
        **facts,
        **training_facts(checkpoint),
    )


def training_facts(checkpoint: dict) -> dict:
    """Where a checkpoint came from, for whoever reads its scores later."""
    settings = checkpoint.get("train_args") or {}
    return {
        "train_command": settings.get("command"),
        "augmentation": settings.get("augmentation"),
        "trained_on": sorted({entry["dataset"] for entry in checkpoint.get("data", [])}),
        **{key: checkpoint.get(key) for key in ("epoch", "seed", "git_commit", "versions")},
    }


if __name__ == "__main__":
    run_script(main)
