"""Training on cached tokens: the same as on images, the answers of a teacher, and what is refused."""

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import train
from datasets.loading import Batch, ImageDataset, stand_in
from datasets.transforms import EvalTransform, TrainTransform, as_floats
from models.foundation import Foundation
from models.registry import create_model
from tests.conftest import exit_and_stderr
from tests.utils.training.token_runs import AUGMENTED, CPU, VIEWS, flags, folders, open_tokens
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.scoring.scorer import Job, Settings, score
from utils.training import tokens
from utils.training.distillation import Teacher
from utils.training.token_cache import score_tokens
from utils.training.tokens import in_openvino, view_seeds

pytestmark = pytest.mark.usefixtures("no_curves")


def gradients(detector, logits, labels) -> list[torch.Tensor]:
    detector.zero_grad()
    binary_cross_entropy_with_logits(logits, labels).backward()
    return [parameter.grad.clone() for parameter in detector.parameters() if parameter.requires_grad]


def test_views_labels_and_gradients_are_those_of_direct_training(image_folder):
    recipe, data, state, loader = open_tokens(image_folder, *AUGMENTED)
    detector = state.detector
    chosen = dict(iter(loader.sampler))
    transform = TrainTransform(detector.geometry, "forensic", as_bytes=True)
    direct = ImageDataset(data.train_records, transform)
    seeds = view_seeds(recipe.seed, len(direct), VIEWS)
    batches = list(loader)
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(len(direct)))
    for batch in batches:
        items = [direct[index, int(seeds[index, chosen[index] % VIEWS])] for index in batch.indices.tolist()]
        assert batch.labels.tolist() == [label for _, label, _ in items]
        images = as_floats(torch.stack([image for image, _, _ in items]))
        wanted = detector.eval().frozen_tokens(images)
        assert torch.allclose(batch.images.float(), wanted, rtol=2e-3, atol=1e-4)
        detector.train()
        exact = gradients(detector, detector(images), batch.labels)
        cached = gradients(detector, detector.from_tokens(as_floats(batch.images)), batch.labels)
        assert len(exact) > 4
        for one, other in zip(exact, cached, strict=True):
            assert (one - other).norm() <= 0.02 * one.norm() + 1e-6
        again = gradients(detector, detector.from_tokens(wanted), batch.labels)  # without rounding to float16
        assert all(torch.equal(one, other) for one, other in zip(exact, again, strict=True))


def test_each_view_has_a_seed_and_epochs_differ_in_their_views(image_folder):
    seeds = view_seeds(0, 50, 4)
    assert len(np.unique(seeds)) == 200 and (view_seeds(0, 50, 2) == seeds[:, :2]).all()
    assert (view_seeds(0, 30, 4) == seeds[:30]).all() and (view_seeds(1, 50, 4) != seeds).all()
    loader = open_tokens(image_folder)[-1]
    epochs = []
    for loader.sampler.epoch in (0, 1, 0):
        batches = list(loader)
        order = torch.cat([batch.indices for batch in batches]).argsort()
        epochs.append(torch.cat([batch.images for batch in batches])[order])
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


def test_validation_scores_are_those_of_the_images(image_folder):
    _, data, state, _ = open_tokens(image_folder)
    settings = Settings(3)
    found = score_tokens(state.detector, state.valid_tokens[0], settings)
    wanted = score([Job(state.detector)], data.valid[0].records, settings)[0]
    assert found.indices.tolist() == wanted.indices.tolist()
    assert found.logits == pytest.approx(wanted.logits, abs=5e-3)


def test_unreadable_images_are_counted_listed_and_skipped(image_folder, tmp_path, monkeypatch, capsys):
    broken = [image_folder / part / "real" / "000.png" for part in ("train", "valid")]
    for file in broken:
        file.write_bytes(b"no image")
    argv = flags(
        image_folder, "--epochs", "2", "--cache", str(tmp_path / "cache"), "--output-dir", str(tmp_path / "run")
    )
    code, text = exit_and_stderr(train.main, argv, monkeypatch, capsys)
    assert code == 1 and text.count(str(broken[0])) == 1 and text.count(str(broken[1])) == 1
    _, _, state, loader = open_tokens(image_folder)
    failed = [item for batch in loader for item in batch.unreadable]
    assert len(failed) == 1 and loader.dataset.records[failed[0].index].path == str(broken[0])
    assert len(score_tokens(state.detector, state.valid_tokens[0], Settings()).indices) == 7


def test_the_answers_of_a_teacher_are_cached_with_the_tokens(image_folder, tiny_checkpoint, tmp_path):
    more = ["--teacher", str(tiny_checkpoint)]
    assert open_tokens(image_folder)[-1].dataset.__getitems__([(0, 0)]).answers is None
    _, data, state, loader = open_tokens(image_folder, *more)
    assert state.teacher is None
    teacher, transform = Teacher(tiny_checkpoint, CPU), TrainTransform(state.detector.geometry, as_bytes=True)
    seeds = view_seeds(0, 16, VIEWS)
    batch = loader.dataset.__getitems__([(4, 1), (3, 2)])
    assert batch.indices.tolist() == [3, 4]
    images = [ImageDataset(data.train_records, transform)[i, int(seeds[i, v])][0] for i, v in ((3, 2), (4, 1))]
    assert torch.allclose(batch.answers, teacher(as_floats(torch.stack(images))), atol=1e-5)
    save_checkpoint(tiny_checkpoint, {**load_checkpoint(tiny_checkpoint), "seed": 1})
    before = folders(image_folder)
    open_tokens(image_folder, *more)
    assert len(folders(image_folder) - before) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--model", "cnn", "--model-args", "width=4"],
            "expected a --model or --teacher with a frozen part .* got cnn",
        ),
        (["--adversarial", "pgd"], "expected either --token-views or --adversarial, got both"),
    ],
)
def test_what_cannot_train_on_tokens_is_refused(more, message, image_folder, tmp_path):
    with pytest.raises(UserError, match=message):
        train.main([*flags(image_folder, "--output-dir", str(tmp_path / "run")), *more])
    assert not (tmp_path / "cache").exists()


def test_tokens_too_large_for_half_precision_are_refused(image_folder, monkeypatch):
    compute = Foundation.frozen_tokens
    monkeypatch.setattr(Foundation, "frozen_tokens", lambda self, x: 1e6 * compute(self, x))
    with pytest.raises(UserError, match=r"expected tokens below 65,504 .* drop --token-views"):
        open_tokens(image_folder)


def test_openvino_computes_the_same_tokens(image_folder, monkeypatch):
    pytest.importorskip("openvino")
    sizes = []

    def counted(detector, side):
        sizes.append(side)
        return in_openvino(detector, side) if side == 32 else torch.no_grad()(detector.frozen_tokens)

    monkeypatch.setattr(tokens, "WORTH_CONVERTING", 50)
    monkeypatch.setattr(tokens, "in_openvino", counted)
    _, data, state, _ = open_tokens(image_folder, "--precision", "bf16", "--train-size", "48")
    assert sizes == [48, 32]
    images = ImageDataset(data.valid[0].records, EvalTransform(state.detector.geometry))
    wanted = state.detector.frozen_tokens(torch.stack([images[index][0] for index in range(8)]))
    found = torch.from_numpy(state.valid_tokens[0].rows["tokens"].astype(np.float32))
    assert torch.nn.functional.cosine_similarity(found.flatten(1), wanted.flatten(1)).min() > 0.999


@torch.no_grad()
@pytest.mark.parametrize("side", [56, pytest.param(96, marks=pytest.mark.slow)])  # 56 px are padded to whole patches
def test_openvino_sees_the_same_positions(side):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    detector = create_model("foundation", backbone="test_vit", tune="norms_2").eval()
    positions = detector.backbone.pos_embed.normal_().clone()
    images = torch.rand(4, 3, side, side)
    found, wanted = in_openvino(detector, side)(images), detector.frozen_tokens(images)
    assert (found - wanted).abs().mean() < 0.01 * wanted.abs().mean()
    assert torch.equal(detector.backbone.pos_embed, positions)


def test_a_process_without_readable_images_takes_part_with_black_tokens(monkeypatch):
    monkeypatch.setattr("datasets.loading.team.size", 2)
    batch = Batch(torch.rand(0, 5, 8), torch.ones(0), torch.zeros(0, dtype=torch.int64), [], torch.ones(0))
    assert stand_in(batch, 32) == 0
    assert batch.images.shape == (2, 5, 8) and batch.answers.shape == (2,)
