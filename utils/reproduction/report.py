"""Do the tables of a new run agree with the committed ones?"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json
from utils.reproduction.steps import Step
from utils.tables import columns, write_table

AGREES, DIFFERS, OTHER_IMAGES, MISSING = "agrees", "DIFFERS", "OTHER IMAGES", "MISSING"
NOT_MADE, NEW = "not made", "not published"
FAILURES = (DIFFERS, OTHER_IMAGES, MISSING)
IDENTITY = (
    "checkpoint dataset split tier generator perturbation severity attack_name norm size direction engine batch_size "
    "title check shots excluded tested name setting run sigma label fact left_out source network seed"
).split()
COUNTS = ("n", "n_real", "n_fake", "n_mask", "n_grid", "n_face", "seeds")
AUDIT_COUNTS = ("n_images", "n_leaks", "n_repeats", "n_counterparts")
MEANS = {"mean", "valid_mean", "tier_mean", "valid_auc", "test_auc", "test_acc"}  # published without an interval
MEAN_SLACK = 0.03
OF_THE_MACHINE = {"ratio", "images_per_s"}  # speed: a range of repeats, not an interval
# These follow the threshold or few images, and differ more between two runs than within one test set.
VOLATILE = {"real_acc", "fake_acc", "f1", "eer", "tpr_at_fpr1", "ece", "brier"}
NOT_COMPARED = {"trials.csv", "speed.csv", "comparison.csv", "looks.csv"}
ROUNDING = 5e-4  # results are published with three decimals
COLUMNS = columns(
    results="Results", row="Row", figure="Figure", published="Published", found="Found", verdict="Verdict"
)
CAPTION = "New results against the committed ones: a figure agrees if it lies in the committed 95 % interval."


def compare_results(out: Path, committed: Path, steps: Sequence[Step], done: Sequence[Step]) -> list[dict[str, Any]]:
    """Compare the tables of the ``done`` steps with the committed tables, one entry per published figure.

    Every published row counts: its verdict is AGREES, DIFFERS, OTHER_IMAGES (other numbers of images), MISSING (the row
    or its figure was not made although all of ``steps`` that write the table are done) or NOT_MADE (one of them is
    not). Rows that only the new run has are NEW.

    Raises:
        UserError: a table cannot be read.
    """
    entries: list[dict[str, Any]] = []
    for folder in dict.fromkeys(step.folders[0] for step in done if step.writes_tables):
        complete = all(step in done for step in steps if step.folders[0] == folder)
        for published_file, found_file in table_files(out / folder, committed, folder):
            base = {"folder": folder, "results": published_file.relative_to(committed).as_posix()}
            found = read_rows(found_file) if found_file.exists() else {}
            published = read_rows(published_file)
            for key, row in published.items():
                base["row"] = " ".join(key)
                entries += _compare_row(base, row, found.get(key), MISSING if complete else NOT_MADE)
            for key in found.keys() - published.keys():
                entries.append({**base, "row": " ".join(key), "verdict": NEW})
    return entries


def table_files(found: Path, committed: Path, folder: str) -> Iterator[tuple[Path, Path]]:
    """Yield (committed table, new table) for an output folder, ``results/NAME`` or ``tables/NAME``.

    Tables in ``tables/NAME`` are compared with those of the same file name in NAME, or anywhere if there is no NAME.
    """
    kind, _, name = folder.partition("/")
    published = committed / name
    if kind == "results":
        files = [*published.glob("*.csv"), *published.glob("audit.json")]
    else:
        place = published if published.is_dir() else committed
        files = [file for made in found.glob("*.csv") for file in place.rglob(made.name)]
    for file in sorted(files):
        if file.name not in NOT_COMPARED:
            yield file, found / file.name


def read_rows(file: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Read a table by the identity of its rows; an audit is one row of counts."""
    if file.suffix == ".json":
        content = read_json(file, "an audit")
        return {("audit",): {key: str(content.get(key)) for key in AUDIT_COUNTS}}
    with file.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    rows = {tuple(line[key] for key in IDENTITY if line.get(key)): line for line in lines}
    if len(rows) != len(lines):
        raise UserError(f"expected a table with distinct rows in {file}, got {len(lines) - len(rows)} repeated")
    return rows


def _compare_row(
    base: dict[str, str], published: dict[str, str], found: dict[str, str] | None, absent: str
) -> Iterator[dict[str, Any]]:
    """Yield an entry per figure of a published row; a row without figures counts by its numbers of images."""
    counts = [name for name in (*COUNTS, *AUDIT_COUNTS) if name in published]
    figures = [name for name in published if limits(name, published)]
    if "passed" in published:
        verdict = absent if found is None else AGREES if found["passed"] == published["passed"] else DIFFERS
        yield {**base, "figure": "passed", "published": published["passed"], "verdict": verdict}
    same_images = found is not None and all(found.get(name) == published[name] for name in counts)
    if not figures and counts:
        verdict = absent if found is None else AGREES if same_images else OTHER_IMAGES
        yield {**base, "figure": "images", "published": published[counts[0]], "verdict": verdict}
    for name in figures:
        low, high = limits(name, published) or (0.0, 0.0)
        value = _number((found or {}).get(name))
        entry = {**base, "figure": name, "published": float(published[name]), "published_ci": [low, high]}
        if value is None:
            yield {**entry, "found": None, "verdict": absent}
        elif not same_images:
            yield {**entry, "found": value, "verdict": OTHER_IMAGES}
        else:
            agrees = low - ROUNDING <= value <= high + ROUNDING
            yield {**entry, "found": value, "verdict": AGREES if agrees else DIFFERS}


def limits(name: str, row: dict[str, str]) -> tuple[float, float] | None:
    """Return the interval in which a figure must lie; None if the column is no figure, or has no value."""
    value, low, high = (_number(row.get(f"{name}{end}")) for end in ("", "_low", "_high"))
    if value is None or name in OF_THE_MACHINE | VOLATILE:
        return None
    if low is not None and high is not None:
        return low, high
    return (value - MEAN_SLACK, value + MEAN_SLACK) if name in MEANS else None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def write_comparison(entries: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write ``comparison`` as .csv, .md and .tex; returns the Markdown."""
    return write_table(entries, COLUMNS, folder / "comparison", CAPTION)[1].read_text(encoding="utf-8")


def count_verdicts(entries: Sequence[dict[str, Any]]) -> str:
    """Return one line: ``48 figures agree, 0 differ, 0 of other images, 0 missing, 4 not made, 16 not published``."""
    counts = {name: sum(entry["verdict"] == name for entry in entries) for name in (*FAILURES, AGREES, NOT_MADE, NEW)}
    return (
        f"{counts[AGREES]} figures agree, {counts[DIFFERS]} differ, {counts[OTHER_IMAGES]} of other images, "
        f"{counts[MISSING]} missing, {counts[NOT_MADE]} not made, {counts[NEW]} rows not published"
    )
