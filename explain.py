"""Show where a detector sees evidence, and measure whether such maps can be trusted.

  python explain.py photo.jpg                                   with the released detector
  python explain.py --checkpoint best.pt photo.jpg
  python explain.py --checkpoint best.pt photos/ --methods gradcam occlusion superpixels --contact-sheet
  python explain.py --checkpoint a/best.pt b/best.pt --data demo data/wild --faithfulness --limit 200
  python explain.py --from-raw results/explanations --output-dir tables/

The first three forms write a figure for each image (original, overlay, map, strongest regions, score, verdict) as .pdf
and .png, and the overlay at the size of the image as <name>__<method>.png. Several methods are compared in
comparison.pdf. --contact-sheet adds sheets of true and false positives and negatives (labels come from the folder
names) and average maps over aligned faces with spectra. One line per image and method is printed:

  path,p_fake,verdict,target,method,all_zero,figure
  photos/a.jpg,0.9310963137134937,fake,fake,gradcam,no,runs/explanations/a.png

Methods: gradcam gradcam++ hirescam layercam eigencam scorecam (maps of one layer), attention (rollout; transformers),
steps (rows and columns of a CNN-LSTM), integrated_gradients, occlusion, superpixels (LIME), features (contributions of
the features of a classical detector, and the spectrum). A detector without a gradient supports occlusion, superpixels
and, if classical, features.

For a checkpoint that frames faces, the columns `framed` and `finder` say what was seen, as in predict.py. A picture
without a face is explained as a whole, although predict.py gives it no verdict.

A plausible map proves nothing. --faithfulness measures every method on the test split of each data set, together with
three controls that do not use the detector (random map, centre prior, edges): ROAD, insertion, deletion, verdicts
flipped by attacking the strongest segments and, where manipulation masks exist, whether the map points at them. A
method that does not beat every control, its own maps with shuffled weights included, is "not faithful here". Raw
numbers are kept in raw/ and reused by the next run; --from-raw makes the tables from them alone.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.listing.inputs import list_inputs, name_others
from datasets.listing.records import Listing
from datasets.listing.spec import open_limited
from utils.args import (
    add_device_group,
    add_face_detector,
    add_seed,
    check_output_dir,
    command_line,
    exit_code,
    int_in,
    make_parser,
    named_flags,
    run_script,
)
from utils.checkpoint_files import DEFAULT_CHECKPOINT, check_checkpoint_file
from utils.errors import UserError
from utils.explanations.registry import TARGETS, check_methods, method_names
from utils.files import open_output, shortened

if TYPE_CHECKING:
    import torch

    from utils.explanations.maps import Settings

COLUMNS = ("path", "p_fake", "verdict", "target", "method", "all_zero", "figure")
RESERVED = ("comparison", "contact_sheet", "average_maps")  # names of the sheets


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of explain.py."""
    parser = make_parser(__doc__, "explain.py")
    what = parser.add_argument_group("what to explain")
    what.add_argument("paths", nargs="*", metavar="PATH", help="image, folder, 'pattern' or list.csv")
    what.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="PT", help=f"a checkpoint or its run folder {DEFAULT_CHECKPOINT}"
    )
    what.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="METHOD",
        help=f"{', '.join(method_names())} (default: gradcam where it works; all of them with --faithfulness)",
    )
    what.add_argument(
        "--target",
        choices=TARGETS,
        help="the verdict to explain (default: predicted; fake with --faithfulness); `features` shows both",
    )
    what.add_argument(
        "--layer", metavar="NAME", help="layer of the CAM methods, or 'A B' for several (default: the detector's own)"
    )
    table = parser.add_argument_group("faithfulness")
    table.add_argument("--faithfulness", action="store_true", help="measure the methods on --data instead")
    table.add_argument("--data", nargs="+", default=[], metavar="SPEC", help="data sets (default split: test)")
    table.add_argument("--from-raw", metavar="DIR", help="make the tables of an earlier --output-dir again")
    table.add_argument("--limit", type=int_in(2), metavar="N", help="images per data set, balanced over the classes")
    add_seed(table)
    how = parser.add_argument_group("how")
    how.add_argument("--output-dir", metavar="DIR", default="runs/explanations", help="default: runs/explanations")
    how.add_argument("--contact-sheet", action="store_true", help="add sheets by outcome and average maps")
    how.add_argument("--overwrite", action="store_true", help="replace existing files in the output folder")
    how.add_argument("--batch-size", type=int_in(1), default=16)
    add_face_detector(how)
    add_device_group(parser, workers="")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Explain; returns ``rows`` (of stdout, or of the table), ``n_unreadable`` and ``exit_code`` (0 or 1)."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if not args.faithfulness:  # a single checkpoint; argparse took the paths after it for more checkpoints
        args.paths, args.checkpoint = args.checkpoint[1:] + args.paths, args.checkpoint[:1]
    methods = tuple(check_methods(args.methods))  # before the paths, which may have been taken for methods
    tasks = [bool(args.paths), args.faithfulness, bool(args.from_raw)]
    if tasks.count(True) != 1 or args.faithfulness != bool(args.data):
        parser.error("expected either PATH..., or --faithfulness with --data SPEC..., or --from-raw DIR")
    if args.limit and not args.faithfulness:
        parser.error("expected --limit with --faithfulness only, got it with PATH...; name fewer images")
    if args.contact_sheet and not args.paths:
        parser.error("expected --contact-sheet with PATH... only; drop it")
    if args.from_raw and (given := named_flags(parser, argv, ("checkpoint", "methods", "target", "layer"))):
        parser.error(f"expected no {', '.join(given)} with --from-raw, which only makes the tables again; drop it")
    if args.from_raw:
        return report([*Path(args.from_raw).glob("raw/*.csv")], check_output_dir(args.output_dir), args.seed)
    checkpoints = [check_checkpoint_file(path) for path in args.checkpoint or [None]]
    if args.faithfulness:
        listings, folder = [open_limited(text, args.limit) for text in args.data], check_output_dir(args.output_dir)
    else:
        paths, others = list_inputs(args.paths)
        folder = empty_output_dir(args.output_dir, args.overwrite)
        for line in name_others(others, "not an image"):
            print(line, file=sys.stderr)

    from datasets.faces.finder import check_face_detector
    from utils.explanations.maps import Settings
    from utils.runtime import set_up

    check_face_detector(args.face_detector)
    machine = set_up(args.device, args.precision, threads=args.threads)
    target = args.target or ("fake" if args.faithfulness else "predicted")
    settings = Settings(methods, target, args.layer, args.batch_size, args.seed, machine.dtype)
    if args.faithfulness:
        command = command_line("explain.py", argv)
        run = (machine.device, args.face_detector, command, args.overwrite)
        return measure(checkpoints, listings, folder, settings, *run)
    result = explain_images(
        checkpoints[0], paths, folder, settings, machine.device, args.face_detector, args.contact_sheet
    )
    return {**result, "exit_code": exit_code(result["n_unreadable"] + len(others))}


def empty_output_dir(path: str, overwrite: bool) -> Path:
    """Create the output folder; with ``overwrite`` it may contain files. Raises UserError."""
    folder = check_output_dir(path)
    found = sorted(file.name for file in folder.iterdir())
    if found and not overwrite:
        raise UserError(
            f"expected an empty --output-dir, found {len(found)} files in {path} ({found[0]}...); "
            "choose another folder or pass --overwrite"
        )
    return folder


def measure(
    checkpoints: Sequence[Path],
    listings: Sequence[Listing],
    folder: Path,
    settings: Settings,
    device: torch.device,
    face_detector: str | None,
    command: str,
    overwrite: bool,
) -> dict:
    """Measure every checkpoint on every data set; print and write the tables."""
    from datasets.faces.boxes import with_faces
    from datasets.faces.finder import open_finder
    from utils.evaluation.evaluate import load_candidates
    from utils.explanations.faithfulness.report import cell_methods, ensure_cell
    from utils.tables import unique_names

    names = unique_names([listing.name for listing in listings])
    files: list[Path] = []
    candidates = load_candidates(checkpoints, device)
    finder = open_finder(face_detector, any(candidate.detector.geometry.needs_face for candidate in candidates))
    listings = [with_faces(listing, finder) for listing in listings]
    for candidate in candidates:
        chosen = replace(settings, methods=cell_methods(candidate, settings.methods, settings.layer))
        for dataset, listing in zip(names, listings, strict=True):
            files.append(ensure_cell(folder, candidate, dataset, listing, chosen, command, overwrite))
    return report(files, folder, settings.seed)


def report(files: Sequence[Path], folder: Path, seed: int) -> dict:
    """Write and print the tables of measured cells."""
    from utils.explanations.faithfulness.report import write_report
    from utils.files import read_json

    rows = write_report(sorted(files), folder, seed)
    print((folder / "faithfulness.md").read_text(encoding="utf-8"), end="")
    unreadable = sum(len(read_json(file.with_suffix(".json"))["unreadable"]) for file in files)
    if unreadable:
        print(f"{unreadable} unreadable images were skipped", file=sys.stderr)
    return {"rows": rows, "n_unreadable": unreadable, "exit_code": exit_code(unreadable)}


def explain_images(
    checkpoint: Path,
    paths: Sequence[str],
    folder: Path,
    settings: Settings,
    device: torch.device,
    face_detector: str | None,
    contact_sheet: bool,
) -> dict:
    """Explain images one after the other, then draw the sheets; prints a row per image and method."""
    from datasets.faces.finder import open_finder
    from utils.checkpoints.file import load_detector
    from utils.explanations.registry import all_methods, check_usable, usable_methods
    from utils.explanations.sheets import draw_maps
    from utils.tables import unique_names

    detector, _ = load_detector(checkpoint, device)
    finder = open_finder(face_detector, detector.geometry.needs_face)
    usable = usable_methods(detector, settings.layer)
    methods = settings.methods or ("features" if "features" in usable else usable[0],)
    check_usable(detector, methods, settings.layer)
    maps = replace(settings, methods=tuple(method for method in methods if all_methods()[method].makes_maps))
    if contact_sheet and not maps.methods:
        raise UserError(
            f"expected a method that draws maps with --contact-sheet, got {', '.join(methods)}; "
            "choose one with --methods, or drop --contact-sheet"
        )
    names = [*RESERVED, *(shortened(Path(path).stem) for path in paths)]
    stems = [folder / stem for stem in unique_names(names)[len(RESERVED) :]]
    rows = []
    for method in methods:
        if not all_methods()[method].makes_maps:
            rows += all_methods()[method].function(detector, paths, stems, finder)
    if maps.methods:
        rows += draw_maps(detector, paths, stems, maps, contact_sheet, finder)
    failed = {row["path"]: row["error"] for row in rows if "error" in row}
    done = [row for row in rows if "error" not in row]
    columns = (*COLUMNS, "framed", "finder") if finder else COLUMNS
    with open_output(None) as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(done)
    for path, reason in failed.items():
        print(f"unreadable: {path}: {reason}", file=sys.stderr)
    images = "image" if len(paths) == 1 else "images"
    print(f"{len(paths)} {images}; {len(failed)} unreadable; figures in {folder}", file=sys.stderr)
    return {"rows": done, "n_unreadable": len(failed)}


if __name__ == "__main__":
    run_script(main)
