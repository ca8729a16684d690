"""Write the tables of the model card: results/deepfake-v2/metrics.json -> checkpoints/MODEL_CARD.md

  python -m studies.model_card

Reads the results of the release (`python evaluate.py --checkpoint checkpoints/deepfake-v2.pt --data ... --tiers clean
web hard --output-dir results/deepfake-v2`) and its description, checkpoints/deepfake-v2.json. Writes the tables card,
verdicts, identity and overview as .csv, .md and .tex to the same folder and copies them into the card.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.operating_point import OperatingPoint
from utils.args import RELEASE_FILE, check_output_dir, make_parser, run_script
from utils.checkpoints.slimming import description_file
from utils.errors import UserError
from utils.files import ROOT, atomic_write_text, read_json, read_text
from utils.metrics.binary import wilson
from utils.scoring.table import ScoreTable, read_scores
from utils.tables import columns, write_table

COLUMNS = [
    *columns(dataset="Test data", seen="Source", tier="Tier", n_real="Real", n_fake="Fake", auc="AUC", acc="Acc"),
    *columns(real_acc="Real acc", fake_acc="Fake acc", ece="ECE"),
]
VERDICT_COLUMNS = [
    *columns(dataset="Test data", tier="Tier", label="Images", n="Count", fake="Called fake", unsure="Unsure"),
    *columns(real="Called real", fpr1="Fake with --threshold fpr1"),
]
VERDICT_TIERS = ("clean", "web")
CARD = RELEASE_FILE.parent / "MODEL_CARD.md"
RESULTS = ROOT / "results" / RELEASE_FILE.stem
PAIRED = ROOT / "results" / "generalisation" / "one_class.json"
OVERVIEW_CAPTION = "The released detector; AUC with 95 % bootstrap intervals, rates with 95 % Wilson intervals."
IDENTITY_COLUMNS = columns(fact="Fact", value="Value")
OVERVIEW_COLUMNS = [
    *columns(dataset="Source", seen="Domain", n_real="Reals", n_fake="Fakes", auc="AUC", auc_web="AUC, shared"),
    *columns(false_alarms="Reals called fake", found="Fakes called fake"),
]


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of model_card.py."""
    parser = make_parser(__doc__, "python -m studies.model_card")
    parser.add_argument("--release", default=str(RELEASE_FILE), metavar="PT", help="default: the released checkpoint")
    parser.add_argument("--results", default=str(RESULTS), metavar="DIR", help="default: results/deepfake-v2")
    parser.add_argument("--paired", default=str(PAIRED), metavar="JSON", help="metrics of one-class sets in one format")
    parser.add_argument("--output-dir", metavar="DIR", help="folder for tables and a copy of the card, instead of both")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Write the tables and fill the card."""
    args = get_args_parser().parse_args(argv)
    results, release = Path(args.results), Path(args.release)
    folder = check_output_dir(args.output_dir) if args.output_dir else results
    metrics = read_json(results / "metrics.json", "the metrics of the release")
    description = read_json(description_file(release), "the description of the release")
    scores = [read_scores(file) for file in sorted((results / "scores").glob(f"{release.stem}__*.csv.gz"))]
    point = OperatingPoint.from_checkpoint(description)
    measured = [row for row in metrics if row["generator"] == "all"]
    said = [row for table in scores for row in verdict_rows(table, point)]
    paired = [row for row in read_json(Path(args.paired)) if row["checkpoint"] == release.stem]
    write_table(overview(measured, said, paired), OVERVIEW_COLUMNS, folder / "overview", OVERVIEW_CAPTION)
    tables = {
        "identity": (identity(description), IDENTITY_COLUMNS, "The released file."),
        "verdicts": (said, VERDICT_COLUMNS, "What predict.py says; 95 % Wilson intervals."),
        "card": (measured, COLUMNS, "The released detector; 95 % bootstrap intervals."),
    }
    text = read_text(CARD, "the model card")
    for name, (rows, titles, caption) in tables.items():
        table = write_table(rows, titles, folder / name, caption)[1].read_text(encoding="utf-8")
        text = fill(text, "figures" if name == "card" else name, f"results/{RESULTS.name}/{name}.md", table)
    card = folder / CARD.name if args.output_dir else CARD
    atomic_write_text(card, text)
    print(card)
    return {"card": str(card)}


def verdict_rows(table: ScoreTable, point: OperatingPoint) -> list[dict[str, Any]]:
    """Return the share of each verdict among the images of a data set, one row per tier and label."""
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


def overview(rows: list[dict], verdicts: list[dict], paired: list[dict]) -> list[dict[str, Any]]:
    """One row per source, in-domain sources first: AUC, and how often predict.py says fake.

    Args:
        rows: metrics rows of all tiers.
        verdicts: rows of :func:`verdict_rows`.
        paired: metrics rows of one-class sets against the real images of other sets.
    """
    against = {row["dataset"].split(" / ")[0]: row for row in paired}
    web = {row["dataset"]: row for row in rows if row["tier"] == "web"}
    called = {(row["dataset"], row["label"]): row for row in verdicts if row["tier"] == "clean"}
    table = []
    for row in sorted((row for row in rows if row["tier"] == "clean"), key=lambda row: row["seen"] == "unseen"):
        name, shared = row["dataset"], web[row["dataset"]]
        auc = against.get(name, row)
        line = {key: row[key] for key in ("dataset", "seen", "n_real", "n_fake")}
        line |= {"auc": auc["auc"], "auc_ci": auc["auc_ci"], "auc_web": shared["auc"], "auc_web_ci": shared["auc_ci"]}
        for key, label in (("false_alarms", "real"), ("found", "fake")):
            if said := called.get((name, label)):
                line |= {key: said["fake"], f"{key}_ci": said["fake_ci"]}
        table.append(line)
    return table


def identity(description: dict[str, Any]) -> list[dict[str, str]]:
    """Return what identifies the released file, one row per fact."""
    geometry, thresholds = description["geometry"], description["thresholds"]
    facts = {
        "file": description["file"],
        "sha256": description["sha256"],
        "size": f"{description['bytes']:,} bytes",
        "weights": description["precision"],
        "model": description["model"],
        "input": f"{geometry['mode']} of {geometry['size']} px"
        + (f" of the image scaled to {geometry['resize_to']} px" if geometry.get("resize_to") else "")
        + (f", framed at {geometry['margin']:g} times its longer side" if "margin" in geometry else ""),
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
    run_script(main)
