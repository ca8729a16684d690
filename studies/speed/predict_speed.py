"""Images/s of predict.py over JPEG files, against the plain script that most people write.

  python -m studies.speed.predict_speed --checkpoint best.pt --exported best.onnx --data data/140k@split=all,limit=2000

The plain script uses PIL, torchvision transforms (centre crop, to tensor), a DataLoader with two workers, and the same
network in eager float32 with batches of 32. predict.py runs an export of the same checkpoint (benchmark.py --export).
Both run as processes, start-up included, and take turns. "Without start-up" subtracts the time for one image.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from datasets.listing.spec import open_records
from studies.speed.summary import write_results
from utils.args import add_face_detector, int_in, make_parser, run_script
from utils.checkpoint_files import check_checkpoint_file
from utils.errors import UserError
from utils.files import ROOT
from utils.tables import columns, write_table

PLAIN_SCRIPT = """
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from utils.checkpoints.file import load_detector

model, _ = load_detector({checkpoint!r})
paths = open({paths!r}).read().split("\\n")
transform = transforms.Compose([transforms.CenterCrop(model.geometry.size), transforms.ToTensor()])

class Images(Dataset):
    def __len__(self):
        return len(paths)

    def __getitem__(self, index):
        return transform(Image.open(paths[index]).convert("RGB"))

if __name__ == "__main__":
    torch.set_num_threads({threads})
    with torch.no_grad(), open({output!r}, "w") as file:
        for images in DataLoader(Images(), batch_size=32, num_workers=2):
            for value in torch.sigmoid(model(images)).tolist():
                file.write(str(value) + "\\n")
"""
COLUMNS = [
    *columns(what="What runs", images_per_s="Images/s", warm_images_per_s="Without start-up"),
    *columns(first_image_s="One image (s)", ratio="Speed-up"),
]


def measure(
    checkpoint: Path, exported: Path, paths: Sequence[str], threads: int, flags: Sequence[str]
) -> dict[str, float]:
    """Run both once over the given images, predict.py with these flags; returns the seconds of each.

    Raises:
        UserError: one of them failed; the message has the last line of its stderr.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed, script, table = folder / "paths.txt", folder / "plain.py", folder / "paths.csv"
        listed.write_text("\n".join(paths))
        table.write_text("path\n" + "\n".join(f'"{path}"' for path in paths) + "\n")
        values = {"checkpoint": str(checkpoint), "paths": str(listed), "threads": threads}
        script.write_text(PLAIN_SCRIPT.format(output=str(folder / "plain.txt"), **values))
        ours = ["predict.py", "--checkpoint", exported, table, "--output", folder / "ours.csv", "--threads", threads]
        ours += flags
        seconds, environment = {}, {**os.environ, "PYTHONPATH": str(ROOT)}
        for what, words in (("plain", [script]), ("predict.py", ours)):
            started = time.perf_counter()
            command = [sys.executable, *map(str, words)]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            seconds[what] = time.perf_counter() - started
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
                raise UserError(f"expected {what} to score all images, got exit code {done.returncode}: {said}")
        return seconds


def summary_row(what: str, turns: Sequence[dict[str, float]], single: float, n_images: int) -> dict[str, Any]:
    """One row of the table, from the seconds of all turns and those for a single image."""
    seconds = [turn[what] for turn in turns]
    ratios = [turn["plain"] / turn[what] for turn in turns]
    return {
        "what": what,
        "images_per_s": n_images / median(seconds),
        "images_per_s_ci": [n_images / max(seconds), n_images / min(seconds)],
        "warm_images_per_s": (n_images - 1) / (median(seconds) - single),
        "first_image_s": single,
        "ratio": median(ratios),
        "ratio_ci": [min(ratios), max(ratios)],
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and write the results files; returns ``{"rows": rows of the table}``."""
    parser = make_parser(__doc__, "python -m studies.speed.predict_speed")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="checkpoint for the plain script")
    parser.add_argument("--exported", required=True, metavar="FILE.onnx", help="its export, for predict.py")
    parser.add_argument("--data", required=True, metavar="SPEC", help="JPEG files")
    parser.add_argument("--repeats", type=int_in(1), default=3, help="turns of each (default: 3)")
    parser.add_argument("--threads", type=int_in(1), default=2, help="CPU threads (default: 2)")
    parser.add_argument("--engine", default="auto", help="of predict.py (default: auto, that of the export)")
    add_face_detector(parser)
    parser.add_argument("--output", default="results/benchmarks/predict_speed", help="files without their suffix")
    args = parser.parse_args(argv)
    files = (
        check_checkpoint_file(args.checkpoint).resolve(),
        check_checkpoint_file(args.exported, "--exported").resolve(),
    )
    paths = [str(Path(record.path).resolve()) for record in open_records(args.data).records]
    flags = ["--engine", args.engine]
    flags += ["--face-detector", str(Path(args.face_detector).resolve())] if args.face_detector else []
    for _ in range(2):  # the first run fills the disk cache
        single = measure(*files, paths[:1], args.threads, flags)
    turns = [measure(*files, paths, args.threads, flags) for _ in range(args.repeats)]
    rows = [summary_row(what, turns, single[what], len(paths)) for what in single]
    fast = rows[-1]
    export = f"predict.py with an export of {files[0].stem}"
    speed_up = f"{export} over the plain script, {len(paths):,} JPEG files"
    first = {"what": f"{export}, one image, start-up included", "value": fast["first_image_s"], "unit": "s"}
    summary = [
        {"what": speed_up, "value": fast["ratio"], "range": fast["ratio_ci"], "unit": "times the images/s"},
        {**first, "range": [fast["first_image_s"]] * 2},
    ]
    measured = {"n_images": len(paths), "threads": args.threads, "rows": rows, "turns": turns}
    write_results(f"{args.output}.json", "predict_speed", argv, summary=summary, **measured)
    write_table(rows, COLUMNS, args.output, fmt=".2f")
    print(Path(f"{args.output}.md").read_text(encoding="utf-8"), end="")
    return {"rows": rows}


if __name__ == "__main__":
    run_script(main)
