"""The folder of a run: one run at a time, no files of an old run, and a last.pt that can be resumed or says why not."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import train
from tests.conftest import exit_and_stderr
from tests.runs import TINY, Killed
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import locked
from utils.training.state import remove_half_written

pytestmark = pytest.mark.usefixtures("no_curves")
CLASSICAL = ["--model", "logistic_regression", "--model-args", "features=color", "--image-size", "32"]


@pytest.fixture(scope="module")
def finished(faces, tmp_path_factory) -> Path:
    """The folder of a finished run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train.main([*TINY, "--epochs", "1", "--data", str(faces), "--output-dir", str(folder)])
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the folder of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def killed(*_: object) -> None:
    raise Killed


# One run at a time


@pytest.mark.parametrize(
    "flags", [TINY, ["--resume"], CLASSICAL, [*TINY, "--overwrite"]], ids=lambda f: " ".join(f[:2])
)
def test_a_second_run_in_the_folder_is_refused_in_one_line(flags, faces, run, monkeypatch, capsys):
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    argv = [*flags, *([] if "--resume" in flags else ["--data", faces]), "--output-dir", run]
    with locked(run):
        code, error = exit_and_stderr(train.main, argv, monkeypatch, capsys)
    assert (code, error.count("\n")) == (2, 1) and "expected no other run in" in error
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_the_lock_ends_with_the_run_and_leaves_no_file(run, tmp_path):
    with pytest.raises(Killed), locked(run):
        raise Killed
    (tmp_path / "other").mkdir()
    names = {file.name for file in run.iterdir()}
    with locked(run), locked(tmp_path / "other"):
        assert {file.name for file in run.iterdir()} == names


def test_a_run_that_was_begun_meanwhile_is_not_overwritten(faces, tmp_path, monkeypatch, capsys):
    """The first run has not saved anything when the second one starts."""
    argv = [*TINY, "--epochs", "1", "--data", str(faces), "--output-dir", str(tmp_path / "run")]
    answers = []
    train.main(argv, on_epoch=lambda history: answers.append(exit_and_stderr(train.main, argv, monkeypatch, capsys)))
    assert answers[0][0] == 2 and "found one in progress" in answers[0][1]


# --overwrite


def divergence(*_: object) -> None:
    raise UserError("expected a training loss around or below 0.7 (chance), got nan")


@pytest.mark.parametrize(
    ("flags", "patched", "failure", "error"),
    [
        (TINY, "utils.training.finetune.warmup_cosine", killed, Killed),
        ([*TINY, "--lr", "10"], "utils.training.finetune.train_mode", divergence, UserError),
        (CLASSICAL, "models.classical.ClassicalDetector.fit", divergence, UserError),
    ],
    ids=["killed", "diverged", "classical"],
)
def test_nothing_of_the_old_run_passes_for_a_failed_new_one(flags, patched, failure, error, faces, run, monkeypatch):
    monkeypatch.setattr(patched, failure)
    with pytest.raises(error):
        train.main(
            [*flags, "--overwrite", "--cache", str(run / "cache"), "--data", str(faces), "--output-dir", str(run)]
        )
    assert not any((run / name).exists() for name in ("best.pt", "last.pt", "log.csv"))


def test_a_mistake_in_the_flags_leaves_the_old_run_alone(faces, run):
    with pytest.raises(UserError, match="expected --freeze"):
        train.main([*TINY, "--freeze", "all", "--overwrite", "--data", str(faces), "--output-dir", str(run)])
    assert all((run / name).exists() for name in ("best.pt", "last.pt", "log.csv"))


def test_overwriting_may_start_from_the_weights_that_it_replaces(faces, run):
    argv = [*TINY, "--epochs", "1", "--lr", "0", "--ema-decay", "0", "--data", str(faces), "--output-dir", str(run)]
    before = load_checkpoint(run / "best.pt")["state_dict"]
    train.main([*argv, "--overwrite", "--weights", str(run / "best.pt")])
    assert torch.equal(load_checkpoint(run / "best.pt")["state_dict"]["head.weight"], before["head.weight"])


# last.pt


def resume_error(run: Path, monkeypatch, capsys) -> str:
    code, error = exit_and_stderr(train.main, ["--resume", "--output-dir", run], monkeypatch, capsys)
    assert (code, error.count("\n")) == (2, 1)
    return error


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "finished", "older"])
def test_a_last_pt_that_cannot_be_resumed_is_named(damage, run, monkeypatch, capsys):
    last = run / "last.pt"
    content = last.read_bytes()
    if damage == "finished":
        shutil.copy(run / "best.pt", last)
    elif damage == "older":
        checkpoint = load_checkpoint(last)
        save_checkpoint(last, {**checkpoint, "train_args": {**checkpoint["train_args"], "mixup": 0.0}})
    else:
        last.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "text": b"text"}[damage])
    error = resume_error(run, monkeypatch, capsys)
    assert f"expected to resume from {last}" in error and "--overwrite" in error and "--checkpoint" not in error


def test_another_number_of_processes_is_refused(run, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "expected the 1 processes of the interrupted run, got 2" in resume_error(run, monkeypatch, capsys)


def test_only_the_first_process_removes_half_written_files(tmp_path, monkeypatch):
    half = tmp_path / ".log.csv.0f1e.tmp"  # in a resumed run, the first process may be writing it
    half.touch()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for rank, stays in (("1", True), ("0", False)):
        monkeypatch.setenv("RANK", rank)
        remove_half_written(tmp_path)
        assert half.exists() is stays


def test_failed_save_leaves_the_old_checkpoint_whole(tmp_path, run, monkeypatch):
    shutil.copy(run / "best.pt", tmp_path / "best.pt")
    shutil.rmtree(run)
    before = (tmp_path / "best.pt").read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(tmp_path / "best.pt", {"state_dict": {}})
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]
    assert (tmp_path / "best.pt").read_bytes() == before


# Loader processes and unreadable images


def test_every_pass_over_images_uses_the_workers(faces, tmp_path, monkeypatch):
    from datasets.loading import make_loader

    asked: dict[str, set[int]] = {}
    training = ("datasets.device_images", "utils.training.validation", "utils.training.classical")
    for module in (*training, "utils.scoring.scorer"):

        def spy(*args, workers=0, module=module, **options):
            asked.setdefault(module, set()).add(workers)
            return make_loader(*args, workers=0, **options)

        monkeypatch.setattr(f"{module}.make_loader", spy)
    common = ["--workers", "2", "--data", str(faces)]
    flags = ["--epochs", "1", "--adversarial", "fgsm", "--output-dir", str(tmp_path / "neural")]
    train.main([*TINY, *common, *flags])
    cache = str(tmp_path / "cache")
    train.main([*CLASSICAL, *common, "--device", "cpu", "--cache", cache, "--output-dir", str(tmp_path / "classical")])
    assert len(asked) == 4 and set.union(*asked.values()) == {2}


@pytest.mark.parametrize("readable", [0, 1])
def test_too_few_readable_images_do_not_blame_the_rate(readable, faces, tmp_path, monkeypatch, capsys):
    data = Path(shutil.copytree(faces, tmp_path / "faces"))
    files = sorted((data / "train").glob("*/*.png"))
    for file in files[readable:]:
        file.write_bytes(b"broken")
    argv = [*TINY, "--image-size", "32", "--data", data, "--output-dir", tmp_path / "run"]
    code, error = exit_and_stderr(train.main, argv, monkeypatch, capsys)
    assert code == 2 and "two readable training images" in error and "--lr" not in error
