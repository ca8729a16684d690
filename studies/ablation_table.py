"""One row per forgery: results/forgery_ablation/{metrics,one_class}.json -> ablation.csv, .md and .tex

  python -m studies.ablation_table

Reads the metrics of the runs forge-none, forge-blend, ... (the step forgery-ablation of results/steps.txt).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.args import check_output_dir, make_parser, run_script
from utils.files import ROOT, read_json
from utils.tables import columns, write_table

FOLDER = str(ROOT / "results" / "forgery_ablation")
PREFIX = "forge-"
CAPTION = (
    "Each forgery alone: a MobileNetV2 distilled from EfficientNet-B0 on openforensics, one more epoch on three sets "
    "with and without it (seed 0). AUC on unseen sources and on faces140k, all in one format; sets of fakes only are "
    "measured against the real images of faces140k and utkface; 95 % bootstrap intervals."
)
COLUMNS = [
    *columns(forgery="Forgery", photoshop="photoshop", generated_photos="generated_photos", sfhq="sfhq", mean="Mean"),
    *columns(utkface="utkface called real", faces140k="faces140k"),
]


def cell(row: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the figure of a row with its interval, under the name of its data set."""
    name = row["dataset"].split(" / ")[0]
    return {name: row[key], f"{name}_ci": row[f"{key}_ci"]}


def ablation_rows(metrics: list[dict[str, Any]], one_class: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the rows of evaluate.py, one per run; ``mean`` is over the three unseen sources with an AUC."""
    rows: dict[str, dict[str, Any]] = {}
    for found in metrics + one_class:
        row = rows.setdefault(found["checkpoint"], {"forgery": found["checkpoint"].removeprefix(PREFIX)})
        if found.get("generator", "all") != "all":
            continue
        if found["auc"] is not None:
            row |= cell(found, "auc")
        elif found["n_real"]:
            row |= cell(found, "real_acc")
    for row in rows.values():
        row["mean"] = sum(row[name] for name in ("photoshop", "generated_photos", "sfhq")) / 3
    return list(rows.values())


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of ablation_table.py."""
    parser = make_parser(__doc__, "python -m studies.ablation_table")
    parser.add_argument("--results", default=FOLDER, metavar="DIR", help="default: results/forgery_ablation")
    parser.add_argument("--output-dir", default=FOLDER, metavar="DIR", help="default: results/forgery_ablation")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Write the table."""
    args = get_args_parser().parse_args(argv)
    files = (Path(args.results) / name for name in ("metrics.json", "one_class.json"))
    metrics, one_class = (read_json(file, "the metrics of evaluate.py") for file in files)
    rows = ablation_rows(metrics, one_class)
    target = check_output_dir(args.output_dir) / "ablation"
    write_table(rows, COLUMNS, target, CAPTION)
    print(f"{target}.md")
    return {"rows": rows}


if __name__ == "__main__":
    run_script(main)
