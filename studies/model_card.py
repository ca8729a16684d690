"""Write the tables of a release and put them into its model card: results/NAME/metrics.json -> checkpoints/NAME.md

  python -m studies.model_card --release checkpoints/deepfake-v2.pt

Reads the description that release.py wrote, checkpoints/NAME.json, and the results of the release in results/NAME:
`python evaluate.py --checkpoint checkpoints/NAME.pt --data ... --tiers clean web hard common --pair faces140k utkface
--output-dir results/NAME`. Writes the tables identity, overview, card and verdicts as .csv, .md and .tex to the same
folder, renews the tables in the card, and writes the figures of the overview that the web page shows to
checkpoints/NAME.sources.json, followed by those of --left-out, a table of studies.leave_source_out. Sets of fakes only
have the AUC against the real images of --pair in the tier common, because all images are in one format there.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.operating_point import OperatingPoint
from utils.args import check_output_dir, make_parser, run_script
from utils.checkpoint_files import RELEASE_FILE, SOURCES_SUFFIX
from utils.files import ROOT, atomic_write_text, read_json, read_text
from utils.metrics.binary import wilson
from utils.scoring.table import ScoreTable, read_scores, read_sidecar
from utils.tables import columns, with_current_tables, write_table

COLUMNS = [
    *columns(dataset="Test data", seen="Source", tier="Tier", n_real="Real", n_fake="Fake", auc="AUC", acc="Acc"),
    *columns(real_acc="Real acc", fake_acc="Fake acc", ece="ECE"),
]
VERDICT_COLUMNS = [
    *columns(dataset="Test data", tier="Tier", label="Images", n="Count", fake="Called fake", unsure="Unsure"),
    *columns(real="Called real", fpr1="Fake with --threshold fpr1"),
]
VERDICT_TIERS = ("clean", "web")
OVERVIEW_RATES = {"false_alarms": ("real", "fake"), "unsure": ("real", "unsure"), "found": ("fake", "fake")}
ABOUT = {  # what the pictures of a source are, for readers
    "faces140k": "photographs from Flickr, and faces made by StyleGAN",
    "openforensics": "people in everyday photographs, and faces blended into such photographs",
    "dfdc": "frames from videos of actors, and the same with swapped faces",
    "photoshop": "portraits, and portraits changed by retouchers",
    "generated_photos": "studio portraits made by a GAN",
    "sfhq": "portraits made by StyleGAN2",
    "utkface": "tight crops of faces from web photographs",
    "stable_diffusion": "portraits made by Stable Diffusion 2.1",
    "sdxl": "portraits made by SDXL",
    "flux": "people at work, made by FLUX.1",
    "inswapper": "photographs with a face swapped by inswapper",
    "gov_portraits": "portraits of US government staff",
    "parliament": "official portraits of members of parliament",
    "stock": "stock photographs of men",
    "web_faces": "tight crops of faces from web photographs, mostly East Asian",
}
LEFT_OUT = ", left out of training for this test"
PAIRED = ROOT / "results" / "generalisation" / "one_class.json"  # of deepfake-v2 and its candidates
PAIRED_TIER = "common"
OVERVIEW_CAPTION = "The released detector; AUC with 95 % bootstrap intervals, rates with 95 % Wilson intervals."
IDENTITY_COLUMNS = columns(fact="Fact", value="Value")
OVERVIEW_COLUMNS = [
    *columns(dataset="Source", seen="Domain", n_real="Reals", n_fake="Fakes", auc="AUC", auc_web="AUC, shared"),
    *columns(false_alarms="Reals called fake", unsure="Reals unsure", found="Fakes called fake"),
]


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of model_card.py."""
    parser = make_parser(__doc__, "python -m studies.model_card")
    parser.add_argument("--release", default=str(RELEASE_FILE), metavar="PT", help="default: the released checkpoint")
    parser.add_argument("--results", metavar="DIR", help="output folder of evaluate.py (default: results/NAME)")
    paired = "metrics of sets of fakes only (default: one_class.json in --results, else in results/generalisation)"
    parser.add_argument("--paired", metavar="JSON", help=paired)
    parser.add_argument("--left-out", metavar="JSON", help="sources.json of the recipe, for the web page")
    parser.add_argument("--output-dir", metavar="DIR", help="folder for the tables; the card stays as it is")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Write the tables and renew those of the card; returns ``{"overview": rows}``."""
    args = get_args_parser().parse_args(argv)
    release = Path(args.release)
    results = Path(args.results or ROOT / "results" / release.stem)
    folder = check_output_dir(args.output_dir or results)
    description = read_json(release.with_suffix(".json"), "the description of the release")
    metrics = read_json(results / "metrics.json", "the metrics of the release")
    own_pairs = results / "one_class.json"
    pairs = read_json(Path(args.paired or (own_pairs if own_pairs.is_file() else PAIRED)), "metrics of pairs")
    files = sorted((results / "scores").glob(f"{release.stem}__*.csv.gz"))
    scores, sidecars = [read_scores(file) for file in files], [read_sidecar(file) for file in files]
    point = OperatingPoint.from_checkpoint(description)
    measured = [row for row in metrics if row["generator"] == "all"]
    said = [row for table in scores for row in verdict_rows(table, point)]
    paired = [row for row in pairs if (row["checkpoint"], row["tier"]) == (release.stem, PAIRED_TIER)]
    summary = overview(measured, said, paired)
    write_table(summary, OVERVIEW_COLUMNS, folder / "overview", OVERVIEW_CAPTION)
    write_table(identity(description, sidecars), IDENTITY_COLUMNS, folder / "identity", "The released file.")
    write_table(said, VERDICT_COLUMNS, folder / "verdicts", "What predict.py says; 95 % Wilson intervals.")
    write_table(measured, COLUMNS, folder / "card", "The released detector; 95 % bootstrap intervals.")
    sources = (folder if args.output_dir else release.parent) / (release.stem + SOURCES_SUFFIX)
    left_out = read_json(Path(args.left_out), "the table of sources left out")["rows"] if args.left_out else []
    atomic_write_text(sources, json.dumps([*for_readers(summary), *left_out_for_readers(left_out)], indent=1) + "\n")
    if not args.output_dir:
        card = release.with_suffix(".md")
        atomic_write_text(card, with_current_tables(read_text(card, "the model card"), ROOT))
        print(card)
    return {"overview": summary}


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
        for key, (label, verdict) in OVERVIEW_RATES.items():
            if said := called.get((name, label)):
                line |= {key: said[verdict], f"{key}_ci": said[f"{verdict}_ci"]}
        table.append(line)
    return table


def for_readers(summary: list[dict]) -> list[dict[str, Any]]:
    """The rows of :func:`overview` as the web page shows them: what is in a source, and how often it is misjudged.

    Shares of verdicts ``fake`` among the reals and the fakes, in [0, 1]; None where a source has no such pictures.
    """
    return [
        {
            "source": row["dataset"],
            "about": ABOUT.get(row["dataset"], ""),
            "seen": row["seen"] == "in-domain",
            "n_real": row["n_real"],
            "real_called_fake": row.get("false_alarms"),
            "n_fake": row["n_fake"],
            "fake_found": row.get("found"),
        }
        for row in summary
    ]


def left_out_for_readers(rows: list[dict]) -> list[dict[str, Any]]:
    """The rows of a table of sources left out in the form of :func:`for_readers`; a release was trained on them."""
    return [
        {
            "source": row["source"],
            "about": ABOUT.get(row["source"], "") + LEFT_OUT,
            "seen": False,
            "n_real": row["n_real"],
            "real_called_fake": row.get("real_fake"),
            "n_fake": row["n_fake"],
            "fake_found": row.get("fake_fake"),
        }
        for row in rows
        if row["left_out"] != "mean"
    ]


def identity(description: dict[str, Any], sidecars: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return what identifies the released file, one row per fact; the last ones are those of the test sets."""
    members, bases = description.get("members") or [], description.get("base") or []
    whole = {info["dataset"]: (len(info.get("without_face") or []), info["n_images"]) for info in sidecars}
    facts = {
        "file": description["file"],
        "sha256": description["sha256"],
        "size": f"{description['bytes']:,} bytes",
        "weights": description["precision"],
        "model": " of ".join([description["model"], *([", ".join(members)] if members else [])]),
        **{f"base weights {base['source']}": f"sha256 {base['sha256']}" for base in bases},
        "input": describe_input(description["geometry"]),
        "largest difference to the run": f"{description['parity']['max_logit_difference']:.4f} logits",
        "fitted on": ", ".join(description.get("fitted_on") or []),
        **{f"threshold {name}": f"{value:.4f}" for name, value in description["thresholds"].items()},
        "faces of the test sets found by": ", ".join(sorted({info.get("finder") or "" for info in sidecars})),
        "test pictures without a face": ", ".join(
            f"{n} of {total} in {name}" for name, (n, total) in whole.items() if n
        ),
    }
    return [{"fact": fact, "value": value} for fact, value in facts.items() if value]


def describe_input(geometry: dict[str, Any]) -> str:
    """Say in words which part of a picture the detector sees."""
    if geometry["mode"] == "face":
        return f"a square of {geometry['margin']:g} times the largest face, scaled to {geometry['size']} px"
    scaled = f" of the image scaled to {geometry['resize_to']} px" if geometry.get("resize_to") else ""
    return f"{geometry['mode']} of {geometry['size']} px{scaled}"


if __name__ == "__main__":
    run_script(main)
