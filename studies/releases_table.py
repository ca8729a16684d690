"""Compare the released detectors source by source: results/NAME/overview.csv -> results/releases/overview.csv

  python -m studies.releases_table

One row per source, also as .md and .tex. The tables of the releases are those of model_card.py.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.model_card import OVERVIEW_CAPTION, OVERVIEW_COLUMNS
from utils.args import check_output_dir, make_parser, run_script
from utils.checkpoint_files import RELEASES
from utils.files import ROOT, read_text
from utils.tables import write_table

FACTS = ("dataset", "seen", "n_real", "n_fake")
FIGURES = ("auc", "false_alarms")
TITLES = dict(OVERVIEW_COLUMNS)


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
    tables = {Path(folder).name: read_overview(Path(folder)) for folder in args.results}
    rows: dict[str, dict[str, Any]] = {}
    for release, table in tables.items():
        for dataset, (facts, figures) in table.items():
            rows.setdefault(dataset, facts).update({f"{release} {key}": value for key, value in figures.items()})
    chosen = [
        (f"{name} {key}", f"{TITLES[key]}: {name.removeprefix('deepfake-')}") for key in FIGURES for name in tables
    ]
    shown = [*((key, TITLES[key]) for key in FACTS), *chosen]
    folder = check_output_dir(args.output_dir)
    written = write_table(list(rows.values()), shown, folder / "overview", OVERVIEW_CAPTION)
    print(written[1].read_text(encoding="utf-8"), end="")
    return {"rows": list(rows.values())}


def read_overview(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Read overview.csv: the facts and the figures, with their intervals, of each data set."""
    found = {}
    for line in csv.DictReader(io.StringIO(read_text(folder / "overview.csv", "a table of model_card.py"))):
        facts = {key: int(line[key]) if key.startswith("n_") else line[key] for key in FACTS}
        figures: dict[str, Any] = {}
        for key in FIGURES:
            if line[key]:
                figures |= {key: float(line[key]), f"{key}_ci": [float(line[f"{key}_low"]), float(line[f"{key}_high"])]}
        found[line["dataset"]] = facts, figures
    return found


if __name__ == "__main__":
    run_script(main)
