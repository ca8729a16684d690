"""One row per forgery: results/forgery_ablation/{metrics,one_class}.json -> ablation.csv, .md and .tex beside them

  python results/ablation_table.py

Reads what evaluate.py left for the runs forge-none, forge-blend, ... (the step forgery-ablation of results/steps.txt).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.files import read_json
from utils.tables import write_table

FOLDER = ROOT / "results" / "forgery_ablation"
PREFIX = "forge-"
CAPTION = (
    "Each forgery by itself: a MobileNetV2 that EfficientNet-B0 taught on openforensics, one more epoch on three sets "
    "with and without it (seed 0). AUC on sources that are unseen but for faces140k, all in one format; fakes of sets "
    "without photographs against those of faces140k and utkface; 95 % bootstrap intervals."
)
COLUMNS = [
    ("forgery", "Forgery"), ("photoshop", "photoshop"), ("generated_photos", "generated_photos"), ("sfhq", "sfhq"),
    ("mean", "Mean"), ("utkface", "utkface called real"), ("faces140k", "faces140k"),
]  # fmt: skip


def cell(row: dict[str, Any], key: str) -> dict[str, Any]:
    """The figure of a row with its interval, under the name of its data set."""
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


def main() -> None:
    """Write the table."""
    files = (FOLDER / "metrics.json", FOLDER / "one_class.json")
    metrics, one_class = (read_json(file, "what evaluate.py leaves") for file in files)
    write_table(ablation_rows(metrics, one_class), COLUMNS, FOLDER / "ablation", CAPTION)
    print(FOLDER / "ablation.md")


if __name__ == "__main__":
    main()
