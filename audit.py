"""Find problems in data before an experiment: broken files, leaks across splits, wrong labels, label shortcuts.

  python audit.py --data demo
  python audit.py --data data/140k data/wild --output-dir runs/audit-140k
  python audit.py --data data/140k --write-clean-lists lists

All splits of all specs are examined together. The audit finds files that cannot be read; the same file, the same
pixels and near duplicates (saved, scaled, mirrored or slightly cropped again) within and across splits and datasets;
images listed as real and as fake; groups, such as the frames of a video, that are divided between splits (from the
column group of a CSV list, or @group_by=REGEX); format, size, JPEG quality and metadata per class, and how well they
alone tell real from fake; shifts in size, brightness and sharpness. The output folder receives report.md, audit.json
and figures (PDF and PNG); no image is copied.

  --write-clean-lists writes path,label,generator,split without broken files, duplicates, contradicting labels and
  divided groups, one list per data set and named after it, for --data csv:lists/140k.csv. Of copies or groups in
  several splits, those in test (else valid) stay; within a split, the first copy stays. Train and evaluate on the lists
  instead of the folders.

The summary goes to stdout:

  demo: 2400 images (1200 real, 1200 fake), 0 broken
  metadata demo: AUC 0.52 [0.50, 0.55]
  duplicates: 0 pairs across splits (leaks), 0 within a split, 0 originals with their forgery
  clean

Exit code 0: nothing found; 1: broken files, leaks, divided groups or contradicting labels; 2: bad usage. Labels that
can be predicted from file facts are only a warning.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.args import check_output_dir, command_line, exit_code, int_in, make_parser, run_script
from utils.files import atomic_write_text, open_output, write_json

if TYPE_CHECKING:
    from utils.audit.image_facts import ImageFacts
    from utils.audit.records import Entry

CLASSES = ("real", "fake")
LISTED = 300  # pairs of each kind in audit.json
PRINTED = 20  # lines of each kind on stdout


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of audit.py."""
    parser = make_parser(__doc__, "audit.py")
    parser.add_argument("--data", nargs="+", required=True, metavar="SPEC", help="datasets, with all their splits")
    parser.add_argument("--output-dir", metavar="DIR", default="runs/audit", help="default: runs/audit")
    clean = "write a list per data set without broken files and copies"
    parser.add_argument("--write-clean-lists", metavar="DIR", help=clean)
    parser.add_argument("--workers", type=int_in(1, 256), help="processes that read images (default: one per core)")
    parser.add_argument(
        "--sample", type=int_in(2), metavar="N", help="examine N images of each spec only: fast, but misses most copies"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Audit; returns the findings, as in audit.json, and ``exit_code``."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if args.sample and args.write_clean_lists:
        parser.error("expected --write-clean-lists without --sample, whose list would lack most images; drop one")

    from utils.audit.image_facts import read_facts
    from utils.audit.records import check_clean_lists, clean_indices, divided_groups, open_entries, write_clean_lists

    entries = open_entries(args.data, args.sample)
    lists = check_output_dir(args.write_clean_lists, "--write-clean-lists") if args.write_clean_lists else None
    if lists:
        check_clean_lists(lists, entries, args.data)
    folder = check_output_dir(args.output_dir)
    facts = read_facts([entry.path for entry in entries], args.workers)
    broken = [at for at, fact in enumerate(facts) if fact.error]
    pairs, found = search(entries, facts)
    findings = {"command": command_line("audit.py", argv)} | describe(entries, facts) | found
    findings["broken"] = [{"path": entries[at].name, "reason": facts[at].error} for at in broken]
    findings["groups"] = divided_groups(entries)
    findings["summary"] = summarize(findings)
    failed = len(broken) + found["n_leaks"] + found["n_conflicts"] + len(findings["groups"])
    findings["exit_code"] = exit_code(failed)
    if lists:
        kept = [entries[at] for at in clean_indices(entries, pairs, broken)]
        emptied = write_clean_lists(lists, kept, dict.fromkeys(entry.dataset for entry in entries))
        findings["n_clean"] = len(kept)
        none = f"; no list of {', '.join(emptied)}, of which no image is left" if emptied else ""
        findings["summary"].append(f"clean lists: {len(kept)} of {len(entries)} images{none}")
    write_outputs(folder, entries, facts, findings)
    with open_output(None) as stream:
        print("\n".join([*findings["summary"], *verdict_lines(findings)]), file=stream)
    return findings


def search(entries: Sequence[Entry], facts: Sequence[ImageFacts]) -> tuple[list[Any], dict[str, Any]]:
    """Find copies and sort them into conflicts, leaks, repeats and counterparts (``kind_of``)."""
    from utils.audit.duplicates import find_duplicates
    from utils.audit.records import kind_of

    found = find_duplicates(facts)
    lists: dict[str, list[dict]] = {"conflicts": [], "leaks": [], "repeats": [], "counterparts": []}
    for pair in found.pairs:
        first, second = entries[pair.first], entries[pair.second]
        lists[kind_of(pair, entries)].append(
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


def describe(entries: Sequence[Entry], facts: Sequence[ImageFacts]) -> dict[str, Any]:
    """Counts, files per class, metadata classifiers and shifts."""
    import numpy as np

    from utils.audit.report import file_row
    from utils.audit.shortcuts import metadata_classifier, shifts

    datasets = list(dict.fromkeys(entry.dataset for entry in entries))
    keys = [(entry.dataset, entry.split, entry.label_name, entry.generator) for entry in entries]
    totals, bad = Counter(keys), Counter(key for key, fact in zip(keys, facts, strict=True) if fact.error)
    names = ("dataset", "split", "label", "generator")
    counts = [dict(zip(names, key, strict=True), images=totals[key], broken=bad[key]) for key in sorted(totals)]
    readable = [(entry, fact) for entry, fact in zip(entries, facts, strict=True) if not fact.error]

    def chosen(**wanted: Any) -> list[ImageFacts]:
        return [fact for entry, fact in readable if all(getattr(entry, key) == wanted[key] for key in wanted)]

    files, metadata, groups = [], [], []
    for dataset in [*datasets, *(["all sets"] if len(datasets) > 1 else [])]:
        where = {} if dataset == "all sets" else {"dataset": dataset}
        real, fake = chosen(**where, label=0), chosen(**where, label=1)
        if found := metadata_classifier([*real, *fake], np.repeat([0, 1], [len(real), len(fake)])):
            metadata.append({"dataset": dataset, **found})
        if where:
            rows = zip(CLASSES, (real, fake), strict=True)
            files += [{"dataset": dataset, "label": name, **file_row(part)} for name, part in rows if part]
            train = chosen(**where, split="train")
            groups.append((dataset, "real, fake", real, fake))
            groups += [(dataset, f"train, {split}", train, chosen(**where, split=split)) for split in ("valid", "test")]
    return {
        "datasets": datasets,
        "n_images": len(entries),
        "counts": counts,
        "files": files,
        "metadata": metadata,
        "shifts": shifts(groups),
    }


def summarize(findings: dict[str, Any]) -> list[str]:
    """The lines at the top of report.md and on stdout."""
    from utils.audit.shortcuts import WARN_AUC

    lines = []
    for dataset in findings["datasets"]:
        rows = [row for row in findings["counts"] if row["dataset"] == dataset]
        real, fake = (sum(row["images"] for row in rows if row["label"] == name) for name in CLASSES)
        n_broken, total = sum(row["broken"] for row in rows), sum(row["images"] for row in rows)
        lines.append(f"{dataset}: {total} images ({real} real, {fake} fake), {n_broken} broken")
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
    if findings["n_conflicts"]:
        lines.append(f"conflicts: {findings['n_conflicts']} pairs of equal images as real and as fake")
    if findings["groups"]:
        lines.append(f"groups: {len(findings['groups'])} divided between splits")
    return lines


def verdict_lines(findings: dict[str, Any]) -> list[str]:
    """Name what needs attention, or say that nothing does."""
    lines = [f"broken: {row['path']}: {row['reason']}" for row in findings["broken"][:PRINTED]]
    lines += [
        f"conflict: {row['first']} = {row['second']} ({row['labels']})" for row in findings["conflicts"][:PRINTED]
    ]
    lines += [f"leak: {row['first']} = {row['second']} ({row['kind']})" for row in findings["leaks"][:PRINTED]]
    groups = findings["groups"]
    lines += [f"group: {row['group']} of {row['dataset']} is in {row['splits']}" for row in groups[:PRINTED]]
    hidden = len(findings["broken"]) + findings["n_conflicts"] + findings["n_leaks"] + len(groups) - len(lines)
    if hidden:
        lines.append(f"... and {hidden} more, see audit.json")
    return lines or ["clean"]


def write_outputs(folder: Path, entries: Sequence[Entry], facts: Sequence[ImageFacts], findings: dict) -> None:
    """Write audit.json, report.md and the figures."""
    from utils.audit.figures import distributions_figure, metadata_figure
    from utils.audit.report import markdown_report
    from utils.figures import save_figure

    write_json(folder / "audit.json", findings | {"broken": findings["broken"][:LISTED]})
    atomic_write_text(folder / "report.md", markdown_report(findings))
    readable = [(entry.label, fact) for entry, fact in zip(entries, facts, strict=True) if not fact.error]
    by_class = {name: [fact for own, fact in readable if own == label] for label, name in enumerate(CLASSES)}
    save_figure(distributions_figure({name: rows for name, rows in by_class.items() if rows}), folder / "distributions")
    if findings["metadata"]:
        save_figure(metadata_figure(findings["metadata"]), folder / "metadata_auc")


if __name__ == "__main__":
    run_script(main)
