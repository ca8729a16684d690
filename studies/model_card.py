"""Write the figures of the released detector into its model card: results/deepfake-v2/metrics.json -> MODEL_CARD.md

  python -m studies.model_card

Reads what evaluate.py left for the release (`python evaluate.py --checkpoint checkpoints/deepfake-v2.pt --data ...
--tiers clean web hard --output-dir results/deepfake-v2`) and checkpoints/deepfake-v2.json of release.py; writes the
tables card, verdicts and identity as .csv, .md and .tex beside the metrics and copies them into
checkpoints/MODEL_CARD.md.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from models.operating_point import OperatingPoint
from utils.args import RELEASE_FILE
from utils.attacks.report import wilson
from utils.checkpoints.slimming import description_file
from utils.errors import UserError
from utils.files import ROOT, atomic_write_text, read_json, read_text
from utils.scoring.table import ScoreTable, read_scores
from utils.tables import write_table

COLUMNS = [
    ("dataset", "Test data"),
    ("seen", "Source"),
    ("tier", "Tier"),
    ("n_real", "Real"),
    ("n_fake", "Fake"),
    ("auc", "AUC"),
    ("acc", "Acc"),
    ("real_acc", "Real acc"),
    ("fake_acc", "Fake acc"),
    ("ece", "ECE"),
]
VERDICT_COLUMNS = [
    ("dataset", "Test data"),
    ("tier", "Tier"),
    ("label", "Images"),
    ("n", "Count"),
    ("fake", "Called fake"),
    ("unsure", "Unsure"),
    ("real", "Called real"),
    ("fpr1", "Fake with --threshold fpr1"),
]
VERDICT_TIERS = ("clean", "web")
IDENTITY_COLUMNS = [("fact", "Fact"), ("value", "Value")]


def main() -> None:
    """Write the tables and fill the card."""
    folder = ROOT / "results" / RELEASE_FILE.stem
    rows = [
        row for row in read_json(folder / "metrics.json", "the metrics of the release") if row["generator"] == "all"
    ]
    write_table(rows, COLUMNS, folder / "card", "The released detector; 95 % bootstrap intervals.")
    description = read_json(description_file(RELEASE_FILE), "the description of the release")
    scores = [read_scores(file) for file in sorted((folder / "scores").glob(f"{RELEASE_FILE.stem}__*.csv.gz"))]
    said = [row for table in scores for row in verdict_rows(table, OperatingPoint.from_checkpoint(description))]
    write_table(said, VERDICT_COLUMNS, folder / "verdicts", "What predict.py says; 95 % Wilson intervals.")
    facts = identity(description)
    write_table(facts, IDENTITY_COLUMNS, folder / "identity", "The released file.")
    card = RELEASE_FILE.parent / "MODEL_CARD.md"
    text = read_text(card, "the model card")
    for region, table in (("identity", "identity"), ("verdicts", "verdicts"), ("figures", "card")):
        text = fill(text, region, f"results/{folder.name}/{table}.md", (folder / f"{table}.md").read_text("utf-8"))
    atomic_write_text(card, text)
    print(card)


def verdict_rows(table: ScoreTable, point: OperatingPoint) -> list[dict[str, Any]]:
    """The shares of each verdict of predict.py among the images of a data set, one row per tier and label."""
    rows = []
    for (dataset, tier), part in table.groups("dataset", "tier"):
        found = point.verdicts(part.p_fake)
        for label, name in enumerate(("real", "fake")):
            counts = Counter(said for said, true in zip(found, part.label, strict=True) if true == label)
            n = sum(counts.values())
            row: dict[str, Any] = {"dataset": dataset, "tier": tier, "label": name, "n": n}
            counts["fpr1"] = int((part.p_fake[part.label == label] >= point.threshold("fpr1")).sum())
            for said in ("fake", "unsure", "real", "fpr1"):
                row |= {said: counts[said] / max(1, n), f"{said}_ci": wilson(counts[said], n)}
            if n and tier in VERDICT_TIERS:
                rows.append(row)
    return rows


def identity(description: dict[str, Any]) -> list[dict[str, str]]:
    """What tells the released file from any other, one row per fact."""
    geometry, thresholds = description["geometry"], description["thresholds"]
    facts = {
        "file": description["file"],
        "sha256": description["sha256"],
        "size": f"{description['bytes']:,} bytes",
        "weights": description["precision"],
        "model": description["model"],
        "input": f"{geometry['mode']} of {geometry['size']} px"
        + (f" of the image scaled to {geometry['resize_to']} px" if geometry.get("resize_to") else ""),
        "largest difference to the run": f"{description['parity']['max_logit_difference']:.4f} logits",
        **{f"threshold {name}": f"{value:.4f}" for name, value in thresholds.items()},
    }
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
