"""Write the figures of the released detector into its model card: results/deepfake-v1/metrics.json -> MODEL_CARD.md

  python results/model_card.py

Reads what evaluate.py left for the release (`python evaluate.py --checkpoint checkpoints/deepfake-v1.pt --data ...
--tiers clean web hard --output-dir results/deepfake-v1`) and checkpoints/deepfake-v1.json of release.py; writes the
tables card and identity as .csv, .md and .tex beside the metrics and copies both into checkpoints/MODEL_CARD.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.errors import UserError
from utils.files import atomic_write_text, read_json, read_text
from utils.release_file import RELEASE_FILE, description_file
from utils.tables import write_table

COLUMNS = [
    ("dataset", "Test data"), ("seen", "Source"), ("tier", "Tier"), ("n_real", "Real"), ("n_fake", "Fake"),
    ("auc", "AUC"), ("acc", "Acc"), ("real_acc", "Real acc"), ("fake_acc", "Fake acc"), ("ece", "ECE"),
]  # fmt: skip
IDENTITY_COLUMNS = [("fact", "Fact"), ("value", "Value")]


def main() -> None:
    """Write the tables and fill the card."""
    folder = ROOT / "results" / RELEASE_FILE.stem
    rows = [
        row for row in read_json(folder / "metrics.json", "the metrics of the release") if row["generator"] == "all"
    ]
    write_table(rows, COLUMNS, folder / "card", "The released detector; 95 % bootstrap intervals.")
    facts = identity(read_json(description_file(RELEASE_FILE), "the description of the release"))
    write_table(facts, IDENTITY_COLUMNS, folder / "identity", "The released file.")
    card = RELEASE_FILE.parent / "MODEL_CARD.md"
    text = read_text(card, "the model card")
    for region, table in (("identity", "identity"), ("figures", "card")):
        text = fill(text, region, f"results/{folder.name}/{table}.md", (folder / f"{table}.md").read_text("utf-8"))
    atomic_write_text(card, text)
    print(card)


def identity(description: dict[str, Any]) -> list[dict[str, str]]:
    """What tells the released file from any other, one row per fact."""
    geometry, thresholds = description["geometry"], description["thresholds"]
    facts = {
        "file": description["file"], "sha256": description["sha256"], "size": f"{description['bytes']:,} bytes",
        "weights": description["precision"], "model": description["model"],
        "input": f"{geometry['mode']} of {geometry['size']} px"
        + (f" of the image scaled to {geometry['resize_to']} px" if geometry.get("resize_to") else ""),
        "largest difference to the run": f"{description['parity']['max_logit_difference']:.4f} logits",
        **{f"threshold {name}": f"{value:.4f}" for name, value in thresholds.items()},
    }  # fmt: skip
    return [{"fact": fact, "value": value} for fact, value in facts.items()]


def fill(text: str, region: str, source: str, table_file: str) -> str:
    """Replace what stands between ``<!-- region -->`` and ``<!-- /region -->`` by the table of a file.

    Raises:
        UserError: the card has no such region.
    """
    before, opening, rest = text.partition(f"<!-- {region} -->\n")
    _, closing, after = rest.partition(f"<!-- /{region} -->")
    if not opening or not closing:
        raise UserError(f"expected <!-- {region} --> and <!-- /{region} --> in the model card, got none; restore it")
    table = table_file.partition("\n\n")[2]  # without its caption
    return f"{before}{opening}<!-- table: {source} -->\n{table}{closing}{after}"


if __name__ == "__main__":
    main()
