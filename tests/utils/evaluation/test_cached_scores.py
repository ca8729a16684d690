"""Evaluation with the score cache: what is decoded again and what is not."""

import shutil
from pathlib import Path

import pytest

import evaluate
from tests.utils.evaluation.conftest import by_tier
from utils.scoring.scorer import score
from utils.scoring.table import read_sidecar


def test_a_second_run_reads_no_image(run, image_folder, reads, capsys):
    first = run("--tiers", "clean", "web", data=image_folder)
    count = len(reads)
    again = run("--tiers", "web", "clean", data=image_folder, out="again")
    assert count == 8 and len(reads) == 8
    assert by_tier(first) == by_tier(again)
    assert "all score sets taken from" in capsys.readouterr().err
    more = run("--tiers", "clean", "web", "hard", data=image_folder, out="more")  # only hard is missing
    assert len(reads) == 16 and by_tier(more)["clean"] == by_tier(first)["clean"]


def test_an_interrupted_evaluation_goes_on_where_it_was(run, make_folder, reads, monkeypatch):
    sets = [make_folder(name, {"real": 2, "fake": 2}) for name in ("one", "two")]
    with monkeypatch.context() as patch:
        patch.setattr("utils.evaluation.evaluate.score", fail_on_second(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("--tiers", "clean", "hard", data=sets)
    assert "only the set in progress is scored again" in evaluate.__doc__  # what the help says
    done = list(reads)
    result = run("--tiers", "clean", "hard", data=sets)
    assert len(done) == 4 and {Path(path).parts[-3] for path in reads[4:]} == {"two"} and len(reads) == 8
    assert len(result["rows"]) == 4


def fail_on_second(error: type[BaseException]):
    calls = []

    def scored(*args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise error
        return score(*args, **kwargs)

    return scored


@pytest.mark.parametrize("change", ["models.detector.Detector.engine", "utils.runtime.LIBRARIES"])
def test_another_engine_or_library_scores_again(run, image_folder, reads, monkeypatch, change):
    run(data=image_folder)
    monkeypatch.setattr(change, "onnx" if change.endswith("engine") else {"pytest": "pytest"})
    run(data=image_folder)
    assert len(reads) == 16


def test_changed_images_and_changed_checkpoints_are_noticed(run, variant, image_folder, reads, tiny_checkpoint):
    before = by_tier(run(data=image_folder))["clean"]
    file = sorted((image_folder / "test" / "real").iterdir())[0]
    shutil.copy(sorted((image_folder / "test" / "fake").iterdir())[0], file)
    after = by_tier(run(data=image_folder))["clean"]
    assert len(reads) == 16
    assert {path for path in before if before[path] != after[path]} == {str(file)}
    run(data=image_folder, checkpoints=[variant("calibrated", calibration=None)])
    assert len(reads) == 24


def test_cache_can_be_left_out_or_lie_elsewhere(run, image_folder, reads, tmp_path):
    run("--no-score-cache", data=image_folder)
    assert not (tmp_path / "cache").exists()
    run("--score-cache", tmp_path / "mine", data=image_folder)
    run("--score-cache", tmp_path / "mine", data=image_folder)
    assert len(reads) == 16 and len(list((tmp_path / "mine").iterdir())) == 1 and not (tmp_path / "cache").exists()


def test_a_damaged_entry_is_made_again(run, image_folder, reads, tmp_path, capsys):
    before = by_tier(run(data=image_folder))
    (entry,) = (tmp_path / "cache").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-40])
    assert by_tier(run(data=image_folder)) == before
    assert "scored again" in capsys.readouterr().err and len(reads) == 16
    run(data=image_folder)
    assert len(reads) == 16


def test_unreadable_images_are_counted_once_and_remembered(run, image_folder, reads, tiny_checkpoint, variant, capsys):
    broken = sorted((image_folder / "test" / "fake").iterdir())[1]
    broken.write_bytes(b"no image")
    flags = ["--tiers", "clean", "web", "--severity", "noise"]
    for _ in range(2):
        result = run(*flags, data=image_folder, checkpoints=[str(tiny_checkpoint), variant("other")])
        error = capsys.readouterr().err
        assert error.count(f"unreadable: {broken}") == 1 and "1 unreadable images" in error
        assert result["exit_code"] == 1
        assert {(row["n_fake"], row["unreadable"]) for row in result["rows"]} == {(3, 1)}
    assert len(reads) == 8
    assert [item["path"] for item in read_sidecar(result["scores"][1])["unreadable"]] == ["test/fake/001.png"]
