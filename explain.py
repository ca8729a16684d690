"""Show where a detector sees evidence, and measure whether such maps can be believed.

  python explain.py photo.jpg                                   with the released detector
  python explain.py --checkpoint best.pt photo.jpg
  python explain.py --checkpoint best.pt photos/ --methods gradcam occlusion superpixels --contact-sheet
  python explain.py --checkpoint a/best.pt b/best.pt --data demo data/wild --faithfulness --limit 200

The first forms write for each image a figure (original, overlay, raw map, strongest regions, score, verdict) as .pdf
and .png, and the overlay at the size of the picture as <name>__<method>.png. With several methods comparison.pdf has
them side by side; --contact-sheet adds sheets of true and false positives and negatives (labels are the names of the
folders) and average maps over aligned faces with spectra. Printed is one line per image and method:

  path,p_fake,verdict,target,method,all_zero,figure
  photos/a.jpg,0.9310963137134937,fake,fake,gradcam,no,runs/explanations/a.png

Methods: gradcam gradcam++ hirescam layercam eigencam scorecam (maps of one layer), steps (rows and columns of a
CNN-LSTM), integrated_gradients, occlusion, superpixels (LIME), features (classical detectors: what each feature adds,
and the spectrum). Without a gradient, occlusion, superpixels and features are left.

A map that looks plausible proves nothing. --faithfulness takes each data set's test split and writes, for every
method and for three controls that know nothing (random map, centre prior, edges): ROAD, insertion, deletion, verdicts
flipped by attacking the strongest segments, and, where manipulation masks are known, whether the map points at them.
A method that is no better than the random map, or the same for shuffled weights, is "not faithful here". The raw
numbers of each cell are kept in raw/, and a cell that is there is not measured again; the tables are made of them.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.inputs import list_inputs
from datasets.spec import Listing, open_records, parse_spec
from utils.args import (
    EXIT_DONE,
    EXIT_PARTIAL,
    add_device_group,
    add_seed,
    check_output_dir,
    int_in,
    make_parser,
    run_script,
)
from utils.checkpoints.released import DEFAULT_HELP, checkpoint_or_release
from utils.errors import UserError
from utils.explanations.names import FEATURES, METHODS, TARGETS, check_methods

if TYPE_CHECKING:
    import torch

    from models.operating_point import OperatingPoint

COLUMNS = ("path", "p_fake", "verdict", "target", "method", "all_zero", "figure")
FIGURE_SIDE = 768  # px, the longer side of a picture in a figure
SHEET_SIDE = 256


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of explain.py."""
    parser = make_parser(__doc__, "explain.py")
    what = parser.add_argument_group("what to explain")
    what.add_argument("paths", nargs="*", metavar="PATH", help="image, folder, 'pattern' or list.csv")
    what.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="PT", help=f"a checkpoint or its run folder {DEFAULT_HELP}"
    )
    what.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="METHOD",
        help=f"{', '.join(METHODS)}, {FEATURES} (default: gradcam where it works; all of them with --faithfulness)",
    )
    what.add_argument(
        "--target", choices=TARGETS, help="evidence for what (default: predicted; fake with --faithfulness)"
    )
    what.add_argument(
        "--layer", metavar="NAME", help="layer of the CAM methods, or 'A B' for several (default: the detector's own)"
    )
    table = parser.add_argument_group("faithfulness")
    table.add_argument("--faithfulness", action="store_true", help="measure the methods on --data instead")
    table.add_argument("--data", nargs="+", default=[], metavar="SPEC", help="data sets; their test split unless told")
    table.add_argument("--limit", type=int_in(2), metavar="N", help="images per data set, balanced over the classes")
    add_seed(table)
    how = parser.add_argument_group("how")
    how.add_argument("--output-dir", metavar="DIR", default="runs/explanations", help="default: runs/explanations")
    how.add_argument("--contact-sheet", action="store_true", help="sheets by outcome and average maps over all images")
    how.add_argument("--overwrite", action="store_true", help="replace files that are already in the output folder")
    how.add_argument("--batch-size", type=int_in(1), default=16)
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Explain; returns ``rows`` (of stdout, or of the table), ``n_unreadable`` and ``exit_code`` (0 or 1)."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if not args.faithfulness:  # one checkpoint then; argparse took what follows it for more of them
        args.paths, args.checkpoint = args.checkpoint[1:] + args.paths, args.checkpoint[:1]
    if args.faithfulness != bool(args.data) or args.faithfulness == bool(args.paths):
        parser.error("expected either PATH..., or --faithfulness with --data SPEC...")
    if args.limit and not args.faithfulness:
        parser.error("expected --limit with --faithfulness only, got it with PATH...; name fewer images")
    args.methods = check_methods(args.methods)
    args.command = shlex.join(["python", "explain.py", *(sys.argv[1:] if argv is None else argv)])
    checkpoints = [checkpoint_or_release(path) for path in args.checkpoint or [None]]
    if args.faithfulness:
        return measure(args, checkpoints)
    paths = list_inputs(args.paths)
    return explain_images(args, checkpoints[0], paths, empty_output_dir(args.output_dir, args.overwrite))


def empty_output_dir(path: str, overwrite: bool) -> Path:
    """Create the output folder; refuse one with files in it unless they may be replaced. Raises UserError."""
    folder = check_output_dir(path)
    found = sorted(file.name for file in folder.iterdir())
    if found and not overwrite:
        raise UserError(
            f"expected an empty --output-dir, found {len(found)} files in {path} ({found[0]}...); "
            "choose another folder or pass --overwrite"
        )
    return folder


# ------------------------------------------------------------------------------------------------ faithfulness


def measure(args: argparse.Namespace, checkpoints: Sequence[Path]) -> dict:
    """Measure every checkpoint on every data set, print and write the tables."""
    listings = [open_limited(text, args.limit) for text in args.data]
    folder = check_output_dir(args.output_dir)

    from utils.checkpoints.file import load_detector
    from utils.evaluation.evaluate import Candidate, checkpoint_names
    from utils.evaluation.report import unique_names
    from utils.explanations.cells import Settings
    from utils.explanations.report import cell_methods, ensure_cell, write_report
    from utils.files import read_json
    from utils.scoring.cache import file_digest

    device, dtype = prepare(args)
    names = unique_names([listing.name for listing in listings])
    files = []
    for checkpoint, name in zip(checkpoints, checkpoint_names(checkpoints), strict=True):
        candidate = Candidate(name, *load_detector(checkpoint, device), file_digest(checkpoint))
        settings = Settings(
            cell_methods(candidate, args.methods, args.layer),
            args.target or "fake",
            args.layer,
            args.batch_size,
            args.seed,
            dtype,
        )
        for dataset, listing in zip(names, listings, strict=True):
            files.append(
                ensure_cell(
                    folder, candidate, dataset, listing, settings, command=args.command, overwrite=args.overwrite
                )
            )
    rows = write_report(files, folder, args.seed)
    print((folder / "faithfulness.md").read_text(encoding="utf-8"), end="")
    unreadable = sum(len(read_json(file.with_suffix(".json"))["unreadable"]) for file in files)
    if unreadable:
        print(f"{unreadable} unreadable images were left out", file=sys.stderr)
    return {"rows": rows, "n_unreadable": unreadable, "exit_code": EXIT_PARTIAL if unreadable else EXIT_DONE}


def open_limited(text: str, limit: int | None) -> Listing:
    """Open a spec, with ``limit`` as its limit unless it has one."""
    spec = parse_spec(text)
    if limit is not None:
        spec.options.setdefault("limit", str(limit))
    return open_records(spec)


def prepare(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Pick device and precision and limit the threads."""
    from utils.runtime import pick_device, pick_precision, set_threads

    device = pick_device(args.device)
    set_threads(args.threads)
    return device, pick_precision(args.precision, device, training=False)


# ----------------------------------------------------------------------------------------------------- figures


def explain_images(args: argparse.Namespace, checkpoint_file: Path, paths: Sequence[str], folder: Path) -> dict:
    """Explain images one after the other, then make the sheets; prints a row per image and method."""
    from utils.checkpoints.file import load_detector
    from utils.explanations.methods import check_usable, usable_methods

    device, dtype = prepare(args)
    detector, _ = load_detector(checkpoint_file, device)
    usable = usable_methods(detector, args.layer)
    default = FEATURES if FEATURES in usable else usable[0]
    methods = args.methods or [default]
    check_usable(detector, methods, args.layer)
    point = detector.operating_point
    rows: list[dict[str, Any]] = []
    if FEATURES in methods:
        rows += explain_features(detector, point, paths, folder)
    maps = [method for method in methods if method != FEATURES]
    if maps:
        rows += explain_maps(args, detector, point, paths, maps, folder, dtype)
    failed = {row["path"]: row["error"] for row in rows if "error" in row}
    done = [row for row in rows if "error" not in row]
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(done)
    for path, reason in failed.items():
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    print(f"{len(paths)} images; {len(failed)} unreadable; figures in {folder}", file=sys.stderr)
    return {"rows": done, "n_unreadable": len(failed), "exit_code": EXIT_PARTIAL if failed else EXIT_DONE}


def explain_maps(
    args: argparse.Namespace,
    detector: Any,
    point: OperatingPoint,
    paths: Sequence[str],
    methods: list[str],
    folder: Path,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """Write the figures of all methods that make maps; returns a row per image and method."""
    from tqdm import tqdm

    from utils.explanations.figures import image_figure
    from utils.explanations.images import explain_files, shrink
    from utils.explanations.outputs import distinct_stems, write_overlay, write_sheets
    from utils.figures import save_figure

    rows, kept = [], []
    stems = distinct_stems(paths)
    results = explain_files(
        detector,
        point,
        paths,
        methods,
        target=args.target or "predicted",
        layer=args.layer,
        batch_size=args.batch_size,
        dtype=dtype,
    )
    for number, (path, item) in enumerate(tqdm(results, total=len(paths), unit="img", disable=None, leave=False)):
        if isinstance(item, str):
            rows.append({"path": path, "error": item})
            continue
        stem = folder / stems[number]
        save_figure(image_figure(shrink(item, FIGURE_SIDE)), stem)
        for method, heat in item.heats.items():
            write_overlay(Path(f"{stem}__{method}.png"), item.image, heat, item.seen)
            rows.append(
                {
                    "path": path,
                    "p_fake": item.p_fake,
                    "verdict": item.verdict,
                    "target": item.target,
                    "method": method,
                    "all_zero": "no" if heat.max() > 0 else "yes",
                    "figure": f"{stem}.png",
                }
            )
        if args.contact_sheet or len(methods) > 1:
            kept.append(shrink(item, SHEET_SIDE))
    if kept:
        write_sheets(kept, methods, folder, args.contact_sheet)
    return rows


def explain_features(detector: Any, point: OperatingPoint, paths: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Write what each feature of a classical detector adds, with the spectrum; returns a row per image."""
    from utils.explanations.classical import explain_feature_files
    from utils.explanations.outputs import distinct_stems

    return explain_feature_files(detector, point, paths, [folder / stem for stem in distinct_stems(paths)])


if __name__ == "__main__":
    run_script(main)
