"""train.py: what it refuses, what it does with unreadable images, and what a run writes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from models.registry import list_models
from tests.conftest import FACES_PER_CLASS, exit_and_stderr
from tests.runs import TINY, Killed, assert_same_run
from utils.checkpoints.file import load_checkpoint, load_detector
from utils.evaluation.evaluate import Candidate, origin
from utils.files import ROOT

pytestmark = pytest.mark.usefixtures("no_curves")
FORENSIC = [*TINY, "--augmentation", "forensic"]  # uses all random numbers of training


@pytest.fixture(scope="module")
def whole_run(faces, tmp_path_factory) -> dict:
    """An uninterrupted run: its folder and what main returned."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return {"folder": folder, **train.main([*FORENSIC, "--data", str(faces), "--output-dir", str(folder)])}


def test_images_of_the_initial_weights_are_not_unseen(whole_run, faces, tmp_path):
    """Fine-tuning on another source, also after an interruption: the first source stays part of the training data."""
    weights = str(whole_run["folder"] / "best.pt")
    other, folder = shutil.copytree(faces, tmp_path / "other"), tmp_path / "run"

    def dying(history):
        raise Killed

    with pytest.raises(Killed):
        train.main([*TINY, "--weights", weights, "--data", str(other), "--output-dir", str(folder)], dying)
    train.main(["--resume", "--output-dir", str(folder)])
    for file in ("best.pt", "last.pt"):
        detector, checkpoint = load_detector(folder / file)
        assert checkpoint["epoch"] > 1 or file == "best.pt"
        assert origin(Candidate("run", detector, checkpoint, "digest"))["trained_on"] == ["faces", "other"]


# Refusals: exit code 2 and one line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--overwrite"),
        (["--resume", "--lr", "0.5"], "expected --lr as in the interrupted run (0.001), got 0.5"),
        (["--resume", "--epochs", "12"], "expected --epochs as in the interrupted run (3), got 12"),  # the default
        (["--resume", "--data", "elsewhere"], "expected --data as in"),
    ],
)
def test_existing_run_is_protected(flags, says, whole_run, tmp_path, monkeypatch, capsys):
    before = (whole_run["folder"] / "last.pt").read_bytes()
    argv = [*flags, "--output-dir", whole_run["folder"]]
    code, error = exit_and_stderr(train.main, argv, monkeypatch, capsys)
    assert (code, error.count("\n")) == (2, 1) and says in error
    assert (whole_run["folder"] / "last.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "says"),
    [([], "; pass --overwrite or --output-dir"), (["--resume"], "; pass --overwrite instead of --resume")],
)
def test_lone_checkpoint_is_protected_too(flags, says, whole_run, tmp_path, monkeypatch, capsys):
    """Also that of a run that was killed in its first epoch, which cannot be resumed."""
    shutil.copy(whole_run["folder"] / "best.pt", tmp_path)
    code, error = exit_and_stderr(train.main, [*flags, "--output-dir", tmp_path], monkeypatch, capsys)
    assert code == 2 and says in error


def test_resume_needs_a_run_and_its_images(faces, tmp_path, monkeypatch, capsys):
    code, error = exit_and_stderr(train.main, ["--resume", "--output-dir", tmp_path / "none"], monkeypatch, capsys)
    assert (code, error.count("\n")) == (2, 1) and "found no last.pt" in error
    assert not (tmp_path / "none").exists()

    data = shutil.copytree(faces, tmp_path / "faces")
    train.main([*TINY, "--epochs", "1", "--data", str(data), "--output-dir", str(tmp_path / "run")])
    (data / "train" / "real" / "00.png").unlink()
    code, error = exit_and_stderr(train.main, ["--resume", "--output-dir", tmp_path / "run"], monkeypatch, capsys)
    assert (code, error.count("\n")) == (2, 1) and "expected the images of the interrupted run" in error


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--data nowhere", "no such folder: nowhere"),
        ("--data empty", "got none"),
        ("--data one_class", "real and 0 fake"),
        ("--data unmappable", "cats, dogs"),
        ("--data faces@split=test", "without split="),
        ("--data test_only", "expected a train split in 'test_only', found test only"),
        ("--data faces --model cnn_basline", "did you mean"),
        ("--data faces --model-args input=32", "among input_size, dropout"),
        ("--data faces --model-args 32", "expected key=value"),
        ("--data faces --image-size 48", "expected --image-size that cnn_baseline takes, such as 32, got 48"),
        ("--data faces --image-size 32 --resize-to 16", "--resize-to in 32..8192"),
        ("--data faces --geometry resize --resize-to 64", "expected --geometry crop with --resize-to, got resize"),
        ("--data faces --epochs 0", "at least 1"),
        ("--data faces --batch-size 1", "expected an integer of at least 2, got 1"),
        ("--data faces --lr 11", "in [0, 10]"),
        ("--data faces --lr fast", "expected a number"),
        ("--data faces --warmup 1.5", "in [0, 1]"),
        ("--data faces --augmentation heavy", "invalid choice"),
        ("--data faces --device gpu", "--device"),
        ("--data faces --epoch 3", "unrecognized"),  # no abbreviations
        ("--data faces --output-dir a_file", "a writable folder"),
        ("--data faces --output-dir a_file/run", "a writable folder"),
        ("--data faces --resume --overwrite", "expected --resume or --overwrite, got both"),
        ("--data faces --adv-eps 2/255", "expected --adversarial with --adv-eps and --adv-steps, got none"),
        ("--data faces --adv-steps 3", "expected --adversarial with --adv-eps and --adv-steps, got none"),
        ("--data faces --weights none.pth", "found no file 'none.pth'"),
        ("--data faces --weights a_file", "expected a safetensors file or a state dict"),
    ],
)
def test_bad_input_is_answered_in_one_line(flags, says, faces, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").symlink_to(faces)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_file").write_text("not a folder")
    for source, target in (
        ("valid/real", "one_class/real"),
        ("valid/real", "unmappable/cats"),
        ("valid/fake", "unmappable/dogs"),
        ("test", "test_only/test"),
    ):
        shutil.copytree(faces / source, tmp_path / target)
    argv = [*TINY, "--output-dir", "run", *flags.split()]
    code, error = exit_and_stderr(train.main, argv, monkeypatch, capsys)
    lines = [line for line in error.splitlines() if "held out" not in line]
    assert code == 2 and len(lines) == 1 and says in lines[0], error


@pytest.mark.parametrize("cause", ["--lr", "--weights"])
def test_diverged_training_is_answered_in_one_line(cause, faces, whole_run, tmp_path, monkeypatch, capsys):
    weights = load_checkpoint(whole_run["folder"] / "best.pt")["state_dict"]
    torch.save({key: value * 1e30 for key, value in weights.items()}, tmp_path / "broken.pth")
    value = 10 if cause == "--lr" else tmp_path / "broken.pth"  # the one diverges, the other gives NaN
    argv = [*TINY, cause, value, "--data", faces, "--output-dir", tmp_path / "run"]
    code, error = exit_and_stderr(train.main, argv, monkeypatch, capsys)
    assert code == 2 and "expected a training loss around or below 0.7" in error.splitlines()[-1] and "--lr" in error
    assert "Traceback" not in error and not (tmp_path / "run" / "best.pt").exists()


def test_mistakes_are_answered_without_torch(tmp_path):
    script = """
import sys
import evaluate, predict, train
from utils.errors import UserError
for main, line in ((train.main, "--epochs nought"), (train.main, "--model resnet19"), (train.main, "--data nowhere"),
                   (train.main, "--weights none.pth"), (train.main, "--help"), (train.main, "--list-models"),
                   (evaluate.main, ""), (evaluate.main, "--checkpoint none.pt --data x"),
                   (predict.main, "--checkpoint none.pt x.jpg")):
    try:
        main(line.split())
        assert line == "--list-models"
    except (SystemExit, UserError) as error:
        print(main.__module__, line, repr(error))
    slow = {"torch", "timm", "albumentations", "matplotlib"} & set(sys.modules)
    assert not slow, (line, slow)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr


def test_list_models_prints_the_registered_names(capsys):
    assert train.main(["--list-models"])["exit_code"] == 0
    assert capsys.readouterr().out.split() == list_models()


# Unreadable images


@pytest.mark.parametrize("split", ["train", "valid"])
def test_unreadable_images_are_listed_skipped_and_make_the_exit_code_1(split, faces, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(faces, tmp_path / "faces")
    shutil.rmtree(data / "test")
    broken = [data / split / "real" / "03.png", data / split / "fake" / "05.png"]
    broken[0].write_bytes(b"")
    broken[1].write_bytes(broken[1].read_bytes()[:200])
    argv = [*TINY, "--epochs", "2", "--data", data, "--output-dir", tmp_path / "run"]
    code, error = exit_and_stderr(train.main, argv, monkeypatch, capsys)
    assert code == 1
    for file in broken:
        assert sum(line.startswith(f"unreadable: {file}: ") for line in error.splitlines()) == 1
    valid = load_checkpoint(tmp_path / "run" / "best.pt")["metrics"]["valid"][0]
    assert valid["unreadable"] == (0 if split == "train" else 2)
    assert valid["n_real"] + valid["n_fake"] + valid["unreadable"] == 2 * FACES_PER_CLASS["valid"]


# What a run writes


def test_same_seed_same_bits_and_thresholds_do_not_look_at_the_test_labels(faces, whole_run, tmp_path, capsys):
    """The second run has the wrong label on every test image: it must not make any difference."""
    poisoned = shutil.copytree(faces, tmp_path / "faces")
    for old, new in (("real", "x"), ("fake", "real"), ("x", "fake")):
        (poisoned / "test" / old).rename(poisoned / "test" / new)
    result = train.main([*FORENSIC, "--data", str(poisoned), "--output-dir", str(tmp_path / "run")])
    assert_same_run(tmp_path / "run", whole_run["folder"])
    assert result["rows"][0]["auc"] == pytest.approx(1 - whole_run["rows"][0]["auc"])
    assert all(0 <= value <= 1 for value in load_checkpoint(result["checkpoint"])["thresholds"].values())
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("test faces n_real=12 n_fake=12 auc=")
    assert lines[-1] == f"checkpoint {result['checkpoint']}"


def weights_of(folder: Path) -> torch.Tensor:
    state = load_checkpoint(folder / "last.pt")["state_dict"]
    return torch.cat([value.flatten() for value in state.values()])


def test_another_seed_gives_another_model(faces, whole_run, tmp_path):
    train.main([*FORENSIC, "--seed", "1", "--data", str(faces), "--output-dir", str(tmp_path)])
    assert not torch.equal(weights_of(tmp_path), weights_of(whole_run["folder"]))


def test_checkpoint_describes_the_run(faces, whole_run):
    checkpoint = load_checkpoint(whole_run["folder"] / "best.pt")
    assert (checkpoint["model"], checkpoint["model_args"]) == ("cnn_baseline", {"input_size": 32})
    assert checkpoint["seed"] == 0
    assert checkpoint["geometry"] == {"mode": "crop", "size": 32, "resize_to": None}
    described = [(entry["dataset"], entry["split"], entry["n_real"], entry["n_fake"]) for entry in checkpoint["data"]]
    assert described == [("faces", "train", 24, 24), ("faces", "valid", 12, 12)]
    assert checkpoint["train_args"]["lr"] == 0.001
    assert torch.__version__.startswith(checkpoint["versions"]["torch"])
    assert checkpoint["metrics"]["test"][0]["auc"] == whole_run["rows"][0]["auc"]
    assert "training" not in checkpoint
