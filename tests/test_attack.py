"""attack.py end to end: cells and tables, export, transfer, classical detectors, bad input."""

import csv
import shutil
import sys

import numpy as np
import pytest
import torch

import attack
import evaluate
from datasets.transforms import Geometry
from models.registry import create_model
from tests import attacking
from utils.args import run_script
from utils.attacks.cells import read_cell
from utils.checkpoints.file import save_checkpoint
from utils.files import read_json
from utils.scoring.table import read_scores

quick, run = attacking.quick, attacking.run  # fixtures


@pytest.fixture
def forest(image_folder, tmp_path):
    """A classical detector on the training images of the folder."""
    detector = create_model("logistic_regression", features="color", input_size=32)
    generator = np.random.default_rng(0)
    x = detector.features(torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    y = generator.permutation(np.arange(12) % 2)
    detector.fit((x, y), (x, y), 0)
    description = {
        "model": "logistic_regression",
        "model_args": {"features": "color", "input_size": 32},
        "state_dict": detector.state_dict(),
        "geometry": Geometry("crop", 32).to_dict(),
        "thresholds": {"balanced": 0.5},
        "calibration": None,
    }
    path = tmp_path / "forest-run" / "best.pt"
    save_checkpoint(path, description)
    return path


def error_of(argv: list, monkeypatch, capsys) -> str:
    """The one line with which attack.py refuses these arguments."""
    monkeypatch.setattr(sys, "argv", ["attack.py", *map(str, argv)])
    with pytest.raises(SystemExit) as exit_:
        run_script(attack.main)
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error, error
    return error


def test_one_row_for_each_attack_and_eps_from_files_alone(run, tmp_path, capsys):
    result = run("--attacks", "fgsm", "pgd", "strong", "--eps", "1/255", "4/255")
    printed = capsys.readouterr().out
    rows = result["rows"]
    assert [(row["attack_name"], row["size"]) for row in rows] == [
        (name, size) for name in ("fgsm", "pgd-3", "strong") for size in ("1/255", "4/255")
    ]
    for row in rows:
        assert row["n"] == 8 and row["robust_acc"] <= row["clean_acc"] and 0 < row["max_change"] <= row["eps"] + 1e-6
        assert row["robust_acc_ci"][0] <= row["robust_acc"] <= row["robust_acc_ci"][1] and row["images_per_s"] > 0
    out = tmp_path / "out"
    assert printed.splitlines()[2].split("|")[3].strip() == "fgsm"
    assert {"attacks.csv", "attacks.md", "attacks.tex", "attacks.json", "checks.md"} <= {f.name for f in out.iterdir()}
    names = {check["check"] for check in read_json(next((out / "checks").glob("*.json")))["checks"]}
    assert len(names) == 5
    before = (out / "attacks.csv").read_bytes()
    (out / "attacks.csv").unlink()
    again = run(checkpoint=None)
    assert (out / "attacks.csv").read_bytes() == before and again["rows"] == rows


def test_cell_is_a_scores_file_and_decides_at_the_threshold_of_the_checkpoint(run, tmp_path):
    run("--attacks", "fgsm", "--eps", "2/255")
    (file,) = (tmp_path / "out" / "cells").glob("*.csv.gz")
    table = read_scores(file)
    cell = read_cell(next((tmp_path / "out" / "cells").glob("*.json")))
    assert set(table.tier) == {"fgsm linf 2/255"} and len(table) == 8 and table.path[0] == "test/fake/000.png"
    assert cell.info["threshold"] == 0.5 and cell.info["hardware"] and "attack.py" in cell.info["command"]
    assert cell.right().tolist() == ((table.p_fake >= 0.5) == (table.label == 1)).tolist()
    assert cell.extra["linf"].max() == pytest.approx(2 / 255, rel=1e-4)


def test_direction_attacks_one_class_only(run, tmp_path):
    (row,) = run("--attacks", "fgsm", "--eps", "4/255", "--direction", "fake-to-real")["rows"]
    cell = read_cell(next((tmp_path / "out" / "cells").glob("*.json")))
    assert row["n"] == 4 and (cell.extra["linf"][cell.table.label == 0] == 0).all()
    assert (cell.extra["linf"][cell.table.label == 1] > 0).all()
    reals = cell.table.label == 0
    assert (cell.extra["clean_p_fake"][reals] == cell.table.p_fake[reals]).all()


def test_export_is_a_data_set_that_evaluate_scores_alike(run, tiny_checkpoint, tmp_path, monkeypatch, rendered):
    run("--attacks", "pgd", "--eps", "8/255", "--export", str(tmp_path / "export"))
    (folder,) = (tmp_path / "export").iterdir()
    assert sorted(file.parent.name for file in folder.rglob("0*.png")) == ["fake"] * 4 + ["real"] * 4
    assert (folder / "example.png").exists() and (folder / "example.pdf").exists()
    monkeypatch.setattr("utils.evaluation.report.write_figures", lambda sets, folder: None)
    argv = ["--checkpoint", str(tiny_checkpoint), "--data", str(folder), "--no-score-cache", "--n-boot", "0"]
    evaluate.main([*argv, "--output-dir", str(tmp_path / "evaluated"), "--threads", "1"])
    found = read_scores(next((tmp_path / "evaluated" / "scores").glob("*.csv.gz")))
    cell = read_cell(next((tmp_path / "out" / "cells").glob("*.json")))
    assert sorted(found.p_fake) == pytest.approx(sorted(cell.extra["rounded_p_fake"]), abs=1e-5)
    run("--attacks", "pgd", "--eps", "8/255", "--limit", "2", "--export", str(tmp_path / "export"))
    assert len(list(folder.rglob("0*.png"))) == 2, "images of an earlier export are removed"


def test_transfer_matrix_and_classical_targets(run, tiny_checkpoint, forest, tmp_path, capsys):
    second = tmp_path / "second" / "best.pt"
    second.parent.mkdir()
    shutil.copy(tiny_checkpoint, second)
    argv = [*attacking.SMALL, "--attacks", "pgd", "--eps", "4/255", "--transfer", "--output-dir", str(tmp_path / "out")]
    argv += ["--data", str(tmp_path / "faces"), "--checkpoint", str(tiny_checkpoint), str(second), str(forest)]
    rows = attack.main(argv)["rows"]
    assert [row["checkpoint"] for row in rows] == ["second", "tiny-run"], "the table holds direct attacks only"
    with open(tmp_path / "out" / "transfer.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["source"] for line in lines] == ["second", "tiny-run"]
    for line in lines:
        assert line["second"] == line["tiny-run"], "the same weights fall to the same images"
        assert 0 <= float(line["forest-run"]) <= 1
    assert "Black-box transfer" in capsys.readouterr().out


def test_square_needs_no_gradient_and_white_box_attacks_say_so(
    run, forest, image_folder, tmp_path, monkeypatch, capsys
):
    (row,) = run("--attacks", "square", "--eps", "8/255", checkpoint=forest)["rows"]
    assert row["robust_acc"] <= row["clean_acc"]
    argv = ["--checkpoint", forest, "--data", image_folder, "--attacks", "pgd", "--output-dir", tmp_path / "other"]
    error = error_of(argv, monkeypatch, capsys)
    assert "input gradients" in error and "square" in error and "--transfer" in error


def test_smoothing_certifies_a_sample(run, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.attacks.smoothing.DRAWS", 32)
    run("--attacks", "fgsm", "--eps", "1/255", "--smoothing", "0.1", "--limit", "4")
    (entry,) = [read_json(file) for file in (tmp_path / "out" / "smoothing").glob("*.json")]
    assert len(entry["images"]) == 4 and all(image["radius"] <= 0.2 for image in entry["images"])
    assert (tmp_path / "out" / "smoothing.md").exists()


def test_unreadable_images_are_listed_and_make_the_exit_code_1(run, image_folder, capsys):
    (image_folder / "test" / "real" / "001.png").write_bytes(b"")
    result = run("--attacks", "fgsm", "--eps", "1/255", "2/255")
    assert result["exit_code"] == 1 and result["rows"][0]["n"] == 7
    assert capsys.readouterr().err.count("001.png") == 1


def test_sets_of_one_name_and_splits_of_one_set_are_told_apart(run, make_folder, tmp_path, capsys):
    grid = ["--attacks", "fgsm", "--eps", "1/255", "2/255", "--data"]
    parts = {f"{split}/{name}": 2 for split in ("valid", "test") for name in ("real", "fake")}
    first, second = make_folder("a/faces", parts), make_folder("b/faces", parts)
    rows = run(*grid, first, second, data=None)["rows"]
    assert [row["dataset"] for row in rows] == ["faces-1"] * 2 + ["faces-2"] * 2
    assert f"faces-2 is {second}" in capsys.readouterr().err
    rows = run(*grid, first, f"{first}@split=valid", "--output-dir", tmp_path / "splits", data=None)["rows"]
    assert [row["dataset"] for row in rows] == ["faces test"] * 2 + ["faces valid"] * 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--eps 8", "expected --eps in [0, 1] (pixel units), got 8; did you mean 8/255?"),
        ("--eps 8/2S5", "such as 8/255"),
        ("--attacks pdg", "did you mean pgd?"),
        ("--attacks mifgsm --norm l2", "expected --norm linf for mifgsm"),
        ("--direction sideways", "invalid choice"),
        ("--eps", "expected at least one argument"),
        ("--norm l2 --eps 1e30", "expected a size in (0, 1000]"),
        ("--attacks fgsm --steps 50", "expected --attacks of cw, deepfool, mifgsm, pgd, strong with --steps, got fgsm"),
        ("--attacks square --restarts 2", "expected --attacks of pgd, strong with --restarts, got square"),
        ("--queries 9", "expected --attacks of square, strong with --queries, got fgsm, pgd; drop --queries"),
        ("--transfer", "expected two or more --checkpoint with --transfer, got one"),
        ("--export attack.py", "expected --export to be a writable folder"),
    ],
)
def test_bad_input_is_answered_in_one_line(flags, says, tiny_checkpoint, image_folder, tmp_path, monkeypatch, capsys):
    argv = ["--checkpoint", tiny_checkpoint, "--data", image_folder, "--output-dir", tmp_path / "out", *flags.split()]
    assert says in error_of(argv, monkeypatch, capsys)


def test_one_class_only_is_refused_unless_the_direction_needs_no_other(
    run, image_folder, tmp_path, monkeypatch, capsys, tiny_checkpoint
):
    argv = ["--checkpoint", tiny_checkpoint, "--data", f"{image_folder}@classes=fake", "--output-dir", tmp_path / "out"]
    error = error_of(argv, monkeypatch, capsys)
    assert "got only fake" in error and "--direction fake-to-real" in error
    flags = ["--attacks", "fgsm", "--eps", "1/255", "--direction", "fake-to-real"]
    (row,) = run(*flags, data=f"{image_folder}@classes=fake")["rows"]
    assert row["n"] == 4 and row["auc"] is None


def test_empty_folder_has_no_tables(tmp_path, monkeypatch, capsys):
    assert "got none" in error_of(["--output-dir", tmp_path / "none"], monkeypatch, capsys)


def test_a_folder_without_results_stays_empty(tmp_path, monkeypatch, capsys):
    assert "expected finished cells in" in error_of(["--output-dir", tmp_path / "out"], monkeypatch, capsys)
    assert not list((tmp_path / "out").iterdir())
    says = error_of(["--output-dir", tmp_path / "out", "--attacks", "pgd"], monkeypatch, capsys)
    assert "expected --checkpoint and --data with --attacks" in says
