"""Score data sets with checkpoints and report the results in tables and figures.

  python evaluate.py --checkpoint checkpoints/cnn-demo/best.pt --data demo
  python evaluate.py --checkpoint a/best.pt b/best.pt --data data/140k data/openforensics --tiers clean web hard
  python evaluate.py --checkpoint a/best.pt --data demo --severity jpeg resize --output-dir results/ab
  python evaluate.py --checkpoint a/best.pt b/best.pt --data data/140k --compare --gallery
  python evaluate.py --checkpoint a/best.pt --data clips:data/ff    a folder of videos, each one item
  python evaluate.py --data csv:cases/cases.csv                     cases of predict.py, by the released detector
  python evaluate.py --from-scores results/ab/scores/*.csv.gz --output-dir results/again

All forms but the last write scores/<checkpoint>__<data>__<split>.csv.gz, one row per image and tier, and a JSON file of
the same name with the threshold, unreadable images and data fingerprint. All else derives from these files, so
--from-scores gives the same tables and figures without a model or an image, rows in the order of the files:
metrics.json; metrics and generators as .csv, .md and .tex; ROC, precision-recall, reliability and coverage figures per
tier, and confusion and score figures per set, as .pdf and .png. The table is printed, unseen sources first:

  | Checkpoint | Data      | Split | Seen      | Tier  | Real | Fake | AUC                  | ...
  | cnn-demo   | wild      | all   | unseen    | clean | 200  | 200  | 0.731 [0.682, 0.778] | ...
  | cnn-demo   | demo      | test  | in-domain | clean | 240  | 240  | 0.984 [0.975, 0.992] | ...

A tier degrades each image, always in the same way, before it is scored: web is one upload to a web site, hard is
several rounds of sharing. --severity raises one degradation step by step. A dagger marks what the training augmentation
already applied. Scores are kept in --score-cache and reused while checkpoint, images, tier and code are the same. They
are written when a data set is finished: repeat an interrupted command, and only the set in progress is scored again
from its start. Scores of videos are not kept. Intervals are 95 % percentile bootstrap; the threshold is that of the
checkpoint. Where faces are searched, a picture or video without one is scored as a whole: tables have a score for every
image.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.listing.records import relative_path
from datasets.listing.spec import Listing, distinct_names, open_records, parse_spec
from datasets.perturbations import pick_tiers
from utils.args import (
    EXIT_DONE,
    add_device_group,
    add_face_group,
    check_output_dir,
    command_line,
    exit_code,
    int_in,
    make_parser,
    named_flags,
    run_script,
)
from utils.checkpoint_files import DEFAULT_CHECKPOINT, check_checkpoint_file
from utils.distributed import team
from utils.errors import UserError
from utils.files import is_first

if TYPE_CHECKING:
    from datasets.faces.finder import FaceFinder
    from utils.evaluation.evaluate import Candidate
    from utils.scoring.cache import ScoreCache
    from utils.scoring.scorer import Settings

SCORE_CACHE = "data/scores"
NamedData = list[tuple[str, Listing]]  # data sets with the names that tables and files give them


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of evaluate.py."""
    parser = make_parser(__doc__, "evaluate.py")
    what = parser.add_argument_group("what to evaluate")
    what.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="PT", help=f"checkpoints, or run folders {DEFAULT_CHECKPOINT}"
    )
    what.add_argument("--data", nargs="+", default=[], metavar="SPEC", help="data sets (default split: test)")
    what.add_argument("--from-scores", nargs="+", default=[], metavar="CSV", help="report on scores files instead")
    what.add_argument("--tiers", nargs="+", default=["clean"], metavar="TIER", help="clean web hard common")
    steps = "jpeg resize blur noise crop, or all: metrics over rising degradation"
    what.add_argument("--severity", nargs="+", default=[], metavar="KIND", help=steps)
    what.add_argument("--cache", metavar="DIR", help="keep decoded images in this folder, as train.py does")
    more = parser.add_argument_group("further reports")
    more.add_argument("--compare", action="store_true", help="two checkpoints: DeLong, McNemar, paired bootstrap")
    pair = "data sets whose real images to combine with sets of fakes only; use --tiers common"
    more.add_argument("--pair", nargs="+", default=[], metavar="NAME", help=pair)
    more.add_argument("--gallery", action="store_true", help="gallery.html of the worst errors, and failures.csv")
    more.add_argument("--subgroup", metavar="CSV:COLUMN", help="metrics for each value of a column of a CSV list")
    how = parser.add_argument_group("how")
    how.add_argument("--output-dir", metavar="DIR", default="results/evaluation", help="default: results/evaluation")
    how.add_argument("--batch-size", type=int_in(1), default=32, help="default: 32")
    how.add_argument("--n-boot", type=int_in(0, 1_000_000), default=1000, help="bootstrap resamples (default: 1000)")
    cache = how.add_mutually_exclusive_group()
    kept = f"folder for scores, reused by later runs (default: {SCORE_CACHE})"
    cache.add_argument("--score-cache", metavar="DIR", default=SCORE_CACHE, help=kept)
    cache.add_argument("--no-score-cache", action="store_true", help="score every image and keep no scores")
    add_face_group(parser)
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate; returns ``{"rows": metrics rows, "scores": score files, "exit_code": 0 or 1}``."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if bool(args.from_scores) == bool(args.data) or (args.from_scores and args.checkpoint):
        parser.error("expected either --data SPEC... or --from-scores CSV..., and --checkpoint PT... only with --data")
    folder = check_output_dir(args.output_dir)
    subgroup = None
    if args.subgroup:
        from utils.evaluation.subgroups import read_subgroup

        subgroup = read_subgroup(args.subgroup)
    if args.from_scores:
        if given := named_flags(parser, argv, ("tiers", "severity", "cache", "faces", "face_detector")):
            raise UserError(f"expected --data with {', '.join(given)}, got --from-scores; drop these flags")
        files = list(dict.fromkeys(Path(path) for path in args.from_scores))
    else:
        tiers = pick_tiers(args.tiers, args.severity)
        checkpoints = [check_checkpoint_file(path) for path in args.checkpoint or [None]]
        if args.compare and len(checkpoints) != 2:
            raise UserError(
                f"expected two --checkpoint for --compare, got {len(checkpoints)}; name two or drop --compare"
            )
        data = open_labelled(args.data)
        check_pair(args.pair, data)

        from datasets.faces.boxes import with_faces
        from datasets.faces.finder import check_face_detector, open_finder
        from datasets.image_cache import cache_listing
        from utils.evaluation.evaluate import load_candidates
        from utils.runtime import set_up
        from utils.scoring.cache import ScoreCache
        from utils.scoring.scorer import Settings

        check_face_detector(args.face_detector)
        machine = set_up(args.device, args.precision, args.workers, args.threads)
        candidates = load_candidates(checkpoints, machine.device)
        if args.cache:
            data = [(name, cache_listing(listing, Path(args.cache))) for name, listing in data]
        needs_face = args.faces or any(candidate.detector.geometry.needs_face for candidate in candidates)
        finder = open_finder(args.face_detector, needs_face or any(listing.sampling for _, listing in data))
        data = [(name, with_faces(listing, finder if needs_face else None)) for name, listing in data]
        # Several processes must score the same batches, whatever is in their caches.
        uncached = args.no_score_cache or team.size > 1
        cache = ScoreCache(None if uncached else Path(args.score_cache), f"{machine.device.type} {machine.dtype}")
        settings = Settings(args.batch_size, machine.workers, machine.dtype, args.faces)
        command = command_line("evaluate.py", argv)
        files = score_all(candidates, data, tiers, cache, settings, folder / "scores", finder, command)
        if not is_first():  # one process writes the report
            return {"rows": [], "scores": [], "exit_code": EXIT_DONE}

    from utils.evaluation.comparison import write_pair
    from utils.evaluation.gallery import write_gallery
    from utils.evaluation.report import write_one_class, write_report
    from utils.evaluation.scored_sets import read_evaluations
    from utils.evaluation.subgroups import write_subgroups
    from utils.scoring.table import sidecar_path

    sets = read_evaluations(files)
    for file in files:
        if not sidecar_path(file).is_file():
            print(f"{file}: no {sidecar_path(file).name} beside it, so the threshold is 0.5", file=sys.stderr)
    rows, unreadable = write_report(sets, folder, args.n_boot)
    if unreadable:
        print(f"{unreadable} unreadable images have no score; see the JSON files next to the scores", file=sys.stderr)
    print((folder / "metrics.md").read_text(encoding="utf-8"), end="")
    if args.pair:
        print("\n" + write_one_class(sets, args.pair, folder, args.n_boot), end="")
    if args.compare:
        print("\n" + write_pair(sets, folder, args.n_boot), end="")
    if args.gallery:
        print(f"gallery {write_gallery(sets, folder)[0]}", file=sys.stderr)
    if subgroup:
        write_subgroups(sets, *subgroup, folder, args.n_boot)
    return {"rows": rows, "scores": [str(file) for file in files], "exit_code": exit_code(unreadable)}


def open_labelled(specs: Sequence[str]) -> NamedData:
    """Open data sets whose images all have labels, under distinct names."""
    listings = [open_records(parse_spec(text).replace(repeat=None), videos=True) for text in specs]
    for text, listing in zip(specs, listings, strict=True):
        ((path, times),) = Counter(record.path for record in listing.records).most_common(1)
        if times > 1:
            raise UserError(f"expected every image of {text!r} once, got {path} {times} times; remove the copies")
        missing = sum(record.label is None for record in listing.records)
        if missing:
            raise UserError(f"expected a label for every image of {text!r}, got {missing} without; use predict.py")
    return list(zip(distinct_names(specs, listings), listings, strict=True))


def check_pair(names: Sequence[str], data: NamedData) -> None:
    """Refuse an impossible --pair before any image is scored. Raises UserError."""
    classes = {name: {record.label for record in listing.records} for name, listing in data}
    reals = [name for name, labels in classes.items() if 0 in labels]
    for name in set(names) - set(reals):
        raise UserError(f"expected --pair of data sets with real images, {', '.join(reals) or 'none'}, got {name!r}")
    if names and {1} not in classes.values():
        raise UserError("expected a set of fakes only for --pair, got none; the other sets need no pairing")


def score_all(
    candidates: Sequence[Candidate],
    data: NamedData,
    tiers: Sequence[str],
    cache: ScoreCache,
    settings: Settings,
    folder: Path,
    finder: FaceFinder | None,
    command: str,
) -> list[Path]:
    """Score every data set with every checkpoint; returns the scores files, ordered by checkpoint.

    All checkpoints score a data set together, so that each image is read once.
    """
    from utils.evaluation.evaluate import evaluate_tiers, origin, warn_of_training_images
    from utils.runtime import hardware
    from utils.scoring.table import write_scores, write_sidecar

    files: dict[tuple[int, int], Path] = {}
    for column, (dataset, listing) in enumerate(data):
        warn_of_training_images(candidates, dataset, listing)
        results = evaluate_tiers(candidates, listing, tiers, cache, settings, dataset, finder)
        for item in results[0][1]:  # the same for every checkpoint
            print(f"unreadable: {item['path']}: {item['reason']}", file=sys.stderr)
        if not len(results[0][0]):
            raise UserError(f"expected images in {dataset}, but none of {len(listing.records)} could be read")
        root, unreadable = listing.root, results[0][1]
        is_searched = any(record.faces is not None for record in listing.records)
        whole = without_face(listing, {item["path"] for item in unreadable}) if is_searched else None
        unreadable = [{**item, "path": relative_path(item["path"], root)} if root else item for item in unreadable]
        for row, (candidate, (table, _)) in enumerate(zip(candidates, results, strict=True)):
            file = folder / f"{candidate.name}__{dataset}__{listing.split}.csv.gz"
            write_scores(file, table.relative_to(root))
            write_sidecar(
                file,
                **origin(candidate),
                dataset=dataset,
                source=listing.name,
                root=root,
                split=listing.split,
                n_images=len(listing.records),
                data_fingerprint=listing.fingerprint,
                unreadable=unreadable,
                hardware=hardware(),
                without_face=whole,
                finder=finder.name if finder and (is_searched or listing.sampling) else None,
                command=command,
            )
            files[row, column] = file
    return [files[key] for key in sorted(files)]


def without_face(listing: Listing, unreadable: Collection[str]) -> list[str]:
    """The readable pictures without a face, which are judged as a whole, as paths below the root of the set."""
    paths = [record.path for record in listing.records if not record.faces and record.path not in unreadable]
    return [relative_path(path, listing.root) if listing.root else path for path in paths]


if __name__ == "__main__":
    run_script(main)
