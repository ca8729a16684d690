"""Compare the released detectors source by source: results/NAME/overview.csv -> results/releases/overview.csv

  python -m studies.releases_table

One row per source and release, also as .md and .tex. The tables of the releases are those of model_card.py.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.model_card import OVERVIEW_CAPTION, OVERVIEW_COLUMNS
from utils.args import RELEASES, check_output_dir, make_parser, run_script
from utils.files import ROOT, read_text
from utils.tables import columns, write_table

COLUMNS = [OVERVIEW_COLUMNS[0], *columns(checkpoint="Release"), *OVERVIEW_COLUMNS[1:]]
FIGURES = [key for key, _ in OVERVIEW_COLUMNS[4:]]


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of releases_table.py."""
    parser = make_parser(__doc__, "python -m studies.releases_table")
    published = [str(ROOT / "results" / name) for name in RELEASES]
    parser.add_argument("--results", nargs="+", default=published, metavar="DIR", help="folders named after releases")
    place = ROOT / "results" / "releases"
    parser.add_argument("--output-dir", default=str(place), metavar="DIR", help="default: results/releases")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Write the table; returns ``{"rows": rows}``."""
    args = get_args_parser().parse_args(argv)
    found = [row for folder in args.results for row in read_overview(Path(folder))]
    sources = list(dict.fromkeys(row["dataset"] for row in found))
    rows = sorted(found, key=lambda row: sources.index(row["dataset"]))
    folder = check_output_dir(args.output_dir)
    print(write_table(rows, COLUMNS, folder / "overview", OVERVIEW_CAPTION)[1].read_text(encoding="utf-8"), end="")
    return {"rows": rows}


def read_overview(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of overview.csv with their intervals; ``checkpoint`` is the name of the folder."""
    rows = []
    for line in csv.DictReader(io.StringIO(read_text(folder / "overview.csv", "a table of model_card.py"))):
        row: dict[str, Any] = {"checkpoint": folder.name, "dataset": line["dataset"], "seen": line["seen"]}
        row |= {key: int(line[key]) for key in ("n_real", "n_fake")}
        for key in FIGURES:
            if line[key]:
                row |= {key: float(line[key]), f"{key}_ci": [float(line[f"{key}_low"]), float(line[f"{key}_high"])]}
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_script(main)
