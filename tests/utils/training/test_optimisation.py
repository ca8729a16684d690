"""What train.py optimises: accumulation, schedule, label smoothing, the best epoch, the images it trains on."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3

import train
from datasets.listing.spec import open_records
from datasets.listing.splits import open_training_data
from datasets.loading import Batch
from models.registry import create_model
from tests.runs import TINY, assert_same
from utils.checkpoints.file import load_checkpoint, load_detector
from utils.errors import UserError
from utils.scoring.scorer import Job, score
from utils.training.finetune import parameter_groups, warmup_cosine
from utils.training.recipe import make_recipe
from utils.training.state import TrainingState, WeightAverage

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def plain_run(faces, tmp_path):
    """Train without augmentation and dropout in float32, so that runs can be compared with arithmetic."""

    def run(name: str, *flags: str) -> tuple[dict, Path]:
        plain = ["--augmentation", "none", "--precision", "fp32", "--model-args", "input_size=32", "dropout=0"]
        argv = [*TINY, *plain, "--data", str(faces), "--output-dir", str(tmp_path / name), *flags]
        return train.main(argv), tmp_path / name

    return run


def weights_of(folder: Path, name: str = "last.pt") -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(folder / name)["state_dict"].values()])


def test_the_last_group_of_an_epoch_is_a_mean_of_its_batches(image_folder, tmp_path, monkeypatch):
    """Five batches in groups of four: the last step has the gradient of one batch, not a quarter of it."""
    scales = []
    original = torch.amp.GradScaler.scale
    monkeypatch.setattr(
        torch.amp.GradScaler, "scale", lambda self, loss: scales.append(loss.item()) or original(self, loss)
    )
    flags = "--model cnn_baseline --model-args input_size=32 --image-size 32 --batch-size 3 --accumulate 4 --lr 0"
    train.main(
        [*flags.split(), "--epochs", "1", "--data", str(image_folder), "--output-dir", str(tmp_path), "--threads", "1"]
    )
    *whole, last = scales
    assert len(scales) == 5 and 3 < last / np.mean(whole) < 5


def test_accumulated_batches_equal_one_large_batch(plain_run):
    weights = {}
    for name, flags in {
        "large": ["--batch-size", "16"],
        "accumulated": ["--batch-size", "8", "--accumulate", "2"],
        "small": ["--batch-size", "8"],
    }.items():
        _, folder = plain_run(name, "--epochs", "2", *flags)
        weights[name] = weights_of(folder)
        steps = load_checkpoint(folder / "last.pt")["training"]["step"]
        assert steps == 2 * math.ceil(48 / (8 if name == "small" else 16))
    # Sums in another order differ in the last bits, and AdamW divides by the size of the gradient: a weight whose
    # gradient is nearly zero may differ by a part of the rate (0.001), the weights as a whole hardly at all.
    distance = {name: (weights[name] - weights["large"]).norm() / weights["large"].norm() for name in weights}
    assert distance["accumulated"] < 1e-4 < 1e-2 < distance["small"]


def test_gradient_of_an_incomplete_group_is_not_carried_into_the_next_epoch():
    """Unreadable images leave the last batch with one image, which is skipped: the group before it still counts."""
    detector = create_model("cnn_baseline", input_size=32)
    optimizer = torch.optim.AdamW(parameter_groups(detector, 0.05), 1e-3)
    state = TrainingState(detector, None, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    batches = [Batch(torch.rand(n, 3, 32, 32), torch.arange(n).float() % 2, torch.arange(n), []) for n in (2, 2, 2, 1)]
    recipe = make_recipe(vars(train.get_args_parser().parse_args(["--accumulate", "2", "--epochs", "2"])), "")
    assert train.train_epoch(recipe, state, batches, {}).images == 6
    assert state.step == 2
    assert all(parameter.grad is None for parameter in detector.parameters())


@pytest.mark.parametrize("name", ["cnn_baseline", "foundation"])
def test_the_average_of_the_weights_is_that_of_timm_and_shares_what_never_trains(name):
    args = {"input_size": 32} if name == "cnn_baseline" else {"backbone": "test_vit", "tune": "norms_2"}
    detector = create_model(name, **args)
    found, wanted = WeightAverage(detector, 0.9), ModelEmaV3(detector, decay=0.9, use_warmup=True)
    for step in range(4):
        with torch.no_grad():
            for parameter in detector.parameters():
                parameter.add_(torch.rand_like(parameter) * parameter.requires_grad)
        detector.train()(torch.rand(2, 3, 32, 32))  # changes the averages of batch norm
        found.update(detector, step=step)
        wanted.update(detector, step=step)
    assert_same(dict(found.module.state_dict()), dict(wanted.module.state_dict()))
    fixed = {id(parameter) for parameter in detector.fixed_parameters()}
    pairs = zip(found.module.parameters(), detector.parameters(), strict=True)
    assert all((own.data_ptr() == new.data_ptr()) == (id(new) in fixed) for own, new in pairs)


def test_learning_rate_rises_and_falls_as_a_cosine(plain_run):
    assert [warmup_cosine(step, 10, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert warmup_cosine(4, 10, 4) == 1.0
    assert warmup_cosine(7, 10, 4) == pytest.approx(0.5)
    assert warmup_cosine(10, 10, 4) == pytest.approx(0.0)
    result, _ = plain_run("run", "--lr", "0.002", "--warmup", "0.5")  # 18 steps, of which 9 rise
    cosine = [0.5 * (1 + math.cos(math.pi * step / 9)) for step in (2, 8)]
    wanted = [0.002 * factor for factor in (6 / 9, *cosine)]
    assert [row["lr"] for row in result["history"]] == pytest.approx(wanted)


def test_label_smoothing_mixes_the_two_labels(plain_run, faces, monkeypatch):
    losses = {}
    for smoothing in (0, 0.2):  # with a rate of 0 the weights do not change
        monkeypatch.setattr(train, "LABEL_SMOOTHING", smoothing)
        result, folder = plain_run(str(smoothing), "--epochs", "1", "--lr", "0")
        losses[smoothing] = result["history"][0]["train_loss"]
    detector, _ = load_detector(folder / "best.pt")
    records = open_records(f"{faces}@split=train").records
    logits = score([Job(detector)], records)[0].logits
    labels = np.array([record.label for record in records])
    right, wrong = (np.logaddexp(0, np.where(labels == side, -logits, logits)).mean() for side in (1, 0))
    assert losses[0] == pytest.approx(right, rel=1e-5)
    assert losses[0.2] == pytest.approx(0.9 * right + 0.1 * wrong, rel=1e-5)


def test_best_epoch_has_the_best_auc_and_its_weights_are_kept(faces, tmp_path, monkeypatch):
    aucs = iter([0.6, 0.9, 0.7])
    seen = []

    def validate(recipe, listings, state, workers):
        seen.append({key: value.clone() for key, value in state.averaged().state_dict().items()})
        return {"valid_loss": 0.5, "valid_auc": next(aucs)}

    monkeypatch.setattr("utils.training.validation.validate", validate)
    train.main([*TINY, "--data", str(faces), "--output-dir", str(tmp_path)])
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["epoch"] == 2
    assert_same(dict(best["state_dict"]), seen[1])
    assert not torch.equal(seen[1]["head.weight"], seen[2]["head.weight"])


def test_valid_auc_is_the_mean_over_data_sets(faces, tmp_path, monkeypatch):
    other = shutil.copytree(faces, tmp_path / "other")
    (other / "valid" / "real").rename(other / "valid" / "x")
    (other / "valid" / "fake").rename(other / "valid" / "real")
    (other / "valid" / "x").rename(other / "valid" / "fake")
    argv = [*TINY, "--epochs", "1", "--data", str(faces), str(other), "--output-dir", str(tmp_path / "run")]
    assert train.main(argv)["history"][0]["valid_auc"] == pytest.approx(0.5)  # AUC and 1 - AUC


def test_sources_of_one_class_choose_the_epoch_in_pairs(faces, tmp_path):
    """Alone they have no AUC, and a mix of them had a constant 0.5."""
    for split in ("train", "valid"):
        for name in ("real", "fake"):
            shutil.copytree(faces / split / name, tmp_path / f"{name}s" / split / name)
    specs = [str(tmp_path / "reals"), str(tmp_path / "fakes")]
    flags = ["--balance", "--precision", "fp32", "--data", *specs, "--output-dir", str(tmp_path / "run")]
    result = train.main([*TINY, *flags])
    aucs = [row["valid_auc"] for row in result["history"]]
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    assert len(set(aucs)) > 1 and best["epoch"] == 1 + aucs.index(max(aucs))
    assert best["metrics"]["valid_auc"] == pytest.approx(max(aucs))
    assert [row["auc"] for row in best["metrics"]["valid"]] == [None, None]


def test_held_out_images_are_neither_trained_on_nor_repeated(tmp_path, faces):
    shutil.copytree(faces / "train", tmp_path / "flat")
    data = open_training_data([f"{tmp_path / 'flat'}@repeat=3"])
    trained, held_out = ([record.path for record in part[0].records] for part in (data.train, data.valid))
    assert not set(trained) & set(held_out)
    assert len(held_out) == len(set(held_out)) and len(trained) == 3 * len(set(trained))
    assert len(set(trained)) + len(held_out) == 48 and data.test == []


def test_compile_changes_no_weight_and_leaves_odd_batches_alone(plain_run, monkeypatch):
    sizes = []

    def compiled(model):
        return lambda x: sizes.append(len(x)) or model(x)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("shutil.which", lambda name: name)
    _, plain = plain_run("plain")
    assert not sizes
    _, fast = plain_run("fast", "--compile")
    assert set(sizes) == {load_checkpoint(fast / "last.pt")["train_args"]["batch_size"]}
    assert torch.equal(weights_of(plain), weights_of(fast))


def test_compile_with_attacks_is_refused(plain_run):
    with pytest.raises(UserError, match="expected either --compile or --adversarial, got both"):
        plain_run("run", "--compile", "--adversarial", "fgsm")


def test_compile_without_a_compiler_is_one_line(plain_run, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(UserError, match=r"expected a C\+\+ compiler for --compile, found no my-compiler; install it"):
        plain_run("run", "--compile")
