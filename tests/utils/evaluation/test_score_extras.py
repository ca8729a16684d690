"""What evaluate.py makes of scores on request: comparison, gallery, subgroups; through the command line."""

import csv
import json

import numpy as np
import pytest

import evaluate
from utils.errors import UserError
from utils.scoring.table import ScoreTable, write_scores, write_sidecar


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """The figures of the report are drawn in test_evaluate.py."""
    monkeypatch.setattr("utils.evaluation.report.write_figures", lambda sets, folder: None)


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
            path=[f"faces/{index}.jpg" for index in range(40)],
            label=labels,
            dataset=["faces"] * 40,
            generator=["real"] * 20 + ["gan"] * 20,
            tier=["clean"] * 40,
            logit=np.log(p_fake / (1 - p_fake)),
            p_fake=p_fake,
        )
        file = tmp_path / f"{name}.csv"
        write_scores(file, table)
        write_sidecar(file, checkpoint=name, model="cnn", threshold=0.5, dataset="faces", split="test")
        files.append(str(file))
    return files


def test_compare_prints_and_writes_the_paired_tests(scores, tmp_path, rendered, capsys):
    evaluate.main(["--from-scores", *scores, "--compare", "--output-dir", "out", "--n-boot", "50"])
    assert "DeLong" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (result["name_a"], result["name_b"]) == ("good", "weak")
    (tier,) = result["sets"]
    assert tier["delong"]["auc_a"] > tier["delong"]["auc_b"] and tier["delong"]["p_holm"] == tier["delong"]["p"]
    with (tmp_path / "out" / "disagreements.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(result["images"]) > 0


def test_compare_needs_two_checkpoints(scores):
    with pytest.raises(UserError, match="two checkpoints for --compare, got 1: good"):
        evaluate.main(["--from-scores", scores[0], "--compare", "--output-dir", "out"])


@pytest.mark.parametrize("count", [1, 3])
def test_compare_of_one_or_three_checkpoints_is_refused_before_any_image_is_scored(
    count, tiny_checkpoint, image_folder, tmp_path
):
    flags = ["--data", str(image_folder), "--compare", "--output-dir", str(tmp_path / "out"), "--no-score-cache"]
    with pytest.raises(UserError, match=f"expected two --checkpoint for --compare, got {count}"):
        evaluate.main(["--checkpoint", *[str(tiny_checkpoint)] * count, *flags])
    assert not (tmp_path / "out" / "scores").exists()


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


@pytest.fixture
def one_class_scores(tmp_path, monkeypatch):
    """Scores of one checkpoint on `faces` of both classes and on `gan`, fakes only, half of them above every real."""
    monkeypatch.chdir(tmp_path)
    p_fake = {"faces": [0.1, 0.2, 0.3, 0.9], "gan": [0.8, 0.7, 0.15, 0.15]}
    labels = {"faces": [0, 0, 0, 1], "gan": [1, 1, 1, 1]}
    for name, values in p_fake.items():
        table = ScoreTable(
            path=[f"{name}/{index}.jpg" for index in range(4)],
            label=np.array(labels[name]),
            dataset=[name] * 4,
            generator=[""] * 4,
            tier=["common"] * 4,
            logit=np.log(values),
            p_fake=np.array(values),
        )
        file = tmp_path / f"{name}.csv"
        write_scores(file, table)
        write_sidecar(file, checkpoint="good", model="cnn", threshold=0.5, dataset=name, split="test")
    return ["faces.csv", "gan.csv"]


def test_fakes_alone_are_measured_against_the_reals_of_another_set(one_class_scores, tmp_path, capsys):
    evaluate.main(["--from-scores", *one_class_scores, "--pair", "faces", "--output-dir", "out", "--n-boot", "50"])
    assert "gan / faces" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out" / "one_class.json").read_text())
    assert (row["n_real"], row["n_fake"]) == (3, 4)
    assert row["auc"] == pytest.approx((3 + 3 + 1 + 1) / 12)  # pairs in the right order
    assert (row["real_acc"], row["fake_acc"]) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("files", "name", "says"),
    [
        (["faces.csv", "gan.csv"], "gan", "expected --pair of data sets with real images"),
        (["faces.csv"], "faces", "expected a set of fakes only for --pair, got none"),
    ],
)
def test_pairs_that_cannot_be(one_class_scores, files, name, says):
    with pytest.raises(UserError, match=says):
        evaluate.main(["--from-scores", *files, "--pair", name, "--output-dir", "out", "--n-boot", "0"])


@pytest.mark.parametrize(("name", "says"), [("nowhere", "with real images, demo, got"), ("demo", "fakes only")])
def test_a_pair_that_cannot_be_is_refused_before_anything_is_scored(name, says, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the demo set is made here
    monkeypatch.setattr(evaluate, "score_all", lambda *_: pytest.fail("something was scored"))
    with pytest.raises(UserError, match=says):
        evaluate.main(["--checkpoint", str(tiny_checkpoint), "--data", "demo@n=60,size=64", "--pair", name])
