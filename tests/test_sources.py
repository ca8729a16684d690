"""Every figure of README, docs and model card names its source and equals it; see tests/sources.py for the notation."""

import json

import pytest

from tests import sources
from tests.pages import CHECKPOINT_PAGES, table_problems
from tests.sources import figure_problems, figures, mutations
from utils.files import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *CHECKPOINT_PAGES]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", NAMES)
def test_every_figure_has_its_source(page):
    assert figure_problems((ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", NAMES)
def test_every_changed_figure_is_noticed(page):
    changed = list(mutations((ROOT / page).read_text(encoding="utf-8")))
    assert [what for what, text in changed if not figure_problems(text) and not table_problems(text, ROOT)] == []


# The checker itself


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Two rows in results/x/metrics.json, an object in results/y.json and a table in results/z.csv."""
    rows = [
        {"dataset": "a", "tier": "clean", "generator": "all", "auc": 0.9675, "auc_ci": [0.951, 0.9834], "acc": 0.5},
        {"dataset": "a", "tier": "clean", "generator": "gan", "auc": 0.111, "auc_ci": None, "acc": None},
        {"dataset": "b c", "tier": "clean", "generator": "all", "auc": 0.8, "auc_ci": [0.7, 0.9], "acc": 0.75},
    ]
    (tmp_path / "results" / "x").mkdir(parents=True)
    (tmp_path / "results" / "x" / "metrics.json").write_text(json.dumps(rows))
    (tmp_path / "results" / "y.json").write_text(json.dumps({"seconds": 480.0, "t": {"low": 0.25}, "rows": rows[:1]}))
    (tmp_path / "results" / "z.csv").write_text("what,value,value_low\nspeed,3.274,2.9\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    known = (sources.rows_of, sources.block_problems)
    for cached in known:
        cached.cache_clear()
    yield
    for cached in known:
        cached.cache_clear()


X = "results/x/metrics.json"


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (f"{X} dataset=a: auc auc_ci", "AUC 0.968 [0.951, 0.983] in 2024, at 224 px."),
        (f"{X} dataset=a: auc; 'dataset=b c': acc", "0.97 and 75 %"),
        (f"{X} tier=clean: mean(auc) max(acc) len(auc)", "0.884, 0.75 and 2x"),
        (f"{X} dataset=a: 1-acc", "- half, 50 %, of them\n- and so on"),
        ("results/y.json: seconds/60 t.low; results/y.json#rows: auc_ci[0]", "8 minutes, 0.25, 0.95"),
        ("results/z.csv what=speed: value; setting: 95 4/255", "3.27x at 95 % of `0.123` [a](x/0.8.md)"),
        (f"{X} dataset=a: auc", "| a | b |\n|---|---|\n| 0.968 | 12 |"),
        (f"{X} dataset=a: acc acc", "50 to 50 % with 95 % bootstrap intervals, at 1 % FPR, 4/255 and 1.2.3"),
    ],
)
def test_a_figure_with_its_source(comment, text, results):
    comment = comment.replace(" 4/255", "")
    page = f"# Title\n\n<!-- figures: {comment} -->\n{text}\n\nNo figure here."
    assert figure_problems(page) == []
    changed = list(mutations(page))
    assert changed and all(figure_problems(other) for _, other in changed)


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("AUC 0.968.", "0.968  has no source"),
        ("12 images/s", "12 images/s has no source"),
        (f"<!-- figures: {X} dataset=a: auc -->\nAUC 0.967.", "0.967  is not 0.9675"),
        (f"<!-- figures: {X} dataset=a: auc acc -->\nAUC 0.968.", "2 figures in the comment, 1 in the text"),
        (f"<!-- figures: {X} dataset=a: auc -->\nAUC 0.968.\n\nAUC 0.968.", "has no source"),
        (f"<!-- figures: {X} dataset=c: auc -->\nAUC 0.968.", "no row"),
        (f"<!-- figures: {X} tier=clean: auc -->\nAUC 0.968.", "2 rows, expected one"),
        (f"<!-- figures: {X} dataset=a: f1 -->\nAUC 0.968.", "no figure 'f1'"),
        ("<!-- figures: results/none.json dataset=a: f1 -->\nAUC 0.968.", "no results file"),
        ("<!-- figures: pyproject.toml: a -->\nAUC 0.968.", "no results file"),
        (f"<!-- figures: {X} dataset=a: auc auc -->\nAUC 0.968.\n\n0.968", "2 figures in the comment"),
        (f"<!-- figures: {X} dataset=a generator=gan: acc -->\n0.5", "no figure 'acc'"),
        (f"Text.\n\n<!-- figures: {X} dataset=a: auc -->", "1 figures in the comment, 0 in the text"),
        ("<!-- figures: setting: 95 -->\n96 % of them", "96 % is not 95"),
        ("96 % bootstrap intervals", "has no source"),
    ],
)
def test_a_figure_without_its_source(page, problem, results):
    found = figure_problems(page)
    assert found and problem in " ".join(found), found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.968, 12 of 30, 4.5", [("0.968", ""), ("4.5", "")]),
        (
            "57 to 79 images/s, 9,890.1, 3 x 4, 3x",
            [("57", "images/s"), ("79", "images/s"), ("9,890.1", ""), ("3", "x")],
        ),
        ("3, 5 and 8 %, 0.5 and 8 %", [("3", "%"), ("5", "%"), ("8", "%"), ("0.5", ""), ("8", "%")]),
        ("-0.013 to +0.02", [("-0.013", ""), ("+0.02", "")]),
        ("version 1.1.0, `0.5`, 0.5/255, v2.0, B0, x0.5", []),
        ("in 8 minutes, 3 MB and 12 ms", [("8", "minutes"), ("3", "MB"), ("12", "ms")]),
    ],
)
def test_what_counts_as_a_figure(text, wanted):
    ((body, _),) = sources.blocks(text)
    assert figures(body) == wanted
