"""The findings of an audit as Markdown; programs use audit.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from utils.audit.image_facts import ImageFacts
from utils.audit.shortcuts import WARN_AUC, column
from utils.tables import columns, markdown_table

Findings = Mapping[str, Any]

COUNT_COLUMNS = columns(
    dataset="Data", split="Split", label="Class", generator="Generator", images="Images", broken="Broken"
)
FILE_COLUMNS = [
    *columns(dataset="Data", label="Class", images="Images", format="Format", size="Size"),
    *columns(file_bytes="KB, 5-50-95 %", quality="JPEG quality", subsampling="Chroma", mode="Mode", exif="EXIF"),
    *columns(software="Software", icc="ICC", alpha="Alpha", provenance="C2PA"),
]
PAIR_COLUMNS = columns(
    first="Image", second="Copy", kind="Kind", labels="Labels", correlation="Correlation", crop="Crop"
)
SHIFT_COLUMNS = [
    *columns(dataset="Data", compared="Compared", statistic="Statistic", auc="AUC"),
    *columns(median_a="First, median", median_b="Second, median"),
]
GROUP_COLUMNS = columns(dataset="Data", group="Group", splits="Splits", images="Images")
META_COLUMNS = columns(dataset="Data", n="Images", auc="AUC", telling="Most telling columns, alone")
SHOWN = 40  # rows of a list; audit.json has more


def file_row(facts: Sequence[ImageFacts]) -> dict[str, Any]:
    """Describe the files of one class: shares of each format, size, quality and so on, as text."""

    def shares(value: Callable[[ImageFacts], Any], limit: int = 3) -> str:
        counts = Counter(value(fact) for fact in facts).most_common()
        parts = [f"{name} {count / len(facts):.0%}" for name, count in counts[:limit]]
        return ", ".join(parts) + (f", {len(counts) - limit} others" if len(counts) > limit else "")

    low, middle, high = np.percentile(column(facts, "file_bytes") / 1000, [5, 50, 95])
    jpeg = [fact for fact in facts if fact.quality is not None]
    software = Counter(fact.software for fact in facts if fact.software).most_common(2)
    return {
        "images": len(facts),
        "format": shares(lambda fact: fact.format),
        "size": shares(lambda fact: f"{fact.width} x {fact.height}"),
        "file_bytes": f"{low:.1f}-{middle:.1f}-{high:.1f}",
        "quality": shares(lambda fact: fact.quality) if jpeg else None,
        "subsampling": shares(lambda fact: fact.subsampling) if jpeg else None,
        "mode": shares(lambda fact: fact.mode),
        "exif": share(facts, lambda fact: fact.exif_tags > 0),
        "software": ", ".join(f"{name} {count / len(facts):.0%}" for name, count in software) or None,
        "icc": share(facts, lambda fact: fact.icc),
        "alpha": share(facts, lambda fact: fact.alpha),
        "provenance": share(facts, lambda fact: fact.provenance),
    }


def share(facts: Sequence[ImageFacts], holds: Callable[[ImageFacts], bool]) -> str:
    """The share of images with a property, as text."""
    return f"{sum(map(holds, facts)) / len(facts):.0%}"


def markdown_report(findings: Findings) -> str:
    """The whole report."""
    parts = [f"# Audit of {', '.join(findings['datasets'])}\n", f"Written by `{findings['command']}`.\n"]
    parts += ["".join(f"- {line}\n" for line in findings["summary"])]
    parts += ["## Images\n", markdown_table(findings["counts"], COUNT_COLUMNS)]
    parts += _broken(findings["broken"])
    parts += ["## Files per class\n", markdown_table(findings["files"], FILE_COLUMNS)]
    parts.append(
        "JPEG quality is the IJG quality whose luminance quantisation table is nearest: exact for libjpeg, "
        "Pillow and OpenCV, an equivalent for cameras and Photoshop.\n"
    )
    parts += _metadata(findings["metadata"])
    parts += _duplicates(findings)
    if groups := findings["groups"]:
        parts += ["## Groups in several splits\n", markdown_table(groups[:SHOWN], GROUP_COLUMNS), *_more(groups)]
    parts += _shifts(findings["shifts"])
    return "\n".join(parts)


def _broken(broken: Sequence[Mapping[str, str]]) -> list[str]:
    if not broken:
        return []
    rows = [{"path": row["path"], "reason": row["reason"]} for row in broken[:SHOWN]]
    return ["## Broken files\n", markdown_table(rows, columns(path="Image", reason="Reason")), *_more(broken)]


def _more(rows: Sequence[Any]) -> list[str]:
    return [f"... and {len(rows) - SHOWN} more, see audit.json.\n"] if len(rows) > SHOWN else []


def _metadata(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    title = "## Can the label be read off the file?\n"
    if not rows:
        return [title, "Nothing to compare: no dataset has at least ten images of each class.\n"]
    table = []
    for row in rows:
        telling = ", ".join(f"{found['column']} {found['auc']:.2f}" for found in row["columns"][:3])
        table.append({**row, "telling": telling or "none varies"})
    text = (
        f"A cross-validated classifier that sees only the container (format, size, bytes, quality, metadata). Above "
        f"{WARN_AUC} a detector can score by the file instead of the face: re-encode both classes alike before "
        "training. The number of bytes also depends on the detail in a picture. If each dataset holds one class, the "
        "dataset reveals the label, hence the row of all datasets together.\n"
    )
    return [title, text, markdown_table(table, META_COLUMNS)]


def _duplicates(findings: Findings) -> list[str]:
    parts = ["## Duplicates\n"]
    lists = (
        ("conflicts", "Both labels", "Equal pixels as real and as fake: one label is wrong.\n"),
        ("leaks", "Across splits (leaks)", "Test or validation images that occur in training, or count twice.\n"),
        ("repeats", "Within a split", "They count twice.\n"),
        (
            "counterparts",
            "Original and forgery in one split",
            "The same picture under both labels, as expected in a dataset of local forgeries; elsewhere one label is "
            "wrong. A clean list keeps both.\n",
        ),
    )
    for key, title, text in lists:
        if findings[key]:
            parts += [f"### {title}: {findings[f'n_{key}']} pairs\n", text]
            parts += [markdown_table(findings[key][:SHOWN], PAIR_COLUMNS), *_more(range(findings[f"n_{key}"]))]
    return parts if len(parts) > 1 else [*parts, "None.\n"]


def _shifts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    title = "## Shifts between classes and between splits\n"
    if not rows:
        return [title, "Nothing to compare.\n"]
    text = "AUC = probability that the second group has the larger value; 0.5 is no shift. The largest ones:\n"
    return [title, text, markdown_table(rows[:SHOWN], SHIFT_COLUMNS), *_more(rows)]
