"""Tables, robust-accuracy curves and the transfer matrix, drawn from finished attack cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.attacks.cells import Cell, current_results, read_cell
from utils.attacks.threat_model import size_name, unusual_settings
from utils.figures import GREY, legend_below, line_style, new_figure, save_figure, styled
from utils.files import read_json, write_json
from utils.metrics.binary import auc, wilson
from utils.tables import columns, write_table

COLUMNS = [
    *columns(checkpoint="Checkpoint", dataset="Data", attack_name="Attack", size="eps", n="n", clean_acc="Clean acc"),
    *columns(robust_acc="Robust acc", auc="AUC", mean_change="Mean change", max_change="Max change"),
    *columns(survive_png="8 bit", survive_jpeg="JPEG Q90", images_per_s="images/s", failed_checks="Failed checks"),
]
CHECK_COLUMNS = columns(checkpoint="Checkpoint", dataset="Data", check="Check", passed="Passed", detail="Found")
ROW_TOLERANCE = 0.01  # of accuracy between two rows
FORMATS = {"mean_change": ".5f", "max_change": ".5f", "images_per_s": ".1f"}
CAPTION = (
    "Robust accuracy with 95 % Wilson intervals. Changes are in pixel units and in the norm of the attack; "
    "8 bit and JPEG Q90 are the shares of successful attacks that survive saving. Do not trust a row with a failed "
    "check."
)


def cell_row(cell: Cell) -> dict[str, Any]:
    """Summarise a cell. Accuracies cover the attacked images; a robust image is right before and after the attack.

    AUC covers all images, including those that the direction excludes.
    """
    attacked, info, plan = cell.attacked, cell.info, cell.info["plan"]
    clean, robust = cell.right("clean")[attacked], (cell.right("clean") & cell.right())[attacked]
    won = cell.right("clean") & ~cell.right() & attacked
    change = cell.extra[plan["norm"]][attacked]
    unusual = unusual_settings(plan)
    name = plan["attack"]
    if name in ("pgd", "mifgsm"):  # whose steps are always named
        name += f"-{plan['steps']}"
        unusual.pop("steps", None)
    name += "" if plan["norm"] == "linf" else " L2"
    name += "".join(f", {setting}" for setting in unusual.values())
    return {
        **{key: info[key] for key in ("checkpoint", "source", "dataset", "split", "data_fingerprint")},
        "norm": plan["norm"],
        "direction": info["direction"],
        "attack": plan["attack"],
        "attack_name": name if info["direction"] == "both" else f"{name} {info['direction']}",
        "eps": plan["eps"],
        "size": size_name(plan["eps"]),
        "n": len(clean),
        "clean_acc": float(clean.mean()),
        "clean_acc_ci": wilson(int(clean.sum()), len(clean)),
        "robust_acc": float(robust.mean()),
        "robust_acc_ci": wilson(int(robust.sum()), len(robust)),
        "auc": auc(cell.table.label, cell.table.p_fake),
        "mean_change": float(change.mean()),
        "max_change": float(change.max()),
        "successes": int(won.sum()),
        "survive_png": float((~cell.right("rounded")[won]).mean()) if won.any() else None,
        "survive_jpeg": float((~cell.right("jpeg")[won]).mean()) if won.any() else None,
        "images_per_s": info["images_per_s"],
        "unreadable": len(info["unreadable"]),
        "failed": list(info["failed"]),
    }


def write_attack_report(folder: Path, current: Mapping[str, str]) -> list[dict[str, Any]]:
    """Write tables and figures for every finished cell in a folder; returns the rows of the main table.

    ``current`` has the digests of this run's checkpoints by name: results of other files of that name are left out.
    """
    cells = [read_cell(file) for file in current_results(folder / "cells", current)]
    checks = [read_json(file, "a file of checks") for file in current_results(folder / "checks", current)]
    rows = [cell_row(cell) for cell in cells]
    mark_mixed(rows, cells)
    name_splits(rows, checks)
    rows.sort(key=lambda row: (row["dataset"], row["checkpoint"], row["norm"], row["attack_name"], row["eps"]))
    for row in rows:
        row["failed"] += [
            f"{check['check']}: no"
            for entry in checks
            for check in entry["checks"]
            if not check["passed"]
            and (entry["checkpoint"], entry["dataset"], entry["norm"]) == (row["source"], row["dataset"], row["norm"])
        ]
    compare_rows(rows)
    for row in rows:
        row["failed_checks"] = "; ".join(row["failed"])
    direct = [row for row in rows if row["source"] == row["checkpoint"]]
    write_json(folder / "attacks.json", rows)
    if direct:
        write_table(direct, COLUMNS, folder / "attacks", CAPTION, FORMATS)
    for dataset, norm in dict.fromkeys((row["dataset"], row["norm"]) for row in direct):
        chosen = [row for row in direct if (row["dataset"], row["norm"]) == (dataset, norm)]
        save_figure(robust_figure(chosen, dataset, norm), folder / f"robust_{dataset}_{norm}")
    for suffix in ("csv", "md", "tex"):  # an earlier run may have had results that are left out now
        (folder / f"checks.{suffix}").unlink(missing_ok=True)
        (folder / f"transfer.{suffix}").unlink(missing_ok=True)
    if checks:
        lines = [{**entry, **check} for entry in checks for check in entry["checks"]]
        write_table(lines, CHECK_COLUMNS, folder / "checks", "Sanity checks of the attacks.")
    if len(rows) > len(direct):
        write_transfer(rows, folder)
    return direct


def name_splits(rows: Sequence[dict[str, Any]], checks: Sequence[dict[str, Any]]) -> None:
    """Add the split to the name of each data set of which several splits were attacked."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row["dataset"]].add(row["split"])
    for entry in (*rows, *checks):
        if len(found[entry["dataset"]]) > 1 and "split" in entry:  # checks by earlier versions lack it
            entry["dataset"] += f" {entry['split']}"


def mark_mixed(rows: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> None:
    """Mark the rows of a checkpoint name under which the cells of several files are stored."""
    found: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        for name, digest in cell.info.get("digests", {}).items():
            found[name].add(digest)
    for row in rows:
        for name in dict.fromkeys((row["checkpoint"], row["source"])):
            if len(found[name]) > 1:
                row["failed"].append(f"cells of {len(found[name])} different checkpoints named {name}")


def compare_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Mark rows that contradict each other: extends ``failed`` of each row whose attack was too weak.

    A larger eps may not leave more images than a smaller one, PGD not more than FGSM or Square, and strong not more
    than any other attack.
    """
    setting = ("checkpoint", "source", "dataset", "split", "data_fingerprint", "norm", "direction")
    for row in rows:
        for other in rows:
            same = all(row[key] == other[key] for key in setting)
            if not same or row["robust_acc"] <= other["robust_acc"] + ROW_TOLERANCE:
                continue
            if row["attack_name"] == other["attack_name"] and other["eps"] < row["eps"]:
                row["failed"].append("larger eps helps the defender")
            elif row["eps"] == other["eps"] and (
                row["attack"] == "strong" or (row["attack"] == "pgd" and other["attack"] in ("fgsm", "square"))
            ):
                row["failed"].append(f"weaker than {other['attack']}")
        row["failed"] = list(dict.fromkeys(row["failed"]))


def write_transfer(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write the robust accuracy of each detector (columns) on images crafted with every other one (rows)."""
    keys = ("dataset", "attack_name", "size", "source")
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(tuple(row[key] for key in keys), {key: row[key] for key in keys})
        line[row["checkpoint"]], line[f"{row['checkpoint']}_ci"] = row["robust_acc"], row["robust_acc_ci"]
    titles = columns(dataset="Data", attack_name="Attack", size="eps", source="Crafted with")
    titles = [*titles, *((name, name) for name in dict.fromkeys(row["checkpoint"] for row in rows))]
    caption = "Black-box transfer: robust accuracy of each detector on images crafted with another one."
    write_table([lines[key] for key in sorted(lines)], titles, folder / "transfer", caption)


@styled
def robust_figure(rows: Sequence[dict[str, Any]], dataset: str, norm: str) -> Any:
    """Draw robust accuracy over eps, one panel per checkpoint and one curve per attack; eps = 0 is clean accuracy."""
    names = list(dict.fromkeys(row["checkpoint"] for row in rows))
    attacks = list(dict.fromkeys(row["attack_name"] for row in rows))
    figure, axes = new_figure(0.8 + 2.9 * len(names), 3.4, len(names), sharey=True)
    factor = 255 if norm == "linf" else 1
    for panel, name in zip(axes, names, strict=True):
        panel.axhline(0.5, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        for index, attack in enumerate(attacks):
            own = [row for row in rows if (row["checkpoint"], row["attack_name"]) == (name, attack)]
            if not own:
                continue
            eps = [0.0] + [row["eps"] * factor for row in own]
            low, high = zip(*(row["robust_acc_ci"] for row in own), strict=True)
            style = line_style(index)
            panel.fill_between(eps[1:], low, high, color=style["color"], alpha=0.15, linewidth=0)
            panel.plot(eps, [own[0]["clean_acc"]] + [row["robust_acc"] for row in own], label=attack, **style)
        panel.set(xlabel="eps (grey levels of 255)" if norm == "linf" else "eps (L2, pixel units)", ylim=(-0.02, 1.02))
        panel.set_title(name, fontsize=9)
    axes[0].set_ylabel(f"Robust accuracy on {dataset}")
    legend_below(figure, max(axes, key=lambda panel: len(panel.lines)), n_columns=4)
    return figure
