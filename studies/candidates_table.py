"""The candidates for the release: checkpoints/*/best.pt -> results/generalisation/candidates.json, .csv, .md and .tex

  python -m studies.candidates_table --checkpoint checkpoints/deepfake-v2 checkpoints/tf_efficientnet_b0-wild

One row per run, in the order of the command line, with the validation and test metrics stored in its checkpoint (the
commands are in results/steps.txt). The mean over tiers is that of the AUC on validation images, from --tiers-from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from utils.args import check_output_dir, make_parser, run_script
from utils.checkpoint_files import check_checkpoint_file
from utils.errors import UserError
from utils.files import ROOT, read_json, write_json
from utils.tables import columns, write_table

TRUNK = "tf_efficientnet_b0"
RUNS = {
    f"{TRUNK}-general": "from -both: forensic, forgeries, crop of 224 px, 6 epochs",
    f"{TRUNK}-delivery": "from -general: delivery, forgeries, whole image, 4 epochs",
    "deepfake-v1": "the release before; from -delivery: delivery, no forgeries, whole image, 4 epochs",
    f"{TRUNK}-plain": "from -both: delivery, no forgeries, whole image, 5 epochs",
    f"{TRUNK}-soup-delivery": "soup of deepfake-v1 and -delivery",
    f"{TRUNK}-soup-plain": "soup of deepfake-v1 and -plain",
    f"{TRUNK}-soup-both": "soup of deepfake-v1 and -both",
    f"{TRUNK}-flip": "deepfake-v1 on the image and its mirror image",
    f"{TRUNK}-light": "from deepfake-v1: light, whole image, 6 epochs",
    f"{TRUNK}-wild": "from deepfake-v1: wild, whole image, three stages frozen, 11 epochs",
    f"{TRUNK}-light-wild": "from -light: wild, whole image, 3 epochs",
    f"{TRUNK}-soup-light-wild": "soup of -light and -light-wild",
    "deepfake-v2": "released; soup of deepfake-v1, -light, -wild and -light-wild",
}
SETS = ("faces140k", "openforensics", "dfdc")
CAPTION = (
    "Candidates for the release, all tf_efficientnet_b0, one seed each: AUC on validation, which decided, and on test. "
    "The best mean counts; of candidates within 0.005 the simplest, since the 95 % intervals are several times as "
    "wide. For deepfake-v2 the mean over the tiers clean, web and hard was used instead."
)
COLUMNS = [
    *columns(run="Run", what="What it is", valid_mean="Valid mean", tier_mean="Valid mean of tiers"),
    *((f"{split}_{name}", f"{split.capitalize()} {name}") for name in SETS for split in ("valid", "test")),
]


def candidate_row(run: str, what: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of a checkpoint as a row; ``valid_mean`` is over the three data sets."""
    row: dict[str, Any] = {"run": run.removeprefix(TRUNK), "what": what}
    for split in ("valid", "test"):
        for found in metrics[split]:
            if found.get("generator", "all") == "all":
                name = f"{split}_{found['dataset']}"
                row |= {name: found["auc"], f"{name}_ci": found["auc_ci"]}
    if missing := [name for name in SETS if row.get(f"valid_{name}") is None]:
        raise UserError(
            f"expected validation results of {', '.join(SETS)} in {run}, found none of {', '.join(missing)}"
        )
    row["valid_mean"] = sum(row[f"valid_{name}"] for name in SETS) / len(SETS)
    return row


def tier_means(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean AUC of each run over its data sets and tiers, by its name in the table."""
    found: dict[str, list[float]] = {}
    for row in metrics:
        if row["generator"] == "all" and row["auc"] is not None:
            found.setdefault(row["checkpoint"].removeprefix(TRUNK), []).append(row["auc"])
    return {run: sum(aucs) / len(aucs) for run, aucs in found.items()}


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of candidates_table.py."""
    parser = make_parser(__doc__, "python -m studies.candidates_table")
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="DIR", help="run folders of candidates")
    tiers = str(ROOT / "results" / "candidates_by_tier" / "metrics.json")
    parser.add_argument("--tiers-from", default=tiers, metavar="JSON", help="metrics.json of the validation images")
    folder = str(ROOT / "results" / "generalisation")
    parser.add_argument("--output-dir", default=folder, metavar="DIR", help="default: results/generalisation")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Write the table."""
    args = get_args_parser().parse_args(argv)
    files = [check_checkpoint_file(path) for path in args.checkpoint]

    from utils.checkpoints.file import load_checkpoint

    target = check_output_dir(args.output_dir) / "candidates"
    means = tier_means(read_json(args.tiers_from, "the metrics of the candidates by tier"))
    rows = []
    for run, file in zip((file.parent.name for file in files), files, strict=True):
        row = candidate_row(run, RUNS.get(run, ""), load_checkpoint(file)["metrics"])
        rows.append(row | {"tier_mean": means.get(row["run"])})
    write_json(target.with_suffix(".json"), rows)
    write_table(rows, COLUMNS, target, CAPTION)
    print(f"{target}.md")
    return {"rows": rows}


if __name__ == "__main__":
    run_script(main)
