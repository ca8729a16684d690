"""Score images with a trained detector: path, p_fake and a verdict for each.

  python predict.py photo.jpg                                   with the released detector
  python predict.py --checkpoint checkpoints/cnn-demo photo.jpg
  python predict.py --checkpoint best.pt photos/ 'more/**/*.png' list.csv --output predictions.csv
  find . -name '*.jpg' -print0 | python predict.py --checkpoint best.pt - --null --format json
  python predict.py --checkpoint exported.onnx photos/          an export of benchmark.py starts and runs faster

PATH is an image file with any suffix, a folder (all images below it), a pattern, quoted or not, a CSV list with a
column `path` (relative paths start from the folder of the list; write `csv:FILE` if it has another suffix), or -
for paths on standard input. Results come in this order, each batch as soon as it is scored:

  path,p_fake,verdict,logit
  photos/a.jpg,0.9310963137134937,fake,2.6027159690856934
  photos/b.jpg,0.4830182402281519,unsure,-0.06795344501733780
  photos/c.jpg,0.0211754892021417,real,-3.8336496353149414

p_fake is in [0, 1] and calibrated; a logit above 0 leans towards fake. The verdict is fake, real or unsure: unsure is
a band around the checkpoint's balanced threshold, fitted on validation images. Any other --threshold has no such
band: p_fake >= threshold is fake, everything else is real. A verdict is the opinion of this detector, not proof:
detectors miss more images of generators they have not seen in training.

If the checkpoint frames faces (--geometry face of train.py), the largest face is scored: a column `framed` holds face,
or whole for a picture without one, and `finder` what searched it: yunet or cascade. With --faces, every face is scored,
and a column `faces` holds their number. With --metadata, a column `metadata` lists what the file says about itself, in
JSON as {"what", "value", "where"}: generators, source types, Content Credentials, software, camera. Anybody can write
or remove such statements, so they never change a score.

JSON output is an array of {"path", "p_fake", "verdict", "logit"}, with {"path", "error"} for images that cannot be
read. CSV output leaves these out. They are always listed on stderr, never scored, and make the exit code 1. The last
line on stderr is a summary:

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
from typing import TYPE_CHECKING, Any, TextIO

from datasets.inputs import list_inputs
from datasets.records import Record
from utils.args import (
    DEFAULT_CHECKPOINT,
    add_device_group,
    add_face_group,
    check_checkpoint_file,
    exit_code,
    float_in,
    int_in,
    make_parser,
    run_script,
)
from utils.engines.registry import ENGINES
from utils.errors import UserError
from utils.files import open_output

if TYPE_CHECKING:
    from models.operating_point import OperatingPoint
    from utils.distributed import ScoredBatch

COLUMNS = ("path", "p_fake", "verdict", "logit")
VERDICTS = ("real", "fake", "unsure")
THRESHOLDS = ("balanced", "fpr1", "fpr01")

Row = dict[str, Any]  # COLUMNS and, where faces were searched, faces, framed and finder; or path and error


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of predict.py."""
    parser = make_parser(__doc__, "predict.py")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, folder, 'pattern', list.csv or - (stdin)")
    parser.add_argument(
        "--checkpoint",
        metavar="PT",
        help=f"a checkpoint of train.py or its run folder, or an export of benchmark.py {DEFAULT_CHECKPOINT}",
    )
    parser.add_argument("--null", action="store_true", help="paths on stdin end with a null byte (find -print0)")
    parser.add_argument("--format", choices=sorted(WRITERS), default="csv", help="default: csv")
    parser.add_argument("--output", metavar="FILE", help="write to this file once all images are scored, not to stdout")
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
        "an export the engine it was made for (default: auto)",
    )
    parser.add_argument(
        "--metadata", action="store_true", help="list what each file says about its origin; changes no score"
    )
    add_face_group(parser)
    add_device_group(parser, workers="threads that decode images (default: one per CPU core)")
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

    ``n_images`` counts all requested images, readable or not.
    """
    args = get_args_parser().parse_args(argv)
    checkpoint = check_checkpoint_file(args.checkpoint)
    if args.null and "-" not in args.paths:
        raise UserError("expected - among the PATHs with --null, got none; --null describes paths on stdin")
    records = [Record(path, None, "") for path in list_inputs(args.paths, args.null)]
    if args.output:
        check_output(args.output, [*(path.removeprefix("csv:") for path in args.paths), *(r.path for r in records)])
    counts: Counter[str] = Counter()
    with open_output(args.output) as stream:
        from datasets.faces import FaceFinder, open_finder
        from utils.scoring.prediction import open_predictor, predict_records

        if args.face_detector:
            FaceFinder(args.face_detector)  # reports a file that is none before a model is loaded
        predictor = open_predictor(checkpoint, args.engine, args.device, args.precision, args.threads)
        point = predictor.operating_point
        point.threshold(args.threshold)  # reports an unknown one before any image is read
        if args.threshold == "balanced" and not point.thresholds:
            print("the checkpoint has no fitted thresholds: p_fake >= 0.5 is fake, nothing is unsure", file=sys.stderr)
        finder = open_finder(args.face_detector, args.faces or predictor.geometry.needs_face)
        batches = predict_records(predictor, records, args.batch_size, args.workers, finder, args.faces)
        rows = make_rows(batches, records, point, args.threshold, finder.name if finder else None, args.faces)
        columns = (*COLUMNS, *(("faces",) if args.faces else ()), *(("framed", "finder") if finder else ()))
        if args.metadata:
            from utils.metadata.findings import add_findings

            rows, columns = add_findings(rows, as_text=args.format == "csv"), (*columns, "metadata")
        WRITERS[args.format](stream, report(rows, len(records), counts, quiet=stream.isatty()), columns)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    faceless = f"; {counts['faceless']} without a face, scored as a whole" if counts["faceless"] else ""
    images = "image" if len(records) == 1 else "images"
    print(f"{len(records)} {images}: {tally}; {counts['unreadable']} unreadable{faceless}", file=sys.stderr)
    return {
        "n_images": len(records),
        "n_unreadable": counts["unreadable"],
        "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
        "exit_code": exit_code(counts["unreadable"]),
    }


def check_output(output: str, inputs: Sequence[str]) -> None:
    """Raise UserError if --output would replace a list or an image that is about to be read."""
    if not os.path.isfile(output):
        return
    for path in inputs:
        if os.path.isfile(path) and os.path.samefile(output, path):
            raise UserError(f"expected --output to differ from the inputs, got {output}; choose another name")


def make_rows(
    batches: Iterator[ScoredBatch],
    records: Sequence[Record],
    point: OperatingPoint,
    threshold: str | float,
    finder: str | None,
    with_faces: bool,
) -> Iterator[list[Row]]:
    """Turn each batch of ``predict_records`` into rows, in the order of the records."""
    for indices, (logits, faces), unreadable in batches:
        rows: dict[int, Row] = {index: {"path": records[index].path, "error": reason} for index, reason in unreadable}
        p_fake = point.p_fake(logits)
        columns = indices.tolist(), p_fake.tolist(), point.verdicts(p_fake, threshold), logits.tolist(), faces.tolist()
        for index, *values, n_faces in zip(*columns, strict=True):
            rows[index] = dict(zip(COLUMNS, (records[index].path, *values), strict=True))
            if with_faces:
                rows[index]["faces"] = int(n_faces)
            if finder:
                rows[index] |= {"framed": "face" if n_faces else "whole", "finder": finder}
        yield [rows[index] for index in sorted(rows)]


def report(batches: Iterator[list[Row]], total: int, counts: Counter[str], quiet: bool = False) -> Iterator[list[Row]]:
    """Pass rows on; count verdicts, list unreadable images on stderr and, unless quiet, show progress there."""
    from tqdm import tqdm

    # None shows the bar on a terminal only; rows that go to the same terminal are progress enough.
    with tqdm(total=total, unit="img", disable=True if quiet else None, leave=False) as bar:
        for rows in batches:
            for row in rows:
                counts[row.get("verdict", "unreadable")] += 1
                counts["faceless"] += row.get("framed") == "whole"
                if "error" in row:
                    tqdm.write(f"unreadable: {row['path']}: {row['error']}", file=sys.stderr)
            yield rows
            bar.update(len(rows))


def write_csv(stream: TextIO, batches: Iterator[list[Row]], columns: Sequence[str]) -> None:
    """Write readable images as CSV; floats read back bit-equal."""
    writer = csv.writer(stream, lineterminator="\n")
    # csv does not quote a carriage return unless it is part of the line end, but reads it as one.
    quoting_writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(columns)
    for rows in batches:
        for row in rows:
            if "error" not in row:
                chosen = quoting_writer if "\r" in row["path"] else writer
                chosen.writerow([row[column] for column in columns])
        stream.flush()


def write_json(stream: TextIO, batches: Iterator[list[Row]], columns: Sequence[str]) -> None:
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


if __name__ == "__main__":
    run_script(main)
