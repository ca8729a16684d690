"""What the release was chosen from: checkpoints/*/best.pt -> results/generalisation/candidates.csv, .md and .tex

  python results/candidates_table.py

Reads the validation and test figures that train.py and ensemble.py put into the checkpoints of the runs listed here
(their commands are in results/steps.txt).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.checkpoint import load_checkpoint
from utils.tables import write_table

RUNS = {
    "general": "from -both: forensic, forgeries, crop of 224 px, 6 epochs",
    "delivery": "from -general: delivery, forgeries, whole image, 4 epochs",
    "onward": "released; from -delivery: delivery, no forgeries, whole image, 4 epochs",
    "plain": "from -both: delivery, no forgeries, whole image, 5 epochs",
    "onward-delivery": "soup of -onward and -delivery",
    "onward-plain": "soup of -onward and -plain",
    "onward-both": "soup of -onward and -both",
    "onward-flip": "-onward on the image and its mirror image",
}
SETS = ("faces140k", "openforensics", "dfdc")
CAPTION = (
    "Candidates for the release, all tf_efficientnet_b0 (seed 0): AUC on validation, which decided, and on test. The "
    "best mean counts; of candidates within 0.005 the simplest, since the 95 % intervals are several times as wide."
)
COLUMNS = [
    ("run", "Run"), ("what", "What it is"), ("valid_mean", "Valid mean"),
    *((f"{split}_{name}", f"{split.capitalize()} {name}") for name in SETS for split in ("valid", "test")),
]  # fmt: skip


def candidate_row(run: str, what: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of a checkpoint as a row; ``valid_mean`` is over the three data sets."""
    row: dict[str, Any] = {"run": f"-{run}", "what": what}
    for split in ("valid", "test"):
        for found in metrics[split]:
            if found.get("generator", "all") == "all":
                name = f"{split}_{found['dataset']}"
                row |= {name: found["auc"], f"{name}_ci": found["auc_ci"]}
    row["valid_mean"] = sum(row[f"valid_{name}"] for name in SETS) / len(SETS)
    return row


def main() -> None:
    """Write the table."""
    rows = [
        candidate_row(run, what, load_checkpoint(ROOT / f"checkpoints/tf_efficientnet_b0-{run}/best.pt")["metrics"])
        for run, what in RUNS.items()
    ]
    target = ROOT / "results" / "generalisation" / "candidates"
    write_table(rows, COLUMNS, target, CAPTION)
    print(f"{target}.md")


if __name__ == "__main__":
    main()
