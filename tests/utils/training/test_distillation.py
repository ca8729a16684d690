"""Distillation: the loss is the one of the paper, the teacher never changes, and train.py takes one."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import train
from datasets.transforms import Geometry
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.training.distillation import TEACHER_WEIGHT, TEMPERATURE, Teacher, training_loss
from utils.training.recipe import recipe_values

pytestmark = pytest.mark.usefixtures("no_curves")


def test_without_a_teacher_it_is_cross_entropy():
    logits, targets = torch.tensor([1.0, -2.0]), torch.tensor([0.95, 0.05])
    assert training_loss(logits, targets) == binary_cross_entropy_with_logits(logits, targets)


def test_gradient_pulls_towards_the_teacher_by_its_weight():
    logits = torch.zeros(1, requires_grad=True)
    answer = torch.tensor([3.0])
    training_loss(logits, torch.tensor([0.5]), answer).backward()
    expected = TEACHER_WEIGHT * TEMPERATURE * (0.5 - torch.sigmoid(answer / TEMPERATURE))
    assert torch.allclose(logits.grad, expected)
    logits = answer.clone().requires_grad_()  # who agrees with teacher and label has nothing left to learn
    training_loss(logits, torch.sigmoid(answer), answer).backward()
    assert abs(logits.grad.item()) < 1e-6


def test_teacher_answers_with_its_calibration_and_has_no_gradient(tiny_checkpoint):
    teacher = Teacher(tiny_checkpoint, torch.device("cpu"))
    images = torch.rand(2, 3, 48, 48, requires_grad=True)
    answers = teacher(images)
    with torch.no_grad():
        assert torch.allclose(answers, teacher.detector(images) / 2, atol=1e-6)  # its temperature is 2
    assert not answers.requires_grad and not any(p.requires_grad for p in teacher.detector.parameters())


def test_a_teacher_that_frames_faces_sees_its_own_size(tiny_checkpoint):
    teacher = Teacher(tiny_checkpoint, torch.device("cpu"))
    images = torch.rand(2, 3, 48, 48)
    assert teacher.view(images) is images
    teacher.detector.geometry = Geometry("face", 32)
    assert teacher.view(images).shape == (2, 3, 32, 32)


def test_train_learns_from_a_teacher(image_folder, tiny_checkpoint, tmp_path):
    """The teacher's training set is no unseen source for its student."""
    entries = [{"dataset": "wild", "split": split, "fingerprint": "x"} for split in ("train", "valid")]
    save_checkpoint(tiny_checkpoint, {**load_checkpoint(tiny_checkpoint), "data": entries})
    result = train.main(
        [
            "--model",
            "cnn",
            "--model-args",
            "width=4",
            "--data",
            str(image_folder),
            "--image-size",
            "32",
            "--batch-size",
            "8",
            "--epochs",
            "1",
            "--threads",
            "1",
            "--teacher",
            str(tiny_checkpoint.parent),
            "--output-dir",
            str(tmp_path / "run"),
        ]
    )
    assert result["exit_code"] == 0
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    assert checkpoint["train_args"]["teacher"] == str(tiny_checkpoint)
    assert [entry["dataset"] for entry in checkpoint["data"] if entry.get("earlier")] == ["wild"]


def test_teacher_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="--teacher"):
        train.main(["--teacher", str(tmp_path / "none.pt"), "--output-dir", str(tmp_path / "run")])


@pytest.mark.parametrize(
    "flags",
    [
        *(["--teacher", "{teacher}"], ["--compile"], ["--adversarial", "fgsm"], ["--balance"], ["--epochs", "50"]),
        *(["--lr", "0.1"], ["--freeze", "backbone"], ["--augmentation", "wild"], ["--prune", "0.3"]),
        *(["--token-views", "2"], ["--patience", "3"], ["--train-size", "64"]),
    ],
    ids=lambda flags: flags[0],
)
def test_what_a_classical_model_would_ignore_is_refused(flags, image_folder, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name)
    argv = ["--model", "lightgbm", "--data", str(image_folder), "--output-dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=f"expected a neural --model with {flags[0]}, got lightgbm"):
        train.main([*argv, *(flag.format(teacher=tiny_checkpoint) for flag in flags)])


def test_a_teacher_named_by_its_folder_is_the_one_of_the_run(tiny_checkpoint):
    """A resumed run, also one of tune.py, may name it again in the same way."""
    assert recipe_values({"teacher": str(tiny_checkpoint.parent)}) == {"teacher": str(tiny_checkpoint)}
