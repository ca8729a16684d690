"""attack.py end to end: cells and tables, resume, export, transfer, classical detectors, bad input."""

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
from utils.args import run_script
from utils.attacks.cells import read_cell
from utils.attacks.runs import Trial
from utils.attacks.threat_model import SETTINGS
from utils.checkpoints.file import save_checkpoint
from utils.files import read_json
from utils.scoring.table import read_scores

SMALL = ["--threads", "1", "--batch-size", "4"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Weak attacks, few queries in the check against Square, and no figures; test_checks.py tests the checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.attacks.report.save_figure", lambda figure, stem: None)
        patch.setattr("utils.attacks.checks.SQUARE_QUERIES", 5)
        patch.setitem(SETTINGS, "steps", 3)
        patch.setitem(SETTINGS, "queries", 5)
        yield


@pytest.fixture
def run(image_folder, tiny_checkpoint, tmp_path):
    """Run attack.py on the tiny checkpoint and the test split of the face folder (4 real, 4 fake)."""

    def call(*flags: str, checkpoint=tiny_checkpoint, data=image_folder) -> dict:
        argv = [*SMALL, "--output-dir", tmp_path / "out", *flags]
        argv += ["--checkpoint", checkpoint, "--data", data] if checkpoint else []
        return attack.main([str(word) for word in argv])

    return call


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


def test_other_settings_make_another_cell(run, tmp_path):
    """The earlier one stays; an attack that does not read a setting is not run again."""
    grid = ("--attacks", "fgsm", "pgd", "square", "--eps", "2/255")
    run(*grid)
    first = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cells").iterdir()}
    rows = run(*grid, "--steps", "2", "--restarts", "2", "--queries", "30")["rows"]
    names = ["fgsm", "pgd-2, 2 restarts", "pgd-3", "square", "square, 30 queries"]
    assert [row["attack_name"] for row in rows] == names
    files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cells").iterdir()}
    assert first.items() <= files.items()
    added = {name.split("__")[3].partition(".")[0] for name in files.keys() - first.keys()}
    assert added == {"pgd-linf-2_255-2steps-2restarts", "square-linf-2_255-30queries"}


def test_cell_is_a_scores_file_and_decides_at_the_threshold_of_the_checkpoint(run, tmp_path):
    run("--attacks", "fgsm", "--eps", "2/255")
    (file,) = (tmp_path / "out" / "cells").glob("*.csv.gz")
    table = read_scores(file)
    cell = read_cell(next((tmp_path / "out" / "cells").glob("*.json")))
    assert set(table.tier) == {"fgsm linf 2/255"} and len(table) == 8 and table.path[0] == "test/fake/000.png"
    assert cell.info["threshold"] == 0.5 and cell.info["hardware"] and "attack.py" in cell.info["command"]
    assert cell.right().tolist() == ((table.p_fake >= 0.5) == (table.label == 1)).tolist()
    assert cell.extra["linf"].max() == pytest.approx(2 / 255, rel=1e-4)


def test_interrupted_grid_goes_on_where_it_was(run, tmp_path, monkeypatch):
    done, original = [], Trial.run

    def counting(trial, plan, export=None):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(plan.eps)
        return original(trial, plan, export)

    monkeypatch.setattr(Trial, "run", counting)
    grid = ["--attacks", "fgsm", "--eps", "1/255", "2/255", "4/255"]
    with pytest.raises(KeyboardInterrupt):
        run(*grid)
    finished = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cells").iterdir()}
    assert len(finished) == 4
    (tmp_path / "out" / "cells" / "half.csv.gz").write_bytes(b"path")  # a cell that was killed before its JSON file
    done.clear()
    assert len(run(*grid)["rows"]) == 3 and done == [4 / 255]
    files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cells").iterdir()}
    assert finished.items() <= files.items()
    done.clear()
    run(*grid[:4], "--seed", "1")
    assert done == [1 / 255], "other settings are another cell"


def test_clean_images_are_scored_once_for_all_attacks_and_sizes(run, tmp_path, monkeypatch):
    calls, original = [], Trial._logits
    monkeypatch.setattr(Trial, "_logits", lambda *arguments: calls.append(1) or original(*arguments))
    grid = ["--attacks", "fgsm", "pgd", "--eps", "1/255", "2/255"]
    run(*grid)
    batches, cells, variants = 2, 4, 3
    assert len(calls) == batches + cells * batches * variants
    cells = [read_cell(file) for file in (tmp_path / "out" / "cells").glob("*.json")]
    assert all((cell.extra["clean_p_fake"] == cells[0].extra["clean_p_fake"]).all() for cell in cells)
    calls.clear()
    run(*grid)
    assert calls == [], "finished cells need no scores"


def retrain(checkpoint):
    """Write other weights to the same path."""
    description = torch.load(checkpoint, weights_only=True)
    torch.manual_seed(1)
    description["state_dict"] = create_model("cnn", width=4).state_dict()
    save_checkpoint(checkpoint, description)


def test_retraining_at_the_same_path_makes_every_result_outdated(run, tiny_checkpoint, tmp_path, capsys):
    grid = ["--attacks", "fgsm", "--eps", "1/255"]
    smoothing = ["--smoothing", "0.1", "--limit", "4"]
    run(*grid, *smoothing)
    old = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.json")}
    retrain(tiny_checkpoint)
    run("--attacks", "fgsm", "--eps", "2/255", "--norm", "l2", "--limit", "4")
    assert "1 results of earlier checkpoints" in capsys.readouterr().err
    assert len(run(checkpoint=None)["rows"]) == 2
    assert all("2 different tiny-run" in row["failed_checks"] for row in run(checkpoint=None)["rows"])
    rows = run(*grid, *smoothing)["rows"]
    assert [row["norm"] for row in rows] == ["l2", "linf"]
    assert not any("different" in row["failed_checks"] for row in rows)
    changed = {file.parent.name for file in old if file.read_bytes() != old[file]}
    assert changed == {"out", "cells", "checks", "smoothing"}


@pytest.mark.parametrize("change", ["code", "library", "image"])
def test_cells_of_other_code_libraries_or_images_are_attacked_again(change, run, image_folder, monkeypatch):
    grid = ["--attacks", "fgsm", "--eps", "1/255"]
    run(*grid)
    done, original = [], Trial.run
    monkeypatch.setattr(Trial, "run", lambda *arguments: done.append(1) or original(*arguments))
    run(*grid)
    assert done == []
    if change == "code":
        monkeypatch.setattr("utils.attacks.runs.code_digest", lambda *patterns: "other")
    elif change == "library":
        monkeypatch.setattr("utils.attacks.runs.versions", lambda: {"torchattacks": "4"})
    else:
        (image_folder / "test" / "real" / "001.png").touch()  # replaced by a file of the same size
    run(*grid)
    assert done == [1]


def test_direction_attacks_one_class_only(run, tmp_path):
    (row,) = run("--attacks", "fgsm", "--eps", "4/255", "--direction", "fake-to-real")["rows"]
    cell = read_cell(next((tmp_path / "out" / "cells").glob("*.json")))
    assert row["n"] == 4 and (cell.extra["linf"][cell.table.label == 0] == 0).all()
    assert (cell.extra["linf"][cell.table.label == 1] > 0).all()
    reals = cell.table.label == 0
    assert cell.extra["clean_p_fake"][reals] == pytest.approx(cell.table.p_fake[reals], rel=1e-5)


def test_export_is_a_data_set_that_evaluate_scores_alike(run, tiny_checkpoint, tmp_path, monkeypatch):
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
    argv = [*SMALL, "--attacks", "pgd", "--eps", "4/255", "--transfer", "--output-dir", str(tmp_path / "out")]
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
    result = run("--attacks", "fgsm", "--eps", "1/255")
    assert result["exit_code"] == 1 and result["rows"][0]["n"] == 7
    assert "001.png" in capsys.readouterr().err


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
