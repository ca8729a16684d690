"""The committed results: every table of metrics follows from its scores, every committed figure is on a page."""

import csv
import json
import re
from pathlib import Path

import pytest

import evaluate
from studies import leave_source_out
from tests.pages import CHECKPOINT_PAGES, tables
from tests.sources import FIGURE, shows
from utils.files import ROOT
from utils.scoring.table import read_scores

RESULTS = ROOT / "results"
LEFT_OUT = sorted(file.parent for file in RESULTS.glob("leave_source_out/*/sources.json"))
FOLDERS = sorted({file.parent.parent for file in RESULTS.rglob("scores/*.csv.gz")} - {*LEFT_OUT})
KEYS = ("checkpoint", "dataset", "split", "tier", "generator")
PAIR = ["--pair", "faces140k", "utkface"]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *CHECKPOINT_PAGES]


def rows_of(file: Path) -> dict[tuple, dict]:
    return {tuple(row.get(key) for key in KEYS): row for row in json.loads(file.read_text())}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_published_table_follows_from_its_scores(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.evaluation.report.write_figures", lambda sets, folder: None)
    files = sorted(map(str, folder.glob("scores/*.csv.gz")))
    pair = PAIR if (folder / "one_class.json").exists() else []
    evaluate.main(["--from-scores", *files, *pair, "--output-dir", str(tmp_path)])
    for made in tmp_path.glob("*.json"):
        published = rows_of(folder / made.name)
        found = rows_of(made)
        assert found.keys() == published.keys()
        for key, row in found.items():
            assert row.keys() == published[key].keys()
            for name, value in row.items():
                same = value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-9)
                assert published[key][name] == same, (made.name, key, name)
    for made in tmp_path.glob("*.md"):
        if (folder / made.name).exists() or made.name == "metrics.md":  # leave_one_out shows generators as a matrix
            # Compared as a set of lines: their order is that of the files on the command line.
            assert sorted(made.read_text().splitlines()) == sorted((folder / made.name).read_text().splitlines())


@pytest.mark.parametrize("folder", LEFT_OUT, ids=lambda folder: folder.name)
def test_the_table_of_sources_left_out_follows_from_its_scores(folder, tmp_path):
    published = json.loads((folder / "sources.json").read_text())
    names = [row["left_out"] for row in published["rows"] if row["left_out"] != "mean"]
    groups = dict.fromkeys(name.replace(",", "+").replace(":", "-") for name in names)
    files = [str(folder / "scores" / f"{group}__{part}.csv.gz") for group in groups for part in ("left-out", "valid")]
    leave_source_out.main(["--from-scores", *files, "--output-dir", str(tmp_path)])  # their order seeds the bootstrap
    found = json.loads((tmp_path / "sources.json").read_text())
    assert found["rows"] == published["rows"]


TABLES = sorted(file for file in RESULTS.rglob("*.md") if file.with_suffix(".csv").is_file())


@pytest.mark.parametrize("file", TABLES, ids=lambda file: str(file.relative_to(RESULTS)))
def test_a_table_for_readers_shows_the_numbers_of_its_csv(file):
    ((_, shown),) = tables(file.read_text(encoding="utf-8"))
    with file.with_suffix(".csv").open(newline="", encoding="utf-8") as stream:
        header, *lines = csv.reader(stream)
    columns = [key for key in header if not re.search("_(low|high)$", key) or key[: key.rindex("_")] not in header]
    assert len(lines) == len(shown) - 2
    for line, cells in zip(lines, shown[2:], strict=True):
        row = dict(zip(header, line, strict=True))
        for key, cell in zip(columns, cells, strict=False):  # metrics.csv has a column more
            values = [row[name] for name in (key, f"{key}_low", f"{key}_high") if row.get(name)]
            numbers = [(match[1], (match[2] or "").strip()) for match in FIGURE.finditer(cell)]
            if (
                "." in cell
                and not re.search(r"\de[+-]", cell)
                and all(re.fullmatch(r"-?\d+\.\d+(e-\d+)?", value) for value in values)
            ):
                assert len(values) == len(numbers), (key, cell, values)
                for value, number in zip(values, numbers, strict=True):
                    assert shows(*number, float(value)), (key, cell, values)


def test_there_are_scores_behind_every_table_of_metrics():
    assert {file.parent for file in RESULTS.rglob("metrics.json")} == set(FOLDERS)


def test_paths_in_scores_are_relative_to_the_set():
    for file in RESULTS.rglob("scores/*.csv.gz"):
        assert not [path for path in read_scores(file).path if path.startswith(("/", "..", "data/"))], file


def test_committed_figures_are_shown_and_results_stay_small():
    shown = {name for page in PAGES for name in re.findall(r"results/([\w./-]+)\.png", page.read_text())}
    figures = {
        str(file.relative_to(RESULTS).with_suffix("")) for kind in ("png", "pdf") for file in RESULTS.rglob(f"*.{kind}")
    }
    assert figures == shown
    assert sum(file.stat().st_size for file in RESULTS.rglob("*") if file.is_file()) < 25e6
    assert (RESULTS / "demo" / "contact_sheet.png").stat().st_size < 300e3
