"""Images/s of predict.py over real JPEG files, against the plain script that everybody writes.

  python -m studies.speed.predict_speed --checkpoint best.pt --exported best.onnx --data data/140k@split=all,limit=2000

The plain script: PIL, torchvision transforms (centre crop, to tensor), a DataLoader with two workers, the same network
in eager float32, batches of 32. predict.py runs as a process with an export of the same checkpoint (benchmark.py
--export), start-up included; the plain script also runs as a process, start-up included. They take turns. Without
start-up is the same after taking off the time that each needs for one image.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from datasets.spec import open_records
from utils.args import check_checkpoint_file, int_in, make_parser, run_script
from utils.files import ROOT, write_json
from utils.runtime import git_commit, hardware, versions
from utils.tables import write_table

PLAIN_SCRIPT = """
import sys
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from utils.checkpoints.file import load_detector
from utils.files import ROOT

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
    ("what", "What runs"),
    ("images_per_s", "Images/s"),
    ("warm_images_per_s", "Without start-up"),
    ("first_image_s", "One image (s)"),
    ("ratio", "Speed-up"),
]


def run(command: list[str]) -> float:
    """Run a command; returns its seconds."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def measure(args: argparse.Namespace, paths: list[str], folder: Path) -> dict[str, float]:
    """Time both once over the given images; returns the seconds of each."""
    listed, script, table = folder / "paths.txt", folder / "plain.py", folder / "paths.csv"
    listed.write_text("\n".join(paths))
    table.write_text("path\n" + "\n".join(f'"{path}"' for path in paths) + "\n")
    values = {
        "root": str(ROOT),
        "checkpoint": str(check_checkpoint_file(args.checkpoint).resolve()),
        "paths": str(listed),
        "threads": args.threads,
        "output": str(folder / "plain.txt"),
    }
    script.write_text(PLAIN_SCRIPT.format(**values))
    ours = [
        sys.executable,
        "predict.py",
        "--checkpoint",
        str(Path(args.exported).resolve()),
        str(table),
        "--output",
        str(folder / "ours.csv"),
        "--threads",
        str(args.threads),
    ]
    return {"plain": run([sys.executable, str(script)]), "predict.py": run(ours)}


def main(argv=None) -> dict:
    """Measure and write the results files."""
    parser = make_parser(__doc__, "python -m studies.speed.predict_speed")
    parser.add_argument("--checkpoint", required=True, metavar="PT", help="for the plain script")
    parser.add_argument("--exported", required=True, metavar="FILE.onnx", help="the same checkpoint for predict.py")
    parser.add_argument("--data", required=True, metavar="SPEC", help="JPEG files")
    parser.add_argument("--repeats", type=int_in(1), default=3)
    parser.add_argument("--threads", type=int_in(1), default=2)
    parser.add_argument("--output", default="results/benchmarks/predict_speed.json")
    args = parser.parse_args(argv)
    paths = [str(Path(record.path).resolve()) for record in open_records(args.data).records]
    turns: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        single = measure(args, paths[:1], Path(name))  # also warms the disk cache of the libraries
        single = measure(args, paths[:1], Path(name))
        for _ in range(args.repeats):
            turns.append(measure(args, paths, Path(name)))
            print("  ".join(f"{what} {len(paths) / seconds:.1f} images/s" for what, seconds in turns[-1].items()))
    rows = []
    for what in ("plain", "predict.py"):
        seconds = [turn[what] for turn in turns]
        ratios = [turn["plain"] / turn[what] for turn in turns]
        rows.append(
            {
                "what": what,
                "images_per_s": len(paths) / statistics.median(seconds),
                "images_per_s_ci": [len(paths) / max(seconds), len(paths) / min(seconds)],
                "warm_images_per_s": (len(paths) - 1) / (statistics.median(seconds) - single[what]),
                "first_image_s": single[what],
                "ratio": statistics.median(ratios),
                "ratio_ci": [min(ratios), max(ratios)],
            }
        )
    command = f"python -m studies.speed.predict_speed --checkpoint {args.checkpoint} --exported {args.exported}"
    command += f" --data {args.data} --repeats {args.repeats} --threads {args.threads}"
    summary = summarise(rows, len(paths))
    write_json(
        args.output,
        {
            "command": command,
            "summary": summary,
            "n_images": len(paths),
            "threads": args.threads,
            "hardware": hardware(),
            "git_commit": git_commit(),
            "versions": versions(),
            "rows": rows,
            "turns": turns,
        },
    )
    table = Path(args.output).with_suffix("")
    write_table(rows, COLUMNS, table, fmt=".2f")
    print(table.with_suffix(".md").read_text(), end="")
    return {"rows": rows}


def summarise(rows: list[dict], n_images: int) -> list[dict]:
    """The figures of the table of all benchmarks."""
    fast = rows[-1]
    return [
        {
            "what": f"predict.py with an export over the plain script, {n_images:,} JPEG files",
            "value": fast["ratio"],
            "range": fast["ratio_ci"],
            "unit": "times the images/s",
        },
        {
            "what": "predict.py with an export, one image, start-up included",
            "value": fast["first_image_s"],
            "range": [fast["first_image_s"]] * 2,
            "unit": "s",
        },
    ]


if __name__ == "__main__":
    run_script(main)
