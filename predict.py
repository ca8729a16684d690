"""Score images with a trained detector: path, p_fake and a verdict for each.

  python predict.py photo.jpg                                   with the released detector
  python predict.py --checkpoint checkpoints/cnn-demo photo.jpg
  python predict.py --checkpoint best.pt photos/ 'more/**/*.png' list.csv --output predictions.csv
  find . -name '*.jpg' -print0 | python predict.py --checkpoint best.pt - --null --format json
  python predict.py --checkpoint exported.onnx photos/          an export of benchmark.py starts and runs faster

PATH is an image or video file with any suffix, a folder (all images and videos below it, but not in hidden folders or
those named masks), a pattern, quoted or not, a CSV list with a column `path` (relative paths start from the folder of
the list; write `csv:FILE` if it has another suffix), or - for paths on standard input. Results come in this order, each
batch as soon as it is scored:

  path,p_fake,verdict,logit
  photos/a.jpg,0.9310963137134937,fake,2.6027159690856934
  photos/b.jpg,0.4830182402281519,unsure,-0.06795344501733780
  photos/c.jpg,0.0211754892021417,real,-3.8336496353149414

p_fake is in [0, 1] and calibrated; a logit above 0 leans towards fake. The verdict is fake, real or, between two limits
that the checkpoint stores, unsure. With --threshold there are two verdicts: from the threshold on fake, otherwise real.
A verdict is the opinion of this detector, not proof: detectors miss more images of generators they have not seen in
training.

If the checkpoint frames faces (--geometry face of train.py), only the largest face is scored. With --faces, each has a
row, the most suspicious one first; the verdict in that row is the picture's and the one that the summary counts. Faces
are numbered by size; boxes are in px of the upright picture. A picture or video without a face gets the verdict `no
face`, or with --whole that of the whole picture. The column `framed` holds face or whole, `finder` what searched: yunet
or cascade.

  path,p_fake,verdict,logit,framed,finder,face,left,top,width,height,confidence
  party.jpg,0.9012450121180532,fake,2.2110357203781982,face,yunet,2,1210,388,212,251,0.9312
  party.jpg,0.0502110061028434,real,-2.9399827003479004,face,yunet,1,402,311,230,284,0.9437
  beach.jpg,,no face,,,yunet,,,,,,

With --metadata, a column `metadata` lists what the file of a picture says about itself: generators, source types,
Content Credentials, software, camera; in CSV as `what: value (where)`, in JSON as objects with these keys. Anybody can
write or remove such statements, so they never change a score.

If you know the right answer, --save-case DIR --label fake saves each readable picture of the call as a regression test:
`python evaluate.py --data csv:DIR/cases.csv` scores all saved cases. Nothing leaves this machine.

In a video, evenly spaced frames are scored (--every, --max-frames). Each face is followed through them and has a row
with its number, its interval and the number of frames that show it; its logit is the mean over these. The most
suspicious face comes first and decides the verdict; faces in fewer than 3 frames count only if there are no others:

  path,p_fake,verdict,logit,framed,finder,track,start_s,end_s,frames
  clip.mp4,0.7547847931927464,fake,4.203415250778198,face,yunet,2,0.0,29.5,60
  clip.mp4,0.3346216048876493,real,-2.5698211193084717,face,yunet,1,4.5,21.0,34

JSON output is an array of such objects. Files that cannot be read are {"path", "error"} in it, and so, at its end, are
files in a folder that are neither images nor videos. CSV output omits both. They are always listed on stderr (more than
20 of the latter by suffix), never scored, and make the exit code 1. The last line on stderr is a summary:

  12 images: 5 real, 4 fake, 1 unsure, 1 no face; 1 unreadable; 2 other files left out
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from datasets.decoding.containers import is_video
from datasets.listing.inputs import NEITHER, check_output, list_inputs, name_others
from datasets.listing.records import Record, Sampling
from utils.args import (
    add_device_group,
    add_face_group,
    check_output_dir,
    exit_code,
    float_in,
    int_in,
    make_parser,
    run_script,
)
from utils.checkpoint_files import DEFAULT_CHECKPOINT, check_checkpoint_file
from utils.engines.registry import ENGINES
from utils.errors import UserError
from utils.files import open_output
from utils.scoring.cases import add_case_group, check_cases, save_cases
from utils.scoring.rows import NO_FACE, WRITERS, Item, columns_of, in_order, picture_rows, video_rows

if TYPE_CHECKING:
    import numpy as np

    from datasets.faces.finder import Face
    from utils.scoring.tracks import ScoredVideo

VERDICTS = ("real", "fake", "unsure", NO_FACE)
THRESHOLDS = ("balanced", "fpr1", "fpr01")


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
        metavar="T",
        help="two verdicts instead of three: fake from this p_fake on; balanced, fpr1 or fpr01 (1 %% or 0.1 %% false "
        "alarms where it was fitted), or a number in [0, 1]",
    )
    batch = "images per batch; larger batches need more memory and are faster only on a GPU (default: 8)"
    parser.add_argument("--batch-size", type=int_in(1), default=8, help=batch)
    parser.add_argument(
        "--engine",
        choices=("auto", *ENGINES),
        default="auto",
        metavar="NAME",
        help="engine that runs the detector, see benchmark.py --help (default: auto, which is torch for "
        "a checkpoint, and for an export the engine it was made for)",
    )
    parser.add_argument(
        "--metadata", action="store_true", help="list what each file says about its origin; changes no score"
    )
    whole = "score the whole picture if no face is found in it, instead of the verdict `no face`"
    add_face_group(parser).add_argument("--whole", action="store_true", help=whole)
    add_video_group(parser)
    add_case_group(parser)
    add_device_group(parser, workers="threads that decode images (default: one per CPU core)")
    return parser


def add_video_group(parser: argparse.ArgumentParser) -> None:
    """Add --every, --max-frames and --timeline."""
    group, (every, most) = parser.add_argument_group("videos"), Sampling()
    interval = f"time between the frames that are scored (default: {every:g})"
    group.add_argument("--every", type=float_in(0.01, 3600, "s"), default=every, metavar="SECONDS", help=interval)
    limit = f"frames of one video; in a longer one they are further apart (default: {most})"
    group.add_argument("--max-frames", type=int_in(1, 100_000), default=most, metavar="N", help=limit)
    group.add_argument("--timeline", metavar="DIR", help="write scores over time: a CSV file and a figure per video")


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
    """Predict; returns ``{"n_images", "n_unreadable", "n_left_out", "verdicts": {verdict: n}, "exit_code": 0 or 1}``.

    ``n_images`` counts all requested images, readable or not, but not the other files that were left out.
    """
    args = get_args_parser().parse_args(argv)
    checkpoint = check_checkpoint_file(args.checkpoint)
    if args.null and "-" not in args.paths:
        raise UserError("expected - among the PATHs with --null, got none; --null describes paths on stdin")
    paths, others = list_inputs(args.paths, args.null, videos=True)
    records = [Record(path, None, "") for path in paths]
    videos = [record.path for record in records if is_video(record.path)]
    if args.timeline and not videos:
        raise UserError("expected a video among the PATHs with --timeline, got pictures only; drop the flag")
    folder = check_output_dir(args.timeline, "--timeline") if args.timeline else None
    if args.output:
        check_output(args.output, args.paths, paths)
    cases = check_cases(args.save_case, args.label, videos)
    counts: Counter[str] = Counter()
    crowded: list[int] = []  # how many faces were found in each picture of which only the largest one is scored
    with open_output(args.output) as stream:
        from datasets.faces.finder import check_face_detector, open_finder
        from utils.scoring.prediction import open_predictor, predict_records, predict_videos
        from utils.scoring.timeline import write_timelines

        check_face_detector(args.face_detector)
        predictor = open_predictor(checkpoint, args.engine, args.device, args.precision, args.threads)
        point = predictor.operating_point
        point.limits(args.threshold)  # reports an unknown threshold before any image is read
        if args.threshold is None and not point.thresholds:
            print("the checkpoint has no fitted thresholds: p_fake >= 0.5 is fake, nothing is unsure", file=sys.stderr)
        is_searched = args.faces or predictor.geometry.needs_face
        is_whole = args.whole or not is_searched
        finder = open_finder(args.face_detector, is_searched or bool(videos))
        name = finder.name if finder else ""

        def find(image: np.ndarray) -> list[Face]:
            faces = finder(image) if finder else []
            crowded.extend([len(faces)] if len(faces) > 1 and not args.faces else [])
            return faces

        def score_pictures(run: Sequence[Record]) -> Iterator[list[Item]]:
            searched = find if is_searched else None
            batches = predict_records(predictor, run, args.batch_size, args.workers, searched, args.faces, is_whole)
            return picture_rows(batches, run, point, args.threshold, name if is_searched else None, args.faces)

        scored: Iterator[ScoredVideo] = iter(())
        if finder and videos:
            sampling = Sampling(args.every, args.max_frames)
            scored = predict_videos(predictor, videos, sampling, finder, args.batch_size, is_whole)
        if folder:
            scored = write_timelines(scored, videos, folder, point, args.threshold)
        items = in_order(records, videos, score_pictures, video_rows(scored, point, args.threshold, name))
        rows: Iterator[Item] = chain(
            report(items, len(records), counts, quiet=stream.isatty()),
            ([{"path": path, "error": NEITHER}] for path in others),
        )
        if args.metadata:
            from utils.metadata.findings import add_findings

            rows = add_findings(rows, as_text=args.format == "csv")
        if cases:
            rows = save_cases(rows, cases, args.label)
        columns = columns_of(args.faces, finder is not None, bool(videos), args.metadata)
        WRITERS[args.format](stream, rows, columns)
    end = summary(counts, len(records) - len(videos), len(videos), len(others), len(crowded))
    print(*name_others(others, NEITHER), end, sep="\n", file=sys.stderr)
    return {
        "n_images": len(records),
        "n_unreadable": counts["unreadable"],
        "n_left_out": len(others),
        "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
        "exit_code": exit_code(counts["unreadable"] + len(others)),
    }


def report(batches: Iterator[list[Item]], total: int, counts: Counter[str], quiet: bool = False) -> Iterator[Item]:
    """Pass rows on; count verdicts, list unreadable inputs on stderr and, unless quiet, show progress there."""
    from tqdm import tqdm

    # None shows the bar on a terminal only; rows that go to the same terminal are progress enough.
    with tqdm(total=total, unit="img", disable=True if quiet else None, leave=False) as bar:
        for items in batches:
            for row, *_ in items:
                counts[row.get("verdict", "unreadable")] += 1
                counts["faceless"] += row.get("framed") == "whole"
                if "error" in row:
                    tqdm.write(f"unreadable: {row['path']}: {row['error']}", file=sys.stderr)
            yield [row for item in items for row in item]
            bar.update(len(items))


def summary(counts: Counter[str], n_images: int, n_videos: int, n_others: int, n_crowded: int = 0) -> str:
    """The last line on stderr."""
    inputs = " and ".join(f"{n} {kind}{'s' * (n != 1)}" for n, kind in ((n_images, "image"), (n_videos, "video")) if n)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict != NO_FACE or counts[verdict])
    faceless = f"; {counts['faceless']} without a face, scored as a whole" if counts["faceless"] else ""
    others = f"; {n_others:,} other file{'s' * (n_others != 1)} left out" if n_others else ""
    crowded = f"; {n_crowded} with more faces than the one scored (--faces scores all)" if n_crowded else ""
    return f"{inputs}: {tally}; {counts['unreadable']} unreadable{others}{faceless}{crowded}"


if __name__ == "__main__":
    run_script(main)
