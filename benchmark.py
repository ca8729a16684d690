"""Find the fastest engine that still gives the right answers, and export a checkpoint for it.

  python benchmark.py --checkpoint checkpoints/cnn-140k --data data/140k
  python benchmark.py --checkpoint a/best.pt b/best.pt --data data/140k --engines onnx onnx-int8 openvino-bf16
  python benchmark.py --checkpoint a/best.pt --export onnx --output a.onnx
  python benchmark.py --checkpoint a/best.pt --export int8 --data data/140k --output a-int8.onnx
  python benchmark.py --checkpoint a/best.pt --export openvino --output a-fast.onnx

The first two commands measure engines against `eager`, which is torch in float32 as most people run it. Each engine
runs in a separate process. Engine and baseline take turns on the same batches; the speed-up is the median ratio of
neighbouring turns (with its range), so a little other load hardly matters; on a busy machine no figure means much.
Quality is measured on the test images at the checkpoint's calibration and threshold; the adversarial images are PGD-10
at 1/255 against eager, the same for every engine. Memory is the peak resident size of the process, including Python and
libraries. Engines:

ENGINES
The output folder holds cells/ (one JSON file per checkpoint and engine; a second run measures only missing or outdated
ones), the tables benchmark and speed (.csv, .md, .tex) and the figure pareto (.pdf, .png). The table is printed:

  | Checkpoint | Engine        | p50 (ms) | ... | Images/s | Batch |          Speed-up | AUC   | ... | Note     |
  | cnn-140k   | eager         |     16.2 | ... |     88.1 |    16 |              1.00 | 0.831 | ... | baseline |
  | cnn-140k   | openvino-bf16 |      5.1 | ... |    260.3 |    16 | 2.95 [2.90, 3.01] | 0.830 | ... |          |

--export writes one ONNX file that includes geometry, thresholds and calibration: predict.py, evaluate.py and serve.py
accept it as --checkpoint. `onnx` is float32 for ONNX Runtime, `int8` is calibrated on training images (transformers get
int8 weights alone), `openvino` is float32 for OpenVINO, which runs it in bfloat16. FILE.json reports how far its logits
are from the checkpoint's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.listing.spec import open_limited
from utils.args import (
    add_base_weights,
    add_face_detector,
    check_output_dir,
    command_line,
    exit_code,
    int_in,
    make_parser,
    named_flags,
    run_script,
)
from utils.checkpoint_files import check_checkpoint_file
from utils.engines.registry import BASELINE, ENGINES, missing
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.benchmarking.cells import Settings
    from utils.benchmarking.subject import Subject

CACHE = "data/benchmark"
MEASURED = "engines batch_sizes limit adversarial_images repeats threads device overwrite output_dir".split()
EXPORTS = {"onnx": "onnx", "int8": "onnx-int8", "openvino": "openvino-bf16"}  # the engine that `auto` chooses for each


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of benchmark.py."""
    listed = "\n".join(f"  {name:14s} {kind.what}" for name, kind in ENGINES.items())
    parser = make_parser((__doc__ or "").replace("ENGINES\n", listed + "\n\n"), "benchmark.py")
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="PT", help="checkpoints, or run folders")
    parser.add_argument("--data", metavar="SPEC", help="data set whose test split is scored")
    parser.add_argument("--calibration-data", metavar="SPEC", help="training images for int8 (default: --data)")
    measure = parser.add_argument_group("what to measure")
    measure.add_argument(
        "--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES), metavar="NAME", help="default: all"
    )
    measure.add_argument(
        "--batch-sizes", nargs="+", type=int_in(1), default=[1, 8, 16], metavar="N", help="default: 1 8 16"
    )
    measure.add_argument("--limit", type=int_in(2), metavar="N", help="score N test images, balanced (default: all)")
    measure.add_argument("--adversarial-images", type=int_in(0), default=32, metavar="N", help="default: 32")
    measure.add_argument("--repeats", type=int_in(1), default=5, help="turns of each engine (default: 5)")
    measure.add_argument("--threads", type=int_in(1, 1024), default=2, help="CPU threads of each engine (default: 2)")
    measure.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    measure.add_argument("--overwrite", action="store_true", help="measure finished cells again")
    measure.add_argument("--output-dir", metavar="DIR", default="results/benchmark", help="default: results/benchmark")
    add_base_weights(parser)
    parser.add_argument(
        "--cache-dir", metavar="DIR", default=CACHE, help=f"keeps exports and attacks (default: {CACHE})"
    )
    add_face_detector(parser)
    export = parser.add_argument_group("export")
    export.add_argument("--export", choices=sorted(EXPORTS), help="write one file instead of measuring")
    export.add_argument("--output", metavar="FILE.onnx", help="the file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure or export; returns ``{"rows" or "parity", "exit_code": 0 or 1}``."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    command = command_line("benchmark.py", argv)
    files = [check_checkpoint_file(path, needs_weights=True) for path in args.checkpoint]
    calibration_data = args.calibration_data or args.data
    if args.export:
        if len(files) != 1 or not args.output or not args.output.endswith(".onnx"):
            parser.error("expected one --checkpoint and --output FILE.onnx with --export")
        if args.export == "int8" and not calibration_data:
            parser.error("expected --calibration-data SPEC or --data SPEC, a training set, with --export int8")
        if args.export != "int8" and args.calibration_data:
            parser.error(f"expected --export int8 with --calibration-data, got {args.export}; drop the flag")
        if given := named_flags(parser, argv, MEASURED):
            parser.error(f"expected no {', '.join(given)} with --export, which measures nothing; drop it")
        if args.data:
            open_limited(args.data, 2)  # checked before the export, which takes longer
        sets = (args.data, calibration_data, args.face_detector)
        return export_one(files[0], args.export, Path(args.output), *sets, command)
    if args.output:
        parser.error(
            f"expected --export {{{','.join(sorted(EXPORTS))}}} with --output, got none; add it or drop --output"
        )
    if not args.data:
        parser.error("expected --data SPEC to measure, or --export with --output FILE.onnx")
    folder = check_output_dir(args.output_dir)

    from datasets.faces.finder import check_face_detector
    from utils.benchmarking.cells import Settings
    from utils.benchmarking.report import write_benchmark
    from utils.benchmarking.subject import open_subject
    from utils.evaluation.evaluate import checkpoint_names
    from utils.runtime import pick_device

    check_face_detector(args.face_detector)
    device = str(pick_device(args.device))
    engines = usable_engines(args.engines, device)
    settings = Settings(args.batch_sizes, args.repeats, args.threads, device)
    limits = (args.limit, args.adversarial_images)
    cells, unreadable = [], 0
    for name, file in zip(checkpoint_names(files), files, strict=True):
        subject = open_subject(
            file, args.data, calibration_data, *limits, engines, Path(args.cache_dir), args.face_detector
        )
        cells += measure_checkpoint(subject, name, engines, settings, folder / "cells", command, args.overwrite)
        unreadable += subject.n_unreadable
    rows = write_benchmark(cells, folder)
    print((folder / "benchmark.md").read_text(encoding="utf-8"), end="")
    return {"rows": rows, "exit_code": exit_code(unreadable)}


def usable_engines(names: Sequence[str], device: str) -> list[str]:
    """The engines that run here, the baseline first; the others are reported on stderr."""
    reasons = {name: missing(name, device) for name in ENGINES if name in {BASELINE, *names}}
    for name, reason in reasons.items():
        if reason:
            print(f"{name}: skipped, {reason}", file=sys.stderr)
    return [name for name, reason in reasons.items() if reason is None]


def measure_checkpoint(
    subject: Subject,
    name: str,
    engines: Sequence[str],
    settings: Settings,
    folder: Path,
    command: str,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Measure the missing cells of a checkpoint; returns all of them.

    If an engine other than the baseline fails on this detector, its cell is the reason.
    """
    import numpy as np

    from utils.benchmarking.cells import measure_cell, start
    from utils.files import plain_values, read_json, write_json
    from utils.runtime import run_facts

    facts = run_facts(command)
    cells: dict[str, dict[str, Any]] = {}
    baseline = None
    try:
        for engine in engines:
            cell_file = folder / f"{name}__{engine}.json"
            key = plain_values(subject.key(engine) | asdict(settings))
            if cell_file.is_file() and not overwrite and read_json(cell_file).get("settings") == key:
                cells[engine] = read_json(cell_file)
                continue
            print(f"{name}: {engine}", file=sys.stderr, flush=True)
            identity = {"checkpoint": name, "engine": engine}
            try:
                if engine != BASELINE and baseline is None:
                    baseline = start(subject, BASELINE, settings)
                reference = None if engine == BASELINE else np.array(cells[BASELINE]["logits"])
                measured = measure_cell(subject, engine, baseline, settings, reference)
            except UserError as error:
                if engine == BASELINE:
                    raise
                print(f"{engine}: {error}", file=sys.stderr)
                cells[engine] = {**identity, "note": f"failed: {error}"}
                continue
            cells[engine] = {**identity, **measured, "settings": key, **facts}
            write_json(cell_file, cells[engine])
    finally:
        if baseline:
            baseline.close()
    return list(cells.values())


def export_one(
    file: Path,
    kind: str,
    output: Path,
    data: str | None,
    calibration_data: str | None,
    face_detector: str | None,
    command: str,
) -> dict[str, Any]:
    """Write one ONNX file and the report of its parity; prints both."""
    from datasets.faces.boxes import with_faces
    from datasets.faces.finder import check_face_detector, open_finder
    from utils.benchmarking.export import copy_sources, parity_report, write_int8
    from utils.benchmarking.images import open_calibration
    from utils.checkpoints.file import load_detector
    from utils.engines.export import export_onnx
    from utils.files import write_json

    check_output_dir(output.parent)
    check_face_detector(face_detector)
    finder = open_finder(face_detector, load_detector(file)[0].geometry.needs_face)
    if kind == "int8" and calibration_data:
        with tempfile.TemporaryDirectory() as folder:
            calibration = with_faces(open_calibration(calibration_data), finder)
            write_int8(file, Path(folder) / "model.onnx", output, calibration)
    else:
        export_onnx(file, output, EXPORTS[kind])
    copy_sources(file, output)
    report = {"command": command, **parity_report(file, output, data, finder)}
    write_json(output.with_suffix(".json"), report)
    print(
        f"{report['images']}: largest difference of a logit {report['max_logit_difference']:.2g}, "
        f"same verdict {report['agreement']:.1%}, {report['file_bytes'] / 1e6:.1f} MB"
    )
    print(f"checkpoint {output}")
    return {"parity": report, "exit_code": exit_code(report["unreadable"])}


if __name__ == "__main__":
    run_script(main)
