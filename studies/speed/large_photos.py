"""Measure predict.py --faces on generated photographs of 12 megapixels: pictures/s, time to the first row, memory.

  python -m studies.speed.large_photos --checkpoint best.onnx --n 2000

Draws 30 pictures of 4000 x 3000 px with generated faces, one in each, in every third six. They are copied until there
are --n files in a temporary folder below --folder. predict.py runs as a process, start-up included. The memory is its
peak.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.demo_set.generate import make_demo
from datasets.listing.spec import open_records
from studies.speed.summary import summary_row, write_results
from utils.args import int_in, make_parser, run_script
from utils.checkpoint_files import check_checkpoint_file
from utils.errors import UserError
from utils.files import ROOT

DISTINCT = 30
SIZE = (4000, 3000)  # width and height in px
CORNERS = {  # of the portraits in a picture, by their side in px
    1500: [(1250, 700)],
    800: [(x, y) for y in (400, 1700) for x in (300, 1600, 2900)],
}


def draw(folder: Path, count: int) -> None:
    """Write ``count`` pictures; DISTINCT of them are drawn, the others copied."""
    portraits = [
        Image.open(item.path) for item in open_records(str(make_demo(folder / "demo", 60, 256)), "all").records
    ]
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(count):
        file = folder / "photos" / f"{number:05d}.jpg"
        if number >= DISTINCT:
            shutil.copyfile(folder / "photos" / f"{number % DISTINCT:05d}.jpg", file)
            continue
        coarse = rng.integers(60, 200, (6, 8, 3)).astype(np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC), np.int16)
        grain = rng.normal(0, 4, pixels.shape[:2])[..., None]
        picture = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        side = 800 if number % 3 == 2 else 1500
        for corner in CORNERS[side]:
            portrait = portraits[rng.integers(len(portraits))].convert("RGB")
            picture.paste(portrait.resize((side, side), Image.Resampling.BICUBIC), corner)
        picture.save(file, quality=90)


def measure(command: Sequence[str]) -> tuple[float, float, int]:
    """Run predict.py; returns the seconds to its first row and to its end, and the number of rows.

    Raises:
        UserError: it failed; the reason is on stderr.
    """
    started, first, rows = time.perf_counter(), 0.0, -1  # the header is no row
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        for _ in process.stdout or ():
            rows += 1
            first = first or (time.perf_counter() - started if rows else 0.0)
    if process.returncode:
        raise UserError(f"expected predict.py to read all pictures, got exit code {process.returncode}; see above")
    return first, time.perf_counter() - started, rows


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and write the results file; returns ``{"summary": rows}``."""
    parser = make_parser(__doc__, "python -m studies.speed.large_photos")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="a checkpoint or an export that frames faces")
    parser.add_argument("--face-detector", metavar="ONNX", help="YuNet's file (default: as predict.py)")
    parser.add_argument("--n", type=int_in(DISTINCT), default=2000, help="files (default: 2,000)")
    parser.add_argument("--threads", type=int_in(1), default=2, help="CPU threads (default: 2)")
    parser.add_argument("--folder", metavar="DIR", help="for the temporary files (default: the system's)")
    parser.add_argument("--output", default="results/benchmarks/large_photos.json", help="results file")
    args = parser.parse_args(argv)
    checkpoint = check_checkpoint_file(args.checkpoint).resolve()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        draw(Path(name), args.n)
        command = [sys.executable, "predict.py", "--checkpoint", str(checkpoint), f"{name}/photos", "--faces"]
        command += ["--threads", str(args.threads)]
        command += ["--face-detector", os.path.abspath(args.face_detector)] if args.face_detector else []
        first, seconds, rows = measure(command)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    what = f"predict.py --faces, {args.n:,} files of 12 megapixels, {checkpoint.name}"
    summary = [
        summary_row(what, [args.n / seconds], "pictures/s"),
        summary_row(f"first row of {what}", [first], "s"),
        summary_row(f"peak memory of {what}", [memory], "MiB"),
    ]
    measured = {"n_images": args.n, "rows": rows, "seconds": seconds, "threads": args.threads}
    write_results(args.output, "large_photos", argv, summary=summary, **measured)
    return {"summary": summary}


if __name__ == "__main__":
    run_script(main)
