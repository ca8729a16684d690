"""Collect the published rows: results/*/metrics.json and the JSON files of their scores -> results/summary.*

  python results/summarize.py

Writes summary.csv, .md and .tex, the figure summary.pdf and .png, and commands.txt: how each checkpoint was trained
and evaluated, as recorded by train.py and evaluate.py themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.figures import interval_bar_figure, save_figure
from utils.files import atomic_write_text, read_json
from utils.tables import write_table

COLUMNS = [
    ("dataset", "Test data"), ("model", "Model"), ("trained_on", "Trained on"), ("checkpoint", "Run"), ("n", "Images"),
    ("auc", "AUC"), ("acc", "Acc"), ("real_acc", "Real acc"), ("fake_acc", "Fake acc"),
]  # fmt: skip


def main() -> None:
    """Collect, and write table, figure and commands."""
    rows, commands = [], {}
    for file in sorted((ROOT / "results").glob("*/metrics.json")):
        for row in read_json(file):
            if row["generator"] != "all" or row["auc"] is None or row["tier"] != "clean":
                continue
            scores = file.parent / "scores" / f"{row['checkpoint']}__{row['dataset']}__{row['split']}.json"
            facts = read_json(scores)
            rows.append({**row, "n": row["n_real"] + row["n_fake"], "trained_on": ", ".join(facts["trained_on"])})
            commands.setdefault(row["checkpoint"], [facts["train_command"], facts["command"]])
    rows.sort(key=lambda row: (row["dataset"], -row["auc"]))
    folder = ROOT / "results"
    write_table(rows, COLUMNS, folder / "summary", "Test AUC and accuracy; 95 % bootstrap intervals.")
    names = [f"{row['dataset']}: {row['checkpoint']}" for row in rows]
    figure = interval_bar_figure(
        names, [row["auc"] for row in rows], [row["auc_ci"] for row in rows], x_label="Test AUC"
    )
    save_figure(figure, folder / "summary")
    lines = dict.fromkeys(line for pair in commands.values() for line in pair if line)
    atomic_write_text(folder / "commands.txt", "\n".join(lines) + "\n")
    print((folder / "summary.md").read_text(), end="")


if __name__ == "__main__":
    main()
