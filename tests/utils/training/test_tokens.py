"""Training on cached tokens: the same as on images, and a cache that is never used for anything else."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import train
from datasets.framing import Box
from datasets.loading import Batch, ImageDataset, stand_in
from datasets.splits import open_training_data
from datasets.transforms import EvalTransform, TrainTransform, as_floats
from models.foundation import Foundation
from tests.conftest import assert_same_run, exit_and_stderr
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.scoring.scorer import Job, Settings, score
from utils.training import tokens
from utils.training.distillation import Teacher
from utils.training.recipe import make_recipe
from utils.training.setup import build_detector, prepare
from utils.training.token_cache import score_tokens
from utils.training.tokens import files_digest, in_openvino, view_seeds

pytestmark = pytest.mark.usefixtures("no_curves")
CPU = torch.device("cpu")
MODEL = "--model foundation --model-args backbone=test_vit blocks=3-6 tune=norms_2 --image-size 32 --batch-size 4"
VIEWS = 3
AUGMENTED = ["--augmentation", "forensic"]


class Killed(BaseException):
    """Ends a build as abruptly as possible inside this process."""


def flags(faces: Path, *more: str) -> list[str]:
    return [*MODEL.split(), "--precision", "fp32", "--token-views", str(VIEWS), "--data", str(faces), *more]


def open_tokens(faces: Path, *more: str, detector=None):
    """What train.py prepares with these flags: the recipe, the data, the state and the loader."""
    recipe = make_recipe(vars(train.get_args_parser().parse_args(flags(faces, *more))), "")
    data = open_training_data(recipe.data)
    detector = detector or build_detector(recipe, data.train_records, CPU)
    cache = str(faces.parent / "cache")
    return recipe, data, *prepare(recipe, detector, data, faces.parent, CPU, cache=cache)


def folders(faces: Path) -> set[str]:
    return {entry.name for entry in (faces.parent / "cache").iterdir()}


def rows_file(faces: Path) -> Path:
    """The cached tokens of the training images."""
    return max(faces.parent.glob("cache/*/rows.bin"), key=lambda file: file.stat().st_size)


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


def test_runs_resume_and_share_the_cache(image_folder, tmp_path, capsys, monkeypatch):
    argv = flags(image_folder, *AUGMENTED, "--epochs", "2", "--threads", "1", "--cache", str(tmp_path / "cache"))

    def interrupt(history):
        raise KeyboardInterrupt

    first = train.main([*argv, "--output-dir", str(tmp_path / "whole")])
    computed = capsys.readouterr().err
    assert first["exit_code"] == 0 and f"tokens: {16 * VIEWS + 8} images computed" in computed
    assert "images/s" in computed and "bytes per image" in computed
    with pytest.raises(KeyboardInterrupt):
        train.main([*argv, "--output-dir", str(tmp_path / "run")], on_epoch=interrupt)
    train.main(["--resume", "--output-dir", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")])
    assert "computed" not in capsys.readouterr().err
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "new"),
    [
        (["--token-views", "2"], 1),
        (["--augmentation", "none"], 1),
        (["--train-size", "48"], 1),
        (["--geometry", "resize"], 2),
        (["--model-args", "backbone=test_vit", "blocks=4-6", "tune=norms_2"], 2),
        (["--precision", "bf16"], 2),
        (["--seed", "1"], 2),  # also the random weights
        (["--epochs", "3", "--lr", "0.1", "--batch-size", "2", "--balance"], 0),
    ],
)
def test_what_decides_the_tokens_decides_the_folder(change, new, image_folder):
    open_tokens(image_folder)
    before = folders(image_folder)
    assert len(before) == 2
    open_tokens(image_folder, *change)
    assert len(folders(image_folder) - before) == new


def test_other_weights_or_other_files_have_another_folder(image_folder):
    detector = open_tokens(image_folder)[2].detector
    before = folders(image_folder)
    with torch.no_grad():
        detector.backbone.blocks[5].norm1.weight += 1  # tuned: not part of what is cached
        detector.head.weight += 1
    open_tokens(image_folder, detector=detector)
    assert folders(image_folder) == before
    with torch.no_grad():
        detector.backbone.blocks[0].norm1.weight += 1
    open_tokens(image_folder, detector=detector)
    assert len(folders(image_folder)) == 4
    next(image_folder.glob("train/real/*")).touch()
    open_tokens(image_folder, detector=detector)
    assert len(folders(image_folder)) == 5


def test_faces_and_labels_decide_the_folder_but_not_where_the_data_are(image_folder, tmp_path):
    listing = open_training_data([str(image_folder)]).train[0]
    digest = files_digest(listing)
    first = listing.records[0]
    for other in (replace(first, faces=(Box(0.1, 0.1, 0.9, 0.9),)), replace(first, label=1 - first.label)):
        assert files_digest(replace(listing, records=[other, *listing.records[1:]])) != digest
    moved = Path(shutil.copytree(image_folder, tmp_path / "elsewhere" / "faces"))
    assert files_digest(open_training_data([str(moved)]).train[0]) == digest


def kill_after(images: int, monkeypatch) -> list[int]:
    """Let the frozen part die after this many images; returns the list of its batch sizes."""
    compute, batches = Foundation.frozen_tokens, []

    def dying(self, x):
        if sum(batches) + len(x) > images:
            raise Killed
        batches.append(len(x))
        return compute(self, x)

    monkeypatch.setattr(Foundation, "frozen_tokens", dying)
    return batches


def test_a_killed_build_continues_at_the_row_where_it_stopped(image_folder, monkeypatch):
    monkeypatch.setattr("utils.training.token_cache.BATCH_SIZE", 10)
    detector = open_tokens(image_folder)[2].detector
    file = rows_file(image_folder)
    whole, size = file.read_bytes(), file.stat().st_size // (16 * VIEWS)
    for path in image_folder.parent.glob("cache/*/rows.bin"):
        path.unlink()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(2 + 25, patch)  # two images tell the shapes
        open_tokens(image_folder, detector=detector)
    part = file.with_name("rows.part")
    assert not file.exists() and part.stat().st_size == 20 * size
    with open(part, "ab") as stream:
        stream.write(b"half a row")
    batches = kill_after(1000, monkeypatch)
    open_tokens(image_folder, detector=detector)
    assert file.read_bytes() == whole and not part.exists()
    assert sum(batches) == 2 + 2 + (16 * VIEWS - 20) + 8  # shapes, two rows to compare, the rest, validation


@pytest.mark.parametrize("damage", ["truncated", "zeros", "labels"])
def test_a_damaged_cache_is_repaired(damage, image_folder, capsys):
    open_tokens(image_folder)
    file = rows_file(image_folder)
    whole = file.read_bytes()
    broken = bytearray(whole)
    if damage == "labels":
        broken[:4] = np.float32(1).tobytes() if whole[:4] == bytes(4) else bytes(4)
    file.write_bytes({"truncated": whole[:-1000], "zeros": bytes(len(whole)), "labels": bytes(broken)}[damage])
    capsys.readouterr()
    open_tokens(image_folder)
    assert file.read_bytes() == whole
    assert ("does not hold the tokens of these images" in capsys.readouterr().err) == (damage != "truncated")


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
        (["--model", "cnn", "--model-args", "width=4"], "expected a --model with a frozen part .* got cnn"),
        (["--adversarial", "pgd"], "expected either --token-views or --adversarial, got both"),
    ],
)
def test_what_cannot_train_on_tokens_is_refused(more, message, image_folder, tmp_path):
    with pytest.raises(UserError, match=message):
        train.main([*flags(image_folder, "--output-dir", str(tmp_path / "run")), *more])
    assert not (tmp_path / "cache").exists()


def test_a_disk_without_room_is_refused_before_anything_is_computed(image_folder, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("utils.training.tokens.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"MB of free space in .*cache for the tokens, got 0; lower --token-views"):
        open_tokens(image_folder)
    assert not list(image_folder.parent.glob("cache/*/rows*"))


def test_a_disk_that_fills_up_is_one_line(image_folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.training.token_cache.TokenCache._append", full)
    with pytest.raises(UserError, match=r"expected to write tokens to .*rows\.part, got: No space left on device"):
        open_tokens(image_folder)


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
        return in_openvino(detector, side)

    monkeypatch.setattr(tokens, "WORTH_CONVERTING", 50)
    monkeypatch.setattr(tokens, "in_openvino", counted)
    _, data, state, _ = open_tokens(image_folder, "--precision", "bf16", "--train-size", "48")
    assert sizes == [48, 32]
    images = ImageDataset(data.valid[0].records, EvalTransform(state.detector.geometry))
    wanted = state.detector.frozen_tokens(torch.stack([images[index][0] for index in range(8)]))
    found = torch.from_numpy(state.valid_tokens[0].rows["tokens"].astype(np.float32))
    assert torch.nn.functional.cosine_similarity(found.flatten(1), wanted.flatten(1)).min() > 0.999


def test_a_process_without_readable_images_takes_part_with_black_tokens(monkeypatch):
    monkeypatch.setattr("datasets.loading.team.size", 2)
    batch = Batch(torch.rand(0, 5, 8), torch.ones(0), torch.zeros(0, dtype=torch.int64), [], torch.ones(0))
    assert stand_in(batch, 32) == 0
    assert batch.images.shape == (2, 5, 8) and batch.answers.shape == (2,)
