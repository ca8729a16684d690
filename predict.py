"""Score images with a trained detector: path, p_fake and a verdict for each.

  python predict.py photo.jpg                                   with the released detector
  python predict.py --checkpoint checkpoints/cnn-demo photo.jpg
  python predict.py --checkpoint best.pt photos/ 'more/**/*.png' list.csv --output predictions.csv
  find . -name '*.jpg' -print0 | python predict.py --checkpoint best.pt - --null --format json
  python predict.py --checkpoint exported.onnx photos/          an export of benchmark.py: starts and runs faster

PATH is an image file of any suffix, a folder (all images below it), a quoted or unquoted pattern, a CSV list
with a column `path` (relative paths start from the folder of the list; `csv:FILE` where the suffix is another
one), or - for paths on standard input. Results come in this order, each batch as soon as it is scored:

  path,p_fake,verdict,logit
  photos/a.jpg,0.9310963137134937,fake,2.6027159690856934
  photos/b.jpg,0.4830182402281519,unsure,-0.06795344501733780
  photos/c.jpg,0.0211754892021417,real,-3.8336496353149414

p_fake is in [0, 1] and calibrated, a logit above 0 leans to fake. The verdict is fake, real or unsure: unsure
is a band around the checkpoint's balanced threshold, fitted on validation images. With any other --threshold
there is no such band: p_fake >= threshold is fake, everything else is real. A verdict is a score of this
detector, not proof; generators that it has not seen in training are missed more often than the test rows say.

The JSON format is an array of {"path", "p_fake", "verdict", "logit"}, with {"path", "error"} in the place of
an image that cannot be read. The CSV format leaves these out. Either way they are listed on stderr, never
given a score, and make the exit code 1. The last line on stderr is a summary:

  12 images: 5 real, 5 fake, 1 unsure; 1 unreadable
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from datasets.inputs import PathRecords, list_inputs
from datasets.records import Record
from utils.args import (
    EXIT_DONE,
    EXIT_PARTIAL,
    add_device_group,
    add_face_group,
    finder_name,
    float_in,
    int_in,
    make_parser,
    run_script,
)
from utils.checkpoints.released import DEFAULT_HELP, checkpoint_or_release
from utils.engines.exported import is_onnx
from utils.engines.registry import ENGINES
from utils.errors import UserError
from utils.files import open_output

if TYPE_CHECKING:
    from models.operating_point import OperatingPoint

COLUMNS = ("path", "p_fake", "verdict", "logit")
VERDICTS = ("real", "fake", "unsure")
THRESHOLDS = ("balanced", "fpr1", "fpr01")

Row = dict[str, Any]  # one of COLUMNS to its value, or {"path", "error"}


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of predict.py."""
    parser = make_parser(__doc__, "predict.py")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, folder, 'pattern', list.csv or - (stdin)")
    parser.add_argument(
        "--checkpoint",
        metavar="PT",
        help=f"a checkpoint of train.py or its run folder, or an export of benchmark.py {DEFAULT_HELP}",
    )
    parser.add_argument("--null", action="store_true", help="paths on stdin end with a null byte, as of find -print0")
    parser.add_argument("--format", choices=sorted(WRITERS), default="csv", help="default: csv")
    parser.add_argument("--output", metavar="FILE", help="write there, all or nothing (default: stdout)")
    parser.add_argument(
        "--threshold",
        type=threshold_value,
        default="balanced",
        metavar="T",
        help="balanced, fpr1 or fpr01 (1 %% or 0.1 %% false alarms on validation), or a p_fake in "
        "[0, 1] (default: balanced)",
    )
    parser.add_argument("--batch-size", type=int_in(1), default=32)
    parser.add_argument(
        "--engine",
        choices=("auto", *ENGINES),
        default="auto",
        metavar="NAME",
        help="what runs the detector, see benchmark.py --help; auto is torch for a checkpoint, and for "
        "an export the engine that it was made for (default: auto)",
    )
    add_face_group(parser)
    add_device_group(parser)
    return parser


def threshold_value(text: str) -> str | float:
    """Parse --threshold: the name of a fitted threshold or a number."""
    if text in THRESHOLDS:
        return text
    try:
        return float_in(0, 1)(text)
    except argparse.ArgumentTypeError:
        names = ", ".join(THRESHOLDS)
        raise argparse.ArgumentTypeError(f"expected {names} or a number in [0, 1], got {text!r}") from None


def main(argv: Sequence[str] | None = None) -> dict:
    """Predict; returns ``{"n_images", "n_unreadable", "verdicts": {verdict: count}, "exit_code": 0 or 1}``.

    ``n_images`` counts every image that was asked for, readable or not.
    """
    args = get_args_parser().parse_args(argv)
    checkpoint_file = checkpoint_or_release(args.checkpoint)
    check_output_is_no_input(args.output, args.paths)
    if args.null and "-" not in args.paths:
        raise UserError("expected - among the PATHs with --null, got none; --null is about paths on stdin")
    paths = list_inputs(args.paths, args.null)
    counts: Counter[str] = Counter()
    with open_output(args.output) as stream:
        batches = predict(args, checkpoint_file, PathRecords(paths))
        WRITERS[args.format](stream, report(batches, len(paths), counts, quiet=stream.isatty()))
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    images = "image" if len(paths) == 1 else "images"
    print(f"{len(paths)} {images}: {tally}; {counts['unreadable']} unreadable", file=sys.stderr)
    return {
        "n_images": len(paths),
        "n_unreadable": counts["unreadable"],
        "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
        "exit_code": EXIT_PARTIAL if counts["unreadable"] else EXIT_DONE,
    }


def predict(args: argparse.Namespace, checkpoint_file: Path, records: Sequence[Record]) -> Iterator[list[Row]]:
    """Load the detector, then return an iterator that scores batch after batch, in the order of the records."""
    from datasets.faces import FaceFinder
    from models.operating_point import OperatingPoint
    from utils.scoring.prediction import open_checkpoint, open_engine, open_exported

    name = finder_name(args)
    finder = FaceFinder(name) if name else None
    common = {"batch_size": args.batch_size, "workers": args.workers, "threads": args.threads, "finder": finder}
    if is_onnx(checkpoint_file):
        check_flags_of_export(args)
        scores, checkpoint = open_exported(checkpoint_file, records, args.engine, **common)
    elif args.engine == "auto":
        scores, checkpoint = open_checkpoint(checkpoint_file, records, args.device, args.precision, **common)
    else:
        scores, checkpoint = open_engine(checkpoint_file, records, args.engine, args.device, **common)
    point = OperatingPoint.from_checkpoint(checkpoint)
    point.threshold(args.threshold)  # an unknown one is reported before any image is read
    if args.threshold == "balanced" and not point.thresholds:
        print("the checkpoint has no fitted thresholds: p_fake >= 0.5 is fake, nothing is unsure", file=sys.stderr)
    return rows_of_batches(scores, records, point, args.threshold)


def check_flags_of_export(args: argparse.Namespace) -> None:
    """Raise UserError for flags that an export has settled already."""
    if args.device not in ("auto", "cpu") or args.precision != "auto":
        raise UserError(
            "expected --device cpu and --precision auto with an export, which runs on the CPU in its own precision, "
            f"got --device {args.device} --precision {args.precision}"
        )


def rows_of_batches(
    scores: Iterator, records: Sequence[Record], point: OperatingPoint, threshold: str | float
) -> Iterator[list[Row]]:
    """Turn what the scorer yields into one list of rows per batch."""
    for indices, logits, unreadable in scores:
        rows: dict[int, Row] = {index: {"path": records[index].path, "error": reason} for index, reason in unreadable}
        p_fake = point.p_fake(logits)
        columns = indices.tolist(), p_fake.tolist(), point.verdicts(p_fake, threshold), logits.tolist()
        for index, *values in zip(*columns, strict=True):
            rows[index] = dict(zip(COLUMNS, (records[index].path, *values), strict=True))
        yield [rows[index] for index in sorted(rows)]


def report(batches: Iterator[list[Row]], total: int, counts: Counter[str], quiet: bool = False) -> Iterator[list[Row]]:
    """Pass batches on; count verdicts, list unreadable images on stderr and, unless quiet, show progress there."""
    from tqdm import tqdm

    # None shows the bar on a terminal only; rows that go to the same terminal are progress enough.
    with tqdm(total=total, unit="img", disable=True if quiet else None, leave=False) as bar:
        for rows in batches:
            for row in rows:
                counts[row.get("verdict", "unreadable")] += 1
                if "error" in row:
                    tqdm.write(f"unreadable: {row['path']}: {row['error']}", file=sys.stderr)
            yield rows
            bar.update(len(rows))


def write_csv(stream: TextIO, batches: Iterator[list[Row]]) -> None:
    """Write readable images as CSV; floats read back bit-equal."""
    writer = csv.writer(stream, lineterminator="\n")
    # csv leaves a carriage return bare that is not part of its own line end, and then reads it as one.
    quoting_writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(COLUMNS)
    for rows in batches:
        for row in rows:
            if "error" not in row:
                chosen = quoting_writer if "\r" in row["path"] else writer
                chosen.writerow([row[column] for column in COLUMNS])
        stream.flush()


def write_json(stream: TextIO, batches: Iterator[list[Row]]) -> None:
    """Write all images as a JSON array, one element per line, as they come."""
    separator = "[\n"
    for rows in batches:
        for row in rows:
            stream.write(separator + json.dumps(row))
            separator = ",\n"
        stream.flush()
    stream.write("\n]\n" if separator == ",\n" else "[]\n")
    stream.flush()


WRITERS = {"csv": write_csv, "json": write_json}


def check_output_is_no_input(output: str | None, paths: Sequence[str]) -> None:
    """Keep --output from replacing a list or an image that is about to be read. Raises UserError."""
    for path in paths:
        file = path.removeprefix("csv:")
        if output and os.path.isfile(output) and os.path.isfile(file) and os.path.samefile(output, file):
            raise UserError(f"expected --output to be another file than the inputs, got {output}; choose another name")


if __name__ == "__main__":
    run_script(main)
