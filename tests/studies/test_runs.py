"""Runs that studies resume: what is reused, what is trained again, what is refused."""

import json
from pathlib import Path

import pytest

import evaluate
import train
from datasets.listing.spec import open_records
from studies.runs import digests, evaluate_once, train_once
from tests.conftest import write_image
from utils.errors import UserError

FLAGS = ["--model", "cnn"]


@pytest.fixture
def trained(monkeypatch) -> list[list[str]]:
    """The flags of each call of train.main, which only leaves a last.pt."""
    calls: list[list[str]] = []

    def fake(flags: list[str]) -> dict:
        calls.append(flags)
        Path(flags[flags.index("--output-dir") + 1], "last.pt").touch()
        return {}

    monkeypatch.setattr(train, "main", fake)
    return calls


@pytest.fixture
def inputs(tiny_checkpoint, image_folder):
    """Return a function that computes the digests of the tiny checkpoint and the training images."""
    return lambda: digests([tiny_checkpoint], [open_records(str(image_folder), "train")])


def test_a_finished_run_is_reused_on_any_machine(trained, inputs, tmp_path):
    minutes = train_once(tmp_path / "run", FLAGS, inputs(), ["--threads", "1"])
    assert train_once(tmp_path / "run", FLAGS, inputs(), ["--threads", "2"]) == minutes >= 0
    assert trained == [[*FLAGS, "--threads", "1", "--output-dir", str(tmp_path / "run"), "--overwrite"]]


@pytest.mark.parametrize("changed", ["checkpoint", "image", "label", "code", "old plan"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_with_other_inputs_is_trained_again(
    changed, finished, trained, inputs, tiny_checkpoint, image_folder, tmp_path, monkeypatch, capsys
):
    """And not resumed either: its last.pt is of the old inputs."""
    plan = tmp_path / "run" / "plan.json"
    train_once(tmp_path / "run", FLAGS, inputs())
    known = json.loads(plan.read_text())
    if not finished:
        known.pop("minutes")
    if changed == "checkpoint":
        tiny_checkpoint.write_bytes(tiny_checkpoint.read_bytes() + b"\0")
    elif changed == "image":
        write_image(image_folder / "train" / "real" / "000.png", 999, fake=True)
    elif changed == "label":
        (image_folder / "train" / "real" / "000.png").rename(image_folder / "train" / "fake" / "900.png")
    elif changed == "code":
        monkeypatch.setattr("utils.source.code_digest", lambda *patterns: "other")
    else:
        known.pop("inputs")
    plan.write_text(json.dumps(known))
    train_once(tmp_path / "run", FLAGS, inputs())
    assert [call[-1] for call in trained] == ["--overwrite", "--overwrite"]
    assert "the code or the inputs have changed since; training again" in capsys.readouterr().err
    train_once(tmp_path / "run", FLAGS, inputs())
    assert len(trained) == 2


def test_an_interrupted_run_is_resumed_and_other_flags_are_refused(trained, inputs, tmp_path, monkeypatch):
    def interrupted(flags: list[str]) -> dict:
        fake(flags)
        raise KeyboardInterrupt

    fake = train.main
    monkeypatch.setattr(train, "main", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_once(tmp_path / "run", FLAGS, inputs())
    monkeypatch.setattr(train, "main", fake)
    train_once(tmp_path / "run", FLAGS, inputs())
    assert trained[1] == ["--resume", "--output-dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"expected the flags of the run in .*, got others; choose another --runs-dir"):
        train_once(tmp_path / "run", ["--model", "npr"], inputs())


def test_an_evaluation_is_repeated_when_its_checkpoint_or_images_change(
    tiny_checkpoint, image_folder, tmp_path, monkeypatch
):
    calls = []

    def fake(flags: list[str]) -> dict:
        calls.append(flags)
        Path(tmp_path, "out", "metrics.json").write_text(json.dumps([{"generator": "all", "n": len(calls)}]))
        return {}

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(evaluate, "main", fake)

    def run() -> int:
        return evaluate_once(tiny_checkpoint, [str(image_folder)], tmp_path / "out")[0]["n"]

    assert (run(), run()) == (1, 1)
    tiny_checkpoint.write_bytes(tiny_checkpoint.read_bytes() + b"\0")
    assert (run(), run()) == (2, 2)
    (image_folder / "test" / "real" / "000.png").unlink()
    assert run() == 3
