"""Model cards: the tables of a release, the table over releases, and the pages that show them."""

import json
from pathlib import Path

import pytest

from models.operating_point import OperatingPoint
from studies import model_card, page_tables, releases_table
from utils.checkpoint_files import RELEASES, SOURCES_SUFFIX
from utils.errors import UserError
from utils.files import ROOT
from utils.scoring.table import ScoreTable, write_scores, write_sidecar
from utils.tables import with_current_tables

THRESHOLDS = {"balanced": 0.5, "fpr1": 0.92, "unsure_low": 0.2, "unsure_high": 0.9}
DESCRIPTION = {
    "file": "deepfake-v9.pt",
    "sha256": "ab12",
    "bytes": 1234567,
    "precision": "fp16",
    "model": "ensemble",
    "members": ["foundation", "tf_efficientnet_b0"],
    "base": [{"source": "vit_tiny.made_up", "sha256": "cd34"}],
    "geometry": {"mode": "face", "size": 224, "resize_to": None, "margin": 1.3},
    "thresholds": THRESHOLDS,
    "fitted_on": ["portraits", "swaps"],
    "parity": {"max_logit_difference": 0.01, "images": 12},
}
SIDECARS = [
    {"dataset": "faces", "n_images": 5, "finder": "yunet", "without_face": []},
    {"dataset": "gans", "n_images": 2, "finder": "yunet", "without_face": ["a.png"]},
]
SECTION = "# Card\n\n## Verdicts\n<!-- table: results/deepfake-v9/verdicts.md -->\n\n## Limits\nNone.\n"


def metrics_of(dataset: str, tier: str, seen: str, n_real: int, n_fake: int, auc: float | None) -> dict:
    row = {"checkpoint": "deepfake-v9", "dataset": dataset, "tier": tier, "seen": seen, "n_real": n_real}
    interval = auc and [auc - 0.01, auc + 0.01]
    rates = dict.fromkeys(("acc", "real_acc", "fake_acc", "ece"))
    return {**row, "n_fake": n_fake, "auc": auc, "auc_ci": interval, "generator": "all", **rates}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A project with one release: faces with both classes, and gans of fakes only."""
    results, checkpoints = tmp_path / "results" / "deepfake-v9", tmp_path / "checkpoints"
    (results / "scores").mkdir(parents=True)
    checkpoints.mkdir()
    (checkpoints / "deepfake-v9.json").write_text(json.dumps(DESCRIPTION))
    (checkpoints / "deepfake-v9.md").write_text(SECTION)
    tiers = {"clean": 0.9, "web": 0.8, "common": 0.85}
    rows = [metrics_of("gans", tier, "unseen", 0, 2, None) for tier in tiers]
    rows += [metrics_of("faces", tier, "in-domain", 3, 2, auc) for tier, auc in tiers.items()]
    (results / "metrics.json").write_text(json.dumps(rows))
    pairs = [metrics_of("gans / faces", tier, "unseen", 3, 2, auc) for tier, auc in tiers.items()]
    (results / "one_class.json").write_text(json.dumps(pairs))
    for dataset, labels in (("faces", [0, 0, 0, 1, 1]), ("gans", [1, 1])):
        p_fake = [0.1, 0.5, 0.95, 0.95, 0.3][-len(labels) :]
        for name in ("deepfake-v9", "deepfake-v9-small"):  # the other release must not be read
            values = p_fake if name == "deepfake-v9" else [0.99] * len(labels)
            n, file = len(labels), results / "scores" / f"{name}__{dataset}__test.csv.gz"
            write_scores(
                file, ScoreTable(list("abcde")[:n], labels, [dataset] * n, ["all"] * n, ["clean"] * n, values, values)
            )
            write_sidecar(file, **next(info for info in SIDECARS if info["dataset"] == dataset))
    for module in (model_card, releases_table, page_tables):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


LEFT_OUT = {"deepfake-v3-small": "v3_small", "deepfake-v3": "v3"}  # the tables of their recipes


def make(root: Path, *flags: str) -> list[dict]:
    return model_card.main(["--release", str(root / "checkpoints" / "deepfake-v9.pt"), *flags])["overview"]


def test_the_summary_has_in_domain_sources_first_and_pairs_in_one_format(root):
    faces, gans = make(root)
    assert (faces["dataset"], faces["auc"], faces["auc_web"]) == ("faces", 0.9, 0.8)
    assert (gans["dataset"], gans["auc"], gans["auc_web"], gans["n_real"]) == ("gans", 0.85, None, 0)
    shown = json.loads((root / "checkpoints" / "deepfake-v9.sources.json").read_text())
    assert [(row["source"], row["seen"], row["n_real"]) for row in shown] == [("faces", True, 3), ("gans", False, 0)]
    assert (shown[0]["real_called_fake"], shown[0]["fake_found"]) == (faces["false_alarms"], faces["found"])
    assert shown[1]["real_called_fake"] is None and shown[1]["fake_found"] == gans["found"]
    rates = [faces[key] for key in ("false_alarms", "unsure", "found")]
    assert rates == pytest.approx([1 / 3, 1 / 3, 1 / 2])
    assert gans["found"] == 0.5 and "false_alarms" not in gans


def test_the_page_also_shows_sources_that_were_left_out(root, tmp_path):
    rows = [
        {"left_out": "sdxl", "source": "sdxl", "n_real": 0, "n_fake": 9, "fake_fake": 0.1},
        {"left_out": "stock", "source": "stock", "n_real": 8, "n_fake": 0, "real_fake": 0.2},
        {"left_out": "mean", "source": "all", "real_fake": 0.2},
    ]
    (tmp_path / "left_out.json").write_text(json.dumps({"rows": rows}))
    make(root, "--left-out", str(tmp_path / "left_out.json"))
    *_, sdxl, stock = json.loads((root / "checkpoints" / "deepfake-v9.sources.json").read_text())
    assert (sdxl["source"], sdxl["seen"], sdxl["real_called_fake"], sdxl["fake_found"]) == ("sdxl", False, None, 0.1)
    assert stock["real_called_fake"] == 0.2 and stock["about"].endswith("left out of training for this test")


def test_a_release_without_pairs_of_its_own_takes_the_older_file(root, monkeypatch):
    pairs = root / "results" / "deepfake-v9" / "one_class.json"
    monkeypatch.setattr(model_card, "PAIRED", root / "pairs.json")
    pairs.rename(root / "pairs.json")
    assert make(root)[1]["auc"] == 0.85
    rows = json.loads((root / "pairs.json").read_text())
    (root / "pairs.json").write_text(json.dumps([{**row, "checkpoint": "deepfake-v9-small"} for row in rows]))
    assert make(root)[1]["auc"] is None


def test_the_identity_names_members_base_weights_and_frame(root):
    facts = {row["fact"]: row["value"] for row in model_card.identity(DESCRIPTION, SIDECARS)}
    assert facts["model"] == "ensemble of foundation, tf_efficientnet_b0"
    assert facts["base weights vit_tiny.made_up"] == "sha256 cd34"
    assert facts["input"] == "a square of 1.3 times the largest face, scaled to 224 px"
    assert facts["faces of the test sets found by"] == "yunet"
    assert facts["test pictures without a face"] == "1 of 2 in gans"
    assert facts["fitted on"] == "portraits, swaps" and facts["threshold unsure_low"] == "0.2000"
    plain = {key: DESCRIPTION[key] for key in DESCRIPTION if key not in ("members", "base", "fitted_on")}
    plain |= {"model": "cnn", "geometry": {"mode": "crop", "size": 64, "resize_to": None}}
    facts = {row["fact"]: row["value"] for row in model_card.identity(plain, [{"dataset": "faces", "n_images": 5}])}
    assert (facts["model"], facts["input"]) == ("cnn", "crop of 64 px")
    assert not facts.keys() & {"fitted on", "faces of the test sets found by", "test pictures without a face"}


def test_the_card_gets_its_tables_unless_they_go_elsewhere(root, tmp_path):
    card = root / "checkpoints" / "deepfake-v9.md"
    make(root, "--output-dir", str(tmp_path / "elsewhere"))
    assert card.read_text() == SECTION
    names = {f"{name}{end}" for name in ("card", "identity", "overview", "verdicts") for end in (".csv", ".md", ".tex")}
    assert {file.name for file in (tmp_path / "elsewhere").iterdir()} == names | {f"deepfake-v9{SOURCES_SUFFIX}"}
    make(root)
    text = card.read_text()
    assert text.count("\n| faces     | clean |") == 2 and "|\n\n## Limits\n" in text
    make(root)
    assert card.read_text() == text


def test_releases_are_compared_source_by_source(root):
    summary = make(root)
    small = root / "results" / "deepfake-v9-small"
    small.mkdir()
    overview = (root / "results" / "deepfake-v9" / "overview.csv").read_text()
    (small / "overview.csv").write_text(overview.replace("0.9,", "0.7,"))
    folders = [str(root / "results" / name) for name in ("deepfake-v9-small", "deepfake-v9")]
    rows = releases_table.main(["--results", *folders, "--output-dir", str(root / "releases")])["rows"]
    assert [row["dataset"] for row in rows] == ["faces", "gans"]
    assert rows[0]["deepfake-v9-small auc"] == 0.7
    for row, whole in zip(rows, summary, strict=True):
        assert row["n_fake"] == whole["n_fake"]
        for key in ("auc", "false_alarms"):
            assert row.get(f"deepfake-v9 {key}") == (pytest.approx(whole[key]) if whole.get(key) is not None else None)
    assert "| AUC: v9-small |" in " ".join((root / "releases" / "overview.md").read_text().split())


def test_pages_get_the_tables_of_their_files(root, capsys):
    for folder, text in (("results/a", "Caption.\n\n| a |\n| - |\n| 1 |\n"), ("results/b", "| b |\n| - |\n")):
        (root / folder).mkdir()
        (root / folder / "t.md").write_text(text)
    old = "x\n<!-- table: results/a/t.md -->\n| a |\n| - |\n| 0 |\n\n<!-- table: results/b/t.md -->\n\n## y\n| z |\n"
    new = old.replace("| 0 |", "| 1 |").replace("t.md -->\n\n##", "t.md -->\n| b |\n| - |\n\n##")
    assert with_current_tables(old, root) == new and with_current_tables(new, root) == new
    pages = [root / "old.md", root / "new.md"]
    for page, text in zip(pages, (old, new), strict=True):
        page.write_text(text)
    assert page_tables.main([*map(str, pages)]) == {"changed": [str(pages[0])]}
    assert pages[0].read_text() == new and capsys.readouterr().out == f"{pages[0]}\n"
    with pytest.raises(UserError, match=r"results/c\.md"):
        with_current_tables("<!-- table: results/c.md -->\n", root)


def test_verdicts_are_counted_by_label_and_tier():
    p_fake, labels = [0.1, 0.5, 0.9, 0.95, 0.3], [0, 0, 0, 1, 1]
    tiers = ["clean"] * 4 + ["hard"]
    table = ScoreTable(list("abcde"), labels, ["set"] * 5, ["all"] * 5, tiers, p_fake, p_fake)
    real, fake = model_card.verdict_rows(table, OperatingPoint(thresholds=THRESHOLDS))
    assert (real["label"], real["n"], fake["label"], fake["n"]) == ("real", 3, "fake", 1)
    assert [real[said] for said in ("fake", "unsure", "real")] == pytest.approx([1 / 3] * 3)
    assert fake["fpr1"] == 1 and real["fpr1"] == 0
    assert fake["fake"] == 1 and real["fake_ci"][0] < 1 / 3 < real["fake_ci"][1]


@pytest.mark.parametrize("name", RELEASES)
def test_the_published_tables_of_a_release_are_those_of_its_results(name, tmp_path):
    flags = ["--release", str(ROOT / "checkpoints" / f"{name}.pt"), "--output-dir", str(tmp_path)]
    if name in LEFT_OUT:
        flags += ["--left-out", str(ROOT / "results/leave_source_out" / LEFT_OUT[name] / "sources.json")]
    model_card.main(flags)
    for table in ("card", "identity", "overview", "verdicts"):
        assert (tmp_path / f"{table}.md").read_text() == (ROOT / "results" / name / f"{table}.md").read_text()
    shown = f"{name}{SOURCES_SUFFIX}"
    assert (tmp_path / shown).read_text() == (ROOT / "checkpoints" / shown).read_text()
    assert all(row["about"] for row in json.loads((tmp_path / shown).read_text()))
