"""Collect the published rows: results/*/metrics.json and the JSON files of their scores -> results/summary.*

  python -m studies.summarize
  python -m studies.summarize --results runs/reproduce/results/demo --output-dir runs/summary

Writes summary.csv, .md and .tex and the figure summary.pdf and .png. If the output folder has a folder benchmarks, its
JSON files become benchmarks/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.args import check_output_dir, make_parser, run_script
from utils.figures import interval_bar_figure, save_figure
from utils.files import ROOT, read_json
from utils.tables import columns, write_table

COLUMNS = [
    *columns(dataset="Test data", model="Model", trained_on="Trained on", checkpoint="Run", n="Images"),
    *columns(auc="AUC", acc="Acc", real_acc="Real acc", fake_acc="Fake acc"),
]
FOLDERS = ("demo", "faces140k", "both", "cross", "openforensics")  # the others have tables of their own
BENCHMARK_COLUMNS = columns(what="Benchmark", value="Median", range="Range", unit="Unit")


def benchmark_rows(folder: Path) -> list[dict[str, Any]]:
    """Return one row per measurement of the speed studies."""
    rows = []
    for row in read_json(folder / "training_speed.json")["rows"]:
        setting = f"{row['model']}, {row['crop']} px, batch {row['batch_size']}, {row['precision']}"
        what = f"train.py against a bare loop, {setting}"
        rows.append(
            {"what": what, "value": row["ratio_median"], "range": row["ratio_range"], "unit": "ratio of images/s"}
        )
        gain = {
            "value": row["compiled_ratio_median"],
            "range": row["compiled_ratio_range"],
            "unit": "times the images/s",
        }
        rows.append({"what": f"train.py --compile over train.py, {setting}", **gain})
    for row in read_json(folder / "feature_speed.json")["rows"][:2]:
        what = f"all handcrafted features, 256 px, {row['processes']} process(es)"
        rows.append({"what": what, "value": row["images_per_s"], "range": row["range"], "unit": "images/s"})
    startup = read_json(folder / "startup.json")["rows"]
    for name, is_kind in (("--help", lambda code: code == 0), ("a usage error", lambda code: code == 2)):
        slowest = max((row for row in startup if is_kind(row["exit_code"])), key=lambda row: row["seconds_median"])
        what = f"{name}, the slowest script ({slowest['command'].split()[1]})"
        rows.append({"what": what, "value": slowest["seconds_median"], "range": slowest["seconds_range"], "unit": "s"})
    for file in sorted(folder.glob("*.json")):
        found = read_json(file)
        rows += found.get("summary", []) if isinstance(found, dict) else []
    for row in rows:
        row["range"] = f"{row['range'][0]:.2f} to {row['range'][1]:.2f}"
    return rows


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of summarize.py."""
    parser = make_parser(__doc__, "python -m studies.summarize")
    published = [str(ROOT / "results" / name) for name in FOLDERS]
    parser.add_argument("--results", nargs="+", default=published, metavar="DIR", help="output folders of evaluate.py")
    parser.add_argument("--output-dir", default=str(ROOT / "results"), metavar="DIR", help="default: results")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Collect the rows and write tables and figure."""
    args = get_args_parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    for source in sorted(Path(path) for path in args.results):
        for row in read_json(source / "metrics.json", "the metrics of evaluate.py"):
            if row["generator"] != "all" or row["auc"] is None or row["tier"] != "clean":
                continue
            facts = read_json(source / "scores" / f"{row['checkpoint']}__{row['dataset']}__{row['split']}.json")
            rows.append({**row, "n": row["n_real"] + row["n_fake"], "trained_on": ", ".join(facts["trained_on"])})
    rows.sort(key=lambda row: (row["dataset"], -row["auc"]))
    folder = check_output_dir(args.output_dir)
    write_table(rows, COLUMNS, folder / "summary", "Test AUC and accuracy; 95 % bootstrap intervals.")
    names = [f"{row['dataset']}: {row['checkpoint']}" for row in rows]
    aucs, intervals = ([row[key] for row in rows] for key in ("auc", "auc_ci"))
    save_figure(interval_bar_figure(names, aucs, intervals, x_label="Test AUC"), folder / "summary")
    if (folder / "benchmarks").is_dir():
        table = benchmark_rows(folder / "benchmarks")
        write_table(table, BENCHMARK_COLUMNS, folder / "benchmarks" / "benchmarks", fmt=".2f")
    print((folder / "summary.md").read_text(), end="")
    return {"rows": rows}


if __name__ == "__main__":
    run_script(main)
