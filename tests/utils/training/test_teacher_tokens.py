"""A student of a mostly frozen teacher: it learns from the views that the teacher answered, computed once."""

import numpy as np
import pytest
import torch

import train
from datasets.listing.splits import open_training_data
from datasets.loading import ImageDataset
from datasets.transforms import Geometry, TrainTransform, as_floats
from models.foundation import Foundation
from models.registry import create_model
from tests.conftest import exit_and_stderr
from tests.utils.training.token_runs import CPU, VIEWS
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.training.distillation import Teacher
from utils.training.recipe import make_recipe
from utils.training.setup import build_detector, prepare
from utils.training.tokens import view_seeds

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def teacher_file(tiny_checkpoint):
    """A foundation model for 32 px, with a calibration."""
    torch.manual_seed(0)
    args = {"backbone": "test_vit", "blocks": "3-6", "tune": "none"}
    detector = create_model("foundation", **args)
    kept = load_checkpoint(tiny_checkpoint)
    geometry = Geometry("crop", 32).to_dict()
    save_checkpoint(
        tiny_checkpoint,
        {**kept, "model": "foundation", "model_args": args, "state_dict": detector.state_dict(), "geometry": geometry},
    )
    return tiny_checkpoint


def flags(faces, teacher_file, *more: str) -> list[str]:
    student = "--model cnn --model-args width=4 --image-size 32 --batch-size 4 --precision fp32 --augmentation forensic"
    return [*student.split(), "--data", str(faces), "--teacher", str(teacher_file), "--token-views", str(VIEWS), *more]


def open_student(faces, teacher_file):
    recipe = make_recipe(vars(train.get_args_parser().parse_args(flags(faces, teacher_file))), "")
    data = open_training_data(recipe.data)
    detector = build_detector(recipe, data.train_records, CPU)
    return data, *prepare(recipe, detector, data, faces.parent, CPU, cache=str(faces.parent / "cache"))


def test_answers_are_those_of_the_teacher_to_the_views(image_folder, teacher_file):
    teacher = Teacher(teacher_file, CPU)
    data, state, loader = open_student(image_folder, teacher_file)
    assert state.teacher is None and state.valid_tokens is None
    direct = ImageDataset(data.train_records, TrainTransform(state.detector.geometry, "forensic", as_bytes=True))
    seeds, chosen = view_seeds(0, len(direct), VIEWS), dict(iter(loader.sampler))
    batches = list(loader)
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(len(direct)))
    for batch in batches:
        views = [direct[index, int(seeds[index, chosen[index] % VIEWS])] for index in batch.indices.tolist()]
        images = torch.stack([image for image, _, _ in views])
        assert torch.equal(batch.images, images) and batch.labels.tolist() == [label for _, label, _ in views]
        assert torch.allclose(batch.answers, teacher(as_floats(images)), atol=5e-3)


def test_an_image_drawn_twice_has_the_answers_of_both_views(image_folder, teacher_file):
    views = open_student(image_folder, teacher_file)[-1].dataset
    batch = views.__getitems__([(3, 1), (3, 2), (3, 1 + VIEWS)])
    assert batch.answers.tolist() == [views.answers[3, 1], views.answers[3, 2], views.answers[3, 1]]
    assert torch.equal(batch.images[0], batch.images[2]) and not torch.equal(batch.images[0], batch.images[1])


def test_another_head_finds_the_tokens(image_folder, teacher_file, monkeypatch):
    first = open_student(image_folder, teacher_file)[-1].dataset.answers
    checkpoint = load_checkpoint(teacher_file)
    weight = torch.full_like(checkpoint["state_dict"]["head.weight"], 0.1)
    save_checkpoint(teacher_file, {**checkpoint, "state_dict": {**checkpoint["state_dict"], "head.weight": weight}})
    passed, compute = [], Foundation.frozen_tokens
    monkeypatch.setattr(Foundation, "frozen_tokens", lambda self, x: passed.append(len(x)) or compute(self, x))
    second = open_student(image_folder, teacher_file)[-1].dataset.answers
    assert sum(passed) == 3, "one to see the shape, two to see that they are still the same"
    assert np.abs(first - second).max() > 0.01


def test_train_reports_unreadable_images_and_resumes(image_folder, teacher_file, tmp_path, monkeypatch, capsys):
    broken = image_folder / "train" / "real" / "000.png"
    broken.write_bytes(b"no image")
    argv = flags(image_folder, teacher_file, "--epochs", "2", "--cache", str(tmp_path / "cache"))
    argv += ["--output-dir", str(tmp_path / "run")]
    code, text = exit_and_stderr(train.main, argv, monkeypatch, capsys)
    assert code == 1 and text.count(str(broken)) == 1
    assert f"teacher: {16 * VIEWS} images computed" in text
    assert load_checkpoint(tmp_path / "run" / "best.pt")["model"] == "cnn"
    train.main(["--resume", "--output-dir", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")])
    assert "computed" not in capsys.readouterr().err


def test_a_teacher_without_a_frozen_part_is_refused(image_folder, tiny_checkpoint):
    with pytest.raises(UserError, match=r"expected a --model or --teacher with a frozen part .* got cnn"):
        open_student(image_folder, tiny_checkpoint)


def test_an_image_without_an_answer_is_left_out(image_folder, teacher_file):
    """It could not be read when the answers were cached, but can be read now."""
    _, _, loader = open_student(image_folder, teacher_file)
    images = loader.dataset
    images.answers[3] = np.nan
    batch = images.__getitems__([(2, 0), (3, 1), (4, 0)])
    assert batch.indices.tolist() == [2, 4] and not batch.answers.isnan().any() and len(batch.images) == 2
    assert [item.index for item in batch.unreadable] == [3]
