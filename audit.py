"""Look for what spoils an experiment before it starts: broken files, leaks across splits, labels that the file tells.

  python audit.py --data demo
  python audit.py --data data/140k data/wild --output-dir runs/audit-140k
  python audit.py --data data/140k --write-clean-list lists/140k-clean.csv

All splits of all specs are looked at together. Found are: files that cannot be read; the same file, the same pixels
and near duplicates (saved, scaled, mirrored or slightly cropped again) within and across splits and sets; format,
size, JPEG quality and metadata per class, and how well they alone tell real from fake; shifts in size, brightness
and sharpness. The output folder gets report.md, audit.json and figures (PDF and PNG); no image is copied.

  --write-clean-list writes path,label,generator,split without broken files and without duplicates, for
  --data csv:lists/140k-clean.csv. Of copies in several splits the one in test (else valid) stays, within a split the
  first. Train and evaluate on the list, not on the folder.

The summary goes to stdout:

  demo: 2400 images (1200 real, 1200 fake), 0 broken
  metadata demo: AUC 0.52 [0.50, 0.55]
  duplicates: 0 pairs across splits (leaks), 0 within a split, 0 originals with their forgery
  clean

Exit code 0: nothing found; 1: broken files or a leak across splits; 2: bad usage. A label that can be read off the
file is a warning.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.args import EXIT_DONE, EXIT_PARTIAL, check_output_dir, int_in, make_parser, run_script
from utils.files import atomic_write_text, open_output, write_json

LISTED = 300  # pairs of each kind in audit.json
PRINTED = 20  # lines of each kind on stdout


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of audit.py."""
    parser = make_parser(__doc__, "audit.py")
    parser.add_argument("--data", nargs="+", required=True, metavar="SPEC", help="data sets; all splits are audited")
    parser.add_argument("--output-dir", metavar="DIR", default="runs/audit", help="default: runs/audit")
    parser.add_argument("--write-clean-list", metavar="CSV", help="list what is left without broken files and copies")
    parser.add_argument("--workers", type=int_in(1, 256), help="processes that read images (default: one per core)")
    parser.add_argument(
        "--sample",
        type=int_in(2),
        metavar="N",
        help="look at N images of each spec only (a quick look: most copies are missed)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Audit; returns the findings, as audit.json has them, and ``exit_code``."""
    from utils.audit.records import check_clean_list, clean_indices, open_entries, write_clean_list

    args = get_args_parser().parse_args(argv)
    entries = open_entries(args.data, args.sample)
    check_clean_list(args.write_clean_list, entries, args.data)
    folder = check_output_dir(args.output_dir)
    facts = read_all(entries, args.workers)
    broken = [at for at, fact in enumerate(facts) if fact.error]
    pairs, findings = search(entries, facts)
    words = list(argv) if argv is not None else sys.argv[1:]
    findings = {"command": f"python audit.py {shlex.join(words)}"} | describe(entries, facts) | findings
    findings["broken"] = [{"path": entries[at].name, "reason": facts[at].error} for at in broken]
    findings["summary"] = summarize(entries, findings)
    findings["exit_code"] = EXIT_PARTIAL if broken or findings["n_leaks"] else EXIT_DONE
    if args.write_clean_list:
        kept = [entries[at] for at in clean_indices(entries, pairs, broken)]
        write_clean_list(args.write_clean_list, kept)
        findings["n_clean"] = len(kept)
        findings["summary"].append(f"clean list: {len(kept)} of {len(entries)} images")
    write_outputs(folder, entries, facts, findings)
    with open_output(None) as stream:
        print("\n".join([*findings["summary"], *verdict_lines(findings)]), file=stream)
    return findings


def read_all(entries: Sequence[Any], workers: int | None) -> list[Any]:
    """Read the facts of all files."""
    from tqdm import tqdm

    from utils.audit.image_facts import ImageFacts, read_facts

    facts = [ImageFacts()] * len(entries)
    found = read_facts([entry.path for entry in entries], workers)
    for at, fact in tqdm(found, total=len(entries), unit="img", desc="reading", disable=None, leave=False):
        facts[at] = fact
    return facts


def search(entries: Sequence[Any], facts: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Find duplicates and sort them into leaks, repeats and counterparts (an original and its forgery)."""
    from utils.audit.duplicates import find_duplicates
    from utils.audit.records import is_counterpart, is_leak

    found = find_duplicates(facts)
    lists: dict[str, list[dict]] = {"leaks": [], "repeats": [], "counterparts": []}
    for pair in found.pairs:
        first, second = entries[pair.first], entries[pair.second]
        kind = "leaks" if is_leak(first, second) else "counterparts" if is_counterpart(pair, entries) else "repeats"
        lists[kind].append(
            {
                "first": first.name,
                "second": second.name,
                "kind": pair.kind + (", mirrored" if pair.mirrored else ""),
                "labels": f"{first.label_name}, {second.label_name}",
                "splits": [first.split, second.split],
                "across_sets": first.dataset != second.dataset,
                "correlation": pair.correlation,
                "worst_part": pair.worst_part,
                "crop": pair.crop,
            }
        )
    result: dict[str, Any] = {f"n_{key}": len(rows) for key, rows in lists.items()}
    result |= {key: sorted(rows, key=lambda row: -row["correlation"])[:LISTED] for key, rows in lists.items()}
    result["search"] = {
        "comparisons": found.n_comparisons,
        "candidates": found.n_candidates,
        "radius": found.radius,
        "skipped_lookups": found.n_skipped,
        "flat_images": found.n_flat,
    }
    return found.pairs, result


def describe(entries: Sequence[Any], facts: Sequence[Any]) -> dict[str, Any]:
    """Counts, files per class, metadata classifiers and shifts."""
    import numpy as np

    from utils.audit.report import file_row
    from utils.audit.shortcuts import metadata_classifier, shifts

    datasets = list(dict.fromkeys(entry.dataset for entry in entries))
    keys = [(entry.dataset, entry.split, entry.label_name, entry.generator) for entry in entries]
    totals, bad = Counter(keys), Counter(key for key, fact in zip(keys, facts, strict=True) if fact.error)
    names = ("dataset", "split", "label", "generator")
    counts = [dict(zip(names, key, strict=True), images=totals[key], broken=bad[key]) for key in sorted(totals)]

    def chosen(**wanted: Any) -> list[Any]:
        return [
            fact
            for entry, fact in zip(entries, facts, strict=True)
            if not fact.error and all(getattr(entry, key) == value for key, value in wanted.items())
        ]

    files, metadata, groups = [], [], []
    for dataset in [*datasets, *(["all sets"] if len(datasets) > 1 else [])]:
        where = {} if dataset == "all sets" else {"dataset": dataset}
        classes = {label: chosen(**where, label=label) for label in (0, 1)}
        labels = np.repeat([0, 1], [len(classes[0]), len(classes[1])])
        found = metadata_classifier([*classes[0], *classes[1]], labels)
        if found:
            metadata.append({"dataset": dataset, **found})
        if where:
            files += [
                {"dataset": dataset, "label": name, **file_row(rows)}
                for name, rows in zip(("real", "fake"), classes.values(), strict=True)
                if rows
            ]
            groups.append((dataset, "real, fake", classes[0], classes[1]))
            train = chosen(**where, split="train")
            groups += [(dataset, f"train, {split}", train, chosen(**where, split=split)) for split in ("valid", "test")]
    return {
        "datasets": datasets,
        "n_images": len(entries),
        "counts": counts,
        "files": files,
        "metadata": metadata,
        "shifts": shifts(groups),
    }


def summarize(entries: Sequence[Any], findings: dict[str, Any]) -> list[str]:
    """The lines that report.md begins with and stdout shows."""
    from utils.audit.shortcuts import WARN_AUC

    lines = []
    for dataset in findings["datasets"]:
        rows = [row for row in findings["counts"] if row["dataset"] == dataset]
        by_class = {name: sum(row["images"] for row in rows if row["label"] == name) for name in ("real", "fake")}
        n_broken, total = sum(row["broken"] for row in rows), sum(row["images"] for row in rows)
        lines.append(f"{dataset}: {total} images ({by_class['real']} real, {by_class['fake']} fake), {n_broken} broken")
    for row in findings["metadata"]:
        low, high = row["auc_ci"]
        lines.append(f"metadata {row['dataset']}: AUC {row['auc']:.2f} [{low:.2f}, {high:.2f}]")
        if row["auc"] > WARN_AUC and low > 0.5:
            telling = ", ".join(found["column"] for found in row["columns"][:3])
            lines.append(f"warning: {row['dataset']}: the label can be read off the file, most of all by {telling}")
    lines.append(
        f"duplicates: {findings['n_leaks']} pairs across splits (leaks), {findings['n_repeats']} within a "
        f"split, {findings['n_counterparts']} originals with their forgery"
    )
    return lines


def verdict_lines(findings: dict[str, Any]) -> list[str]:
    """Name what must be looked at, or say that there is nothing."""
    lines = [f"broken: {row['path']}: {row['reason']}" for row in findings["broken"][:PRINTED]]
    lines += [f"leak: {row['first']} = {row['second']} ({row['kind']})" for row in findings["leaks"][:PRINTED]]
    hidden = len(findings["broken"]) + findings["n_leaks"] - len(lines)
    if hidden:
        lines.append(f"... and {hidden} more, see audit.json")
    return lines or ["clean"]


def write_outputs(folder: Path, entries: Sequence[Any], facts: Sequence[Any], findings: dict[str, Any]) -> None:
    """Write audit.json, report.md and the figures."""
    from utils.audit.figures import distributions_figure, metadata_figure
    from utils.audit.report import markdown_report
    from utils.figures import save_figure

    write_json(folder / "audit.json", findings | {"broken": findings["broken"][:LISTED]})
    atomic_write_text(folder / "report.md", markdown_report(findings))
    by_class = {
        name: [fact for entry, fact in zip(entries, facts, strict=True) if entry.label == label and not fact.error]
        for label, name in enumerate(("real", "fake"))
    }
    save_figure(distributions_figure({name: rows for name, rows in by_class.items() if rows}), folder / "distributions")
    if findings["metadata"]:
        save_figure(metadata_figure(findings["metadata"]), folder / "metadata_auc")


if __name__ == "__main__":
    run_script(main)
