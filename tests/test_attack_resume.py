"""attack.py again in the same folder: finished cells stay, outdated ones are redone, other settings add cells."""

from functools import partial
from pathlib import Path

import pytest
import torch

from models.registry import create_model
from tests import attacking
from utils.attacks.cells import read_cell
from utils.attacks.runs import Trial
from utils.checkpoints.file import save_checkpoint

quick, run = attacking.quick, attacking.run  # fixtures


def cell_times(folder: Path) -> dict[str, int]:
    """When each file of a cell was written, by its name."""
    return {file.name: file.stat().st_mtime_ns for file in (folder / "out" / "cells").iterdir()}


def test_other_settings_make_another_cell(run, tmp_path):
    """The earlier one stays; an attack that does not read a setting is not run again."""
    grid = ("--attacks", "fgsm", "pgd", "square", "--eps", "2/255")
    run(*grid)
    first = cell_times(tmp_path)
    rows = run(*grid, "--steps", "2", "--restarts", "2", "--queries", "30")["rows"]
    names = ["fgsm", "pgd-2, 2 restarts", "pgd-3", "square", "square, 30 queries"]
    assert [row["attack_name"] for row in rows] == names
    files = cell_times(tmp_path)
    assert first.items() <= files.items()
    added = {name.split("__")[3].partition(".")[0] for name in files.keys() - first.keys()}
    assert added == {"pgd-linf-2_255-2steps-2restarts", "square-linf-2_255-30queries"}
    rows = run(*grid, "--seed", "1")["rows"]
    assert [row["attack_name"] for row in rows if "seed 1" in row["attack_name"]] == [
        f"{name}, seed 1" for name in ("fgsm", "pgd-3", "square")
    ]
    assert files.items() <= cell_times(tmp_path).items()


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
    finished = cell_times(tmp_path)
    assert len(finished) == 4
    (tmp_path / "out" / "cells" / "half.csv.gz").write_bytes(b"path")  # a cell that was killed before its JSON file
    done.clear()
    assert len(run(*grid)["rows"]) == 3 and done == [4 / 255]
    files = cell_times(tmp_path)
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
    assert all("2 different checkpoints named tiny-run" in row["failed_checks"] for row in run(checkpoint=None)["rows"])
    rows = run(*grid, *smoothing)["rows"]
    assert [row["norm"] for row in rows] == ["l2", "linf"]
    assert not any("different" in row["failed_checks"] for row in rows)
    changed = {file.parent.name for file in old if file.read_bytes() != old[file]}
    assert changed == {"out", "cells", "checks", "smoothing"}


@pytest.mark.parametrize("change", ["code", "library", "image", "labels"])
def test_cells_of_other_code_libraries_images_or_labels_are_attacked_again(change, run, image_folder, monkeypatch):
    faces = image_folder / "faces.csv"
    rows = [f"test/{name}/{number:03}.png,{name}" for name in ("real", "fake") for number in range(4)]
    faces.write_text("\n".join(["path,label", *rows]))
    run = partial(run, "--attacks", "fgsm", "--eps", "1/255", data=f"csv:{faces}")
    run()
    done, original = [], Trial.run
    monkeypatch.setattr(Trial, "run", lambda *arguments: done.append(1) or original(*arguments))
    run()
    assert done == []
    if change == "code":
        monkeypatch.setattr("utils.attacks.runs.code_digest", lambda *patterns: "other")
    elif change == "library":
        monkeypatch.setattr("utils.attacks.runs.versions", lambda: {"torchattacks": "4"})
    elif change == "image":
        (image_folder / "test" / "real" / "001.png").touch()  # replaced by a file of the same size
    else:
        flipped = [row[:-4] + ("fake" if row.endswith("real") else "real") for row in rows]
        faces.write_text("\n".join(["path,label", *flipped]))
    run()
    assert done == [1]
