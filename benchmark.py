"""Find the fastest engine that still gives the right answers, and export a checkpoint for it.

  python benchmark.py --checkpoint checkpoints/cnn-140k --data data/140k
  python benchmark.py --checkpoint a/best.pt b/best.pt --data data/140k --engines onnx onnx-int8 openvino-bf16
  python benchmark.py --checkpoint a/best.pt --export onnx --output a.onnx
  python benchmark.py --checkpoint a/best.pt --export int8 --data data/140k --output a-int8.onnx
  python benchmark.py --checkpoint a/best.pt --export openvino --output a-fast.onnx

The first forms measure engines against `eager`, which is torch in float32 as most people run it. Each engine has a
process of its own; engine and baseline take turns on the same batches, so a speed-up is the median ratio of
neighbouring turns (with its range), whatever else the machine does. Quality is measured on the test images at the
checkpoint's own calibration and threshold; the adversarial images are PGD-10 at 1/255 against eager, shown to every
engine. Memory is the highest resident size of the process, Python and libraries included. Engines:

ENGINES
The folder gets cells/ (one JSON per checkpoint and engine: a second run measures only what is missing), the tables
benchmark and speed as .csv, .md and .tex, and the figure pareto as .pdf and .png. The table is printed:

  | Checkpoint | Engine        | p50 (ms) | ... | Images/s | Batch |          Speed-up | AUC   | ... | Note     |
  | cnn-140k   | eager         |     16.2 | ... |     88.1 |    16 |              1.00 | 0.831 | ... | baseline |
  | cnn-140k   | openvino-bf16 |      5.1 | ... |    260.3 |    16 | 2.95 [2.90, 3.01] | 0.830 | ... |          |

--export writes one ONNX file that holds geometry, thresholds and calibration too: predict.py, evaluate.py and serve.py
take it as --checkpoint. `onnx` is float32 for ONNX Runtime, `int8` is calibrated on training images, `openvino` is
float32 to be run by OpenVINO in bfloat16. FILE.json beside it reports how far its logits are from the checkpoint's.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.args import EXIT_DONE, EXIT_PARTIAL, check_checkpoint_file, check_output_dir, int_in, make_parser, run_script
from utils.engines.registry import BASELINE, ENGINES, missing
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.benchmarking.cells import Settings, Subject
    from utils.benchmarking.worker import Worker

CACHE = "data/benchmark"
EXPORTS = {"onnx": "onnx", "int8": "onnx-int8", "openvino": "openvino-bf16"}  # to the engine that auto will choose


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of benchmark.py."""
    listed = "\n".join(f"  {name:14s} {kind.what}" for name, kind in ENGINES.items())
    parser = make_parser((__doc__ or "").replace("ENGINES\n", listed + "\n\n"), "benchmark.py")
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="PT", help="checkpoints, or run folders")
    parser.add_argument("--data", metavar="SPEC", help="data set: its test split is scored")
    parser.add_argument("--calibration-data", metavar="SPEC", help="training images for int8 (default: --data)")
    parser.add_argument("--calibration-images", type=int_in(1), default=128, metavar="N", help="default: 128")
    measure = parser.add_argument_group("what to measure")
    measure.add_argument(
        "--engines",
        nargs="+",
        default=list(ENGINES),
        choices=list(ENGINES),
        metavar="NAME",
        help="see above (default: all that can run here)",
    )
    measure.add_argument("--batch-sizes", nargs="+", type=int_in(1), default=[1, 8, 16], metavar="N", help="1 8 16")
    measure.add_argument("--limit", type=int_in(2), metavar="N", help="score N test images, balanced (default: all)")
    measure.add_argument("--adversarial-images", type=int_in(0), default=32, metavar="N", help="default: 32")
    measure.add_argument("--repeats", type=int_in(1), default=5, help="turns of each engine (default: 5)")
    measure.add_argument("--n-boot", type=int_in(0, 1_000_000), default=1000, help="resamples (default: 1000)")
    measure.add_argument("--threads", type=int_in(1, 1024), default=2, help="CPU threads of each engine (default: 2)")
    measure.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    measure.add_argument("--overwrite", action="store_true", help="measure again what cells/ has")
    measure.add_argument("--output-dir", metavar="DIR", default="results/benchmark", help="default: results/benchmark")
    parser.add_argument("--cache-dir", metavar="DIR", default=CACHE, help=f"exports, adversarial images ({CACHE})")
    export = parser.add_argument_group("export")
    export.add_argument("--export", choices=sorted(EXPORTS), help="write one file instead of measuring")
    export.add_argument("--output", metavar="FILE.onnx", help="the file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure or export; returns ``{"rows" or "parity", "exit_code": 0 or 1}``."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", "benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    files = [check_checkpoint_file(path, needs_weights=True) for path in args.checkpoint]
    if args.export:
        return export_one(parser, args, files)
    if not args.data or args.output:
        parser.error("expected --data SPEC to measure, or --export with --output FILE.onnx")
    engines = usable_engines(args.engines, args.device)
    folder = check_output_dir(args.output_dir)

    from utils.benchmarking.report import write_benchmark
    from utils.evaluation.evaluate import checkpoint_names

    cells, unreadable = [], 0
    for name, file in zip(checkpoint_names(files), files, strict=True):
        measured, failed = measure_checkpoint(args, name, file, engines, folder / "cells")
        cells += measured
        unreadable += failed
    rows = write_benchmark(cells, folder)
    print((folder / "benchmark.md").read_text(encoding="utf-8"), end="")
    return {"rows": rows, "exit_code": EXIT_PARTIAL if unreadable else EXIT_DONE}


def usable_engines(names: Sequence[str], device: str) -> list[str]:
    """The engines that run here, the baseline first; the others are named on stderr."""
    reasons = {name: missing(name, device) for name in ENGINES if name in {BASELINE, *names}}
    for name, reason in reasons.items():
        if reason:
            print(f"{name}: left out, {reason}", file=sys.stderr)
    return [name for name, reason in reasons.items() if reason is None]


def measure_checkpoint(
    args: argparse.Namespace, name: str, file: Path, engines: Sequence[str], folder: Path
) -> tuple[list[dict[str, Any]], int]:
    """Measure what is missing of a checkpoint's cells; returns all of them and the number of unreadable images."""
    from utils.benchmarking.cells import Settings, start
    from utils.benchmarking.subject import Sources, open_subject
    from utils.files import read_json, write_json
    from utils.runtime import git_commit, hardware, versions

    sources = Sources(Path(args.cache_dir), args.calibration_data or args.data, args.calibration_images)
    subject, key, unreadable = open_subject(file, args.data, args.limit, args.adversarial_images, engines, sources)
    settings = Settings(args.batch_sizes, args.repeats, args.threads, args.device, args.n_boot)
    key |= asdict(settings)
    cells: dict[str, dict[str, Any]] = {}
    baseline = None
    try:
        for engine in engines:
            cell_file = folder / f"{name}__{engine}.json"
            if cell_file.is_file() and not args.overwrite and read_json(cell_file)["settings"] == key:
                cells[engine] = read_json(cell_file)
                continue
            print(f"{name}: {engine}", file=sys.stderr, flush=True)
            if engine != BASELINE and baseline is None:
                baseline = start(subject, BASELINE, settings)
            reference = None if engine == BASELINE else cells[BASELINE]["logits"]
            cell = measured_or_reason(subject, engine, baseline, settings, reference)
            cells[engine] = {
                "checkpoint": name,
                "engine": engine,
                **cell,
                "settings": key,
                "command": args.command,
                "hardware": hardware(),
                "versions": versions(),
                "git_commit": git_commit(),
            }
            if "note" not in cell:
                write_json(cell_file, cells[engine])
    finally:
        if baseline:
            baseline.close()
    return list(cells.values()), unreadable


def measured_or_reason(
    subject: Subject, engine: str, baseline: Worker | None, settings: Settings, reference: Sequence[float] | None
) -> dict[str, Any]:
    """Measure a cell; an engine other than the baseline that fails on this detector becomes a row with the reason."""
    import numpy as np

    from utils.benchmarking.cells import measure_cell

    try:
        return measure_cell(subject, engine, baseline, settings, None if reference is None else np.array(reference))
    except UserError as error:
        if engine == BASELINE:
            raise
        print(f"{engine}: {error}", file=sys.stderr)
        return {"note": f"failed: {error}"}


def export_one(parser: argparse.ArgumentParser, args: argparse.Namespace, files: Sequence[Path]) -> dict:
    """Write one ONNX file and the report of its parity; prints both paths."""
    if len(files) != 1 or not args.output or not args.output.endswith(".onnx"):
        parser.error("expected one --checkpoint and --output FILE.onnx with --export")
    if args.export == "int8" and not (args.calibration_data or args.data):
        raise UserError(
            "expected --calibration-data SPEC or --data SPEC for --export int8, got none; name a training set"
        )

    import tempfile

    from utils.benchmarking.subject import write_int8
    from utils.engines.export import export_onnx
    from utils.engines.parity import parity_report
    from utils.files import write_json

    output = Path(args.output)
    check_output_dir(output.parent)
    if args.export == "int8":
        with tempfile.TemporaryDirectory() as folder:
            data = args.calibration_data or args.data
            write_int8(files[0], Path(folder) / "model.onnx", output, data, args.calibration_images)
    else:
        export_onnx(files[0], output, EXPORTS[args.export])
    report = {"command": args.command, **parity_report(files[0], output, args.data)}
    write_json(output.with_suffix(".json"), report)
    print(
        f"{report['images']}: largest difference of a logit {report['max_logit_difference']:.2g}, "
        f"same verdict {report['agreement']:.1%}, {report['size_ratio']:.0%} of the checkpoint's size"
    )
    print(f"checkpoint {output}")
    return {"parity": report, "exit_code": EXIT_DONE}


if __name__ == "__main__":
    run_script(main)
