"""What evaluate.py makes of scores on request: comparison, gallery, subgroups; through the command line."""

import csv
import json

import numpy as np
import pytest

import evaluate
from utils.errors import UserError
from utils.scores import ScoreTable, write_scores, write_sidecar


@pytest.fixture
def scores(tmp_path, monkeypatch):
    """Scores of two checkpoints on the same 40 images; `good` ranks better than `weak`."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    files = []
    for name, spread in (("good", 0.15), ("weak", 0.6)):
        p_fake = np.clip(0.5 + 0.3 * (2 * labels - 1) + spread * generator.standard_normal(40), 0.01, 0.99)
        table = ScoreTable(
            path=[f"faces/{index}.jpg" for index in range(40)], label=labels, dataset=["faces"] * 40,
            generator=["real"] * 20 + ["gan"] * 20, tier=["clean"] * 40, logit=np.log(p_fake / (1 - p_fake)),
            p_fake=p_fake,
        )  # fmt: skip
        file = tmp_path / f"{name}.csv"
        write_scores(file, table)
        write_sidecar(file, checkpoint=name, model="cnn", threshold=0.5, dataset="faces", split="test")
        files.append(str(file))
    return files


def test_compare_prints_and_writes_the_paired_tests(scores, tmp_path, capsys):
    evaluate.main(["--from-scores", *scores, "--compare", "--output-dir", "out", "--n-boot", "50"])
    assert "DeLong" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (result["name_a"], result["name_b"]) == ("good", "weak")
    assert result["delong"]["auc_a"] > result["delong"]["auc_b"]
    with (tmp_path / "out" / "disagreements.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(result["disagreements"]) > 0


def test_compare_needs_two_checkpoints(scores):
    with pytest.raises(UserError, match="two checkpoints for --compare, got 1: good"):
        evaluate.main(["--from-scores", scores[0], "--compare", "--output-dir", "out"])


def test_gallery_is_a_page_and_a_list(scores, tmp_path):
    evaluate.main(["--from-scores", scores[1], "--gallery", "--output-dir", "out", "--n-boot", "0"])
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert page.startswith("<!") and "<script" not in page
    assert "label" in (tmp_path / "out" / "failures.csv").read_text().splitlines()[0]


def test_subgroups_by_a_column_of_a_list(scores, tmp_path):
    (tmp_path / "faces").mkdir()
    lines = ["path,label,light"]
    for index in range(40):
        (tmp_path / "faces" / f"{index}.jpg").write_bytes(b"x")
        lines.append(f"faces/{index}.jpg,{'real' if index < 20 else 'fake'},{'day' if index % 2 else 'night'}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    flags = ["--from-scores", scores[0], "--output-dir", "out", "--n-boot", "20"]
    evaluate.main([*flags, "--subgroup", "list.csv:light"])
    with (tmp_path / "out" / "subgroups_light.csv").open() as file:
        sizes = {row["subgroup"]: int(row["n_real"]) + int(row["n_fake"]) for row in csv.DictReader(file)}
    assert sizes == {"day": 20, "night": 20}
    with pytest.raises(UserError, match=r"LIST\.csv:COLUMN"):
        evaluate.main([*flags, "--subgroup", "light"])
    with pytest.raises(UserError, match="light"):
        evaluate.main([*flags, "--subgroup", "list.csv:lihgt"])
