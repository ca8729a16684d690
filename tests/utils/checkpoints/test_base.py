"""Base weights: what equals them is left out of checkpoints and comes back exactly, or one line says why not."""

import re
import shutil

import pytest
import timm
import torch
from safetensors.torch import save_file

import calibrate
import ensemble
import evaluate
import train
from models.registry import create_model
from studies import release
from tests.conftest import exit_and_stderr, make_faces
from tests.runs import assert_same
from utils.args import BASE_WEIGHTS_VARIABLE
from utils.checkpoints import base as base_module
from utils.checkpoints import sources
from utils.checkpoints.base import base_digest, make_base
from utils.checkpoints.file import describe_checkpoint, load_checkpoint, load_detector, save_checkpoint
from utils.checkpoints.weights import load_weights
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_curves")

BACKBONE = "test_vit"
TAGGED = "test_vit.r160_in1k"
ARGS = [f"backbone={TAGGED}", "blocks=3-5", "tune=norms_2"]


def tower(seed: int = 0, name: str = BACKBONE) -> dict[str, torch.Tensor]:
    """A state dict as timm publishes it, with a classifier."""
    torch.manual_seed(seed)
    return {key: value + 0.01 * torch.randn(value.shape) for key, value in timm.create_model(name).state_dict().items()}


@pytest.fixture(scope="module")
def base_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("base") / "tower.safetensors"
    save_file({key: value.half() for key, value in tower().items()}, file)
    return file


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch, tmp_path):
    """No base weights in the environment, in the user's cache or on the hub."""
    monkeypatch.delenv(BASE_WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("DEEPFAKE_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr(sources, "_hub_reachable", lambda *_: False)
    monkeypatch.setattr(sources, "_is_cached", lambda *_: False)


@pytest.fixture(scope="module")
def trained(base_file, tmp_path_factory):
    """A run of two epochs, which moved the norms of blocks 4 and 5."""
    folder = tmp_path_factory.mktemp("run")
    faces = make_faces(folder / "faces")
    train.main(flags(base_file, faces, folder / "run"))
    return faces, folder / "run"


def flags(base_file, faces, output, *more):
    argv = ["--model", "foundation", "--model-args", *ARGS, "--weights", str(base_file), "--data", str(faces)]
    argv += ["--image-size", "32", "--batch-size", "16", "--epochs", "2", "--lr", "0.01", "--threads", "1"]
    return [*argv, "--device", "cpu", "--output-dir", str(output), *more]


def stored(path):
    """The state dict of a file as it is stored."""
    return torch.load(path, weights_only=True)["state_dict"]


# ----------------------------------------------------------------------------------------------- what a run writes


def test_a_run_stores_what_training_changed_and_loads_to_the_last_bit(trained, base_file):
    _, run = trained
    for name in ("best.pt", "last.pt"):
        kept = set(stored(run / name))
        assert {key for key in kept if key.startswith("backbone")} == {
            f"backbone.blocks.{block}.norm{number}.{part}"
            for block in (3, 4)
            for number in (1, 2)
            for part in ("weight", "bias")
        }
        assert {"head.weight", "weights", "norm.running_mean"} <= kept
    ema = torch.load(run / "last.pt", weights_only=True)["training"]["ema"]
    assert set(ema) == kept
    detector, checkpoint = load_detector(run / "best.pt")
    whole = tower()
    for key, value in detector.backbone.state_dict().items():
        assert torch.equal(value, whole[key].half().float()) == (f"backbone.{key}" not in kept), key
    (entry,) = checkpoint["base"]
    assert (entry["source"], entry["prefix"]) == (TAGGED, "backbone.") and len(entry["sha256"]) == 64
    assert_same(detector.base, entry)


def test_an_interrupted_run_resumes_to_the_same_weights(trained, base_file, tmp_path, monkeypatch):
    faces, run = trained

    def stop(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.main(flags(base_file, faces, tmp_path / "run"), on_epoch=stop)
    train.main(["--resume", "--output-dir", str(tmp_path / "run"), "--device", "cpu", "--threads", "1"])
    for name in ("best.pt", "last.pt"):
        assert_same(load_checkpoint(tmp_path / "run" / name)["state_dict"], load_checkpoint(run / name)["state_dict"])
        assert set(stored(tmp_path / "run" / name)) == set(stored(run / name))


def test_what_is_made_of_a_run_leaves_its_base_out_too(trained, tmp_path, tiny_checkpoint):
    """Ensembles, views, a linear probe, a copy to train further."""
    tuned, _ = load_detector(trained[1] / "best.pt")
    small, _ = load_detector(tiny_checkpoint)
    both = ensemble.combine([tuned, small], [None, None])
    member = {"embedding": ensemble.describe_member(tuned), "features": "embedding"}
    probe = create_model("logistic_regression", **member)
    probe.get_submodule("embedder.detector").take_weights(tuned)
    again = create_model(tuned.name, **tuned.model_args)
    assert load_weights(again, str(trained[1] / "best.pt")).random == []
    made = {
        "members.0.": both,
        "members.0.members.0.": ensemble.combine([both, tuned], [None, None]),
        "member.": ensemble.with_views(tuned, ["flip"]),
        "embedder.detector.": probe,
        "": again,
    }
    for prefix, detector in made.items():
        file = tmp_path / "made.pt"
        save_checkpoint(file, {**describe_checkpoint(detector, {}, []), "state_dict": detector.state_dict()})
        assert not [key for key in stored(file) if ".blocks.0." in key or "patch_embed" in key], prefix
        if detector is not probe:  # which is not fitted
            inner = load_detector(file)[0].get_submodule(prefix.rstrip("."))
            for key, value in tuned.state_dict().items():
                assert key == "norm.num_batches_tracked" or torch.equal(inner.state_dict()[key], value), key
            assert inner.base["sha256"] == tuned.base["sha256"]


def test_a_calibrated_copy_leaves_its_base_out_too(trained, tmp_path):
    faces, run = trained
    argv = ["--data", str(faces), "--device", "cpu", "--threads", "1", "--output-dir", str(tmp_path / "copy")]
    calibrate.main(["--checkpoint", str(run), *argv])
    copy = tmp_path / "copy" / "best.pt"
    assert set(stored(copy)) == set(stored(run / "best.pt"))
    assert_same(load_checkpoint(copy)["state_dict"], load_checkpoint(run / "best.pt")["state_dict"])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_release_keeps_norms_and_head_in_single_precision_and_no_path(precision, trained, base_file, tmp_path):
    _, run = trained
    file = tmp_path / "released.pt"
    # The file of the base is where training found it no longer.
    argv = ["--checkpoint", str(run), "--output", str(file), "--precision", precision]
    described = release.main([*argv, "--base-weights", str(base_file.parent)])
    kept = torch.load(file, weights_only=True)
    assert described["base"] == [{key: kept["base"][0][key] for key in ("source", "sha256")}]
    assert {value.dtype for value in kept["state_dict"].values()} <= {torch.float32, torch.int64}
    assert kept["base"][0]["file"] is None and str(base_file.parent) not in str(kept)
    released, source = load_checkpoint(file)["state_dict"], load_checkpoint(run / "best.pt")["state_dict"]
    assert_same(released, source)


# ----------------------------------------------------------------------------------------------- where a base is found


def test_the_same_weights_in_any_container_and_precision_have_one_hash(base_file, tmp_path):
    weights = tower()
    detector = create_model("foundation", backbone=BACKBONE)
    seen = set()
    for number, content in enumerate(
        (
            weights,
            {key: value.half() for key, value in weights.items()},
            {key: value for key, value in weights.items() if not key.startswith("head.")},
            {"model": {f"module.{key}": value for key, value in weights.items()}},
        )
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        load_weights(detector, str(tmp_path / f"{number}.pth"))
        seen.add(detector.base["sha256"])
        assert torch.equal(detector.backbone.pos_embed, weights["pos_embed"].half().float())
    assert seen == {base_digest({k: v.half() for k, v in weights.items() if not k.startswith("head.")})[0]}
    load_weights(detector, str(base_file))
    assert {detector.base["sha256"]} == seen


@pytest.mark.parametrize("place", ["flag", "variable", "folder", "cache"])
def test_a_base_that_has_moved_is_found(place, trained, base_file, tmp_path, monkeypatch):
    checkpoint = moved(trained[1] / "best.pt", tmp_path)
    folder = tmp_path / "user-cache" / "base-weights" if place == "cache" else tmp_path / "w"
    folder.mkdir(parents=True)
    (folder / "a.pth").write_bytes(b"something else")
    file = shutil.copy(base_file, folder)
    monkeypatch.setenv(BASE_WEIGHTS_VARIABLE, {"variable": str(file), "folder": str(folder)}.get(place, ""))
    if place == "flag":
        evaluate.get_args_parser().parse_args(["--base-weights", str(file)])
    assert load_detector(checkpoint)[0].base


def moved(path, folder):
    """A copy of a checkpoint whose base is not where it was in training."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["base"][0]["file"] = "/no/such/file"
    torch.save(checkpoint, folder / "moved.pt")
    return folder / "moved.pt"


def test_a_base_on_the_hub_is_fetched_and_checked(trained, tmp_path, monkeypatch):
    checkpoint = moved(trained[1] / "best.pt", tmp_path)
    fetched = []
    monkeypatch.setattr(base_module, "hub_tensors", lambda name: fetched.append(name) or tower())
    assert load_detector(checkpoint)[0].base["file"] == "/no/such/file"
    assert fetched == [TAGGED]
    monkeypatch.setattr(base_module, "hub_tensors", lambda name: tower(seed=1))
    with pytest.raises(UserError, match="found others on timm's hub; pass --base-weights"):
        load_detector(checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    content["base"][0]["source"] = BACKBONE  # from a file: which of timm's weights for this architecture, nobody knows
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match=r"found none; pass --base-weights FILE or DIR$"):
        load_detector(checkpoint)


# ----------------------------------------------------------------------------------------------------- bad input


def test_an_absent_base_is_one_line(trained, tmp_path):
    wanted = r"expected the base weights test_vit.r160_in1k with sha256 \w{12}... for .*moved.pt, found none; pass "
    wanted += r"--base-weights FILE or DIR with timm/test_vit.r160_in1k$"
    with pytest.raises(UserError, match=wanted):
        load_detector(moved(trained[1] / "best.pt", tmp_path))


def test_the_command_that_gets_known_weights_is_named(trained, tmp_path, monkeypatch):
    checkpoint = moved(trained[1] / "best.pt", tmp_path)
    digest = torch.load(checkpoint, weights_only=True)["base"][0]["sha256"]
    monkeypatch.setitem(base_module.COMMANDS, digest, "python -m datasets.download clip")
    with pytest.raises(UserError, match=r"found none; get them with: python -m datasets\.download clip$"):
        load_detector(checkpoint)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (tower(seed=1), r"weights with sha256 \w{12}\.\.\. in "),
        (tower(name="test_vit2"), "no weights of this architecture in "),
        (tower(name="test_resnet"), "no weights of this architecture in "),
    ],
    ids=["another hash", "another transformer", "another architecture"],
)
def test_base_weights_that_are_others_are_one_line(content, found, trained, tmp_path, monkeypatch, capsys):
    faces, run = trained
    torch.save(content, tmp_path / "other.pth")
    argv = ["--checkpoint", moved(run / "best.pt", tmp_path), "--data", faces, "--output-dir", tmp_path / "out"]
    monkeypatch.setenv(BASE_WEIGHTS_VARIABLE, "")  # to be restored
    code, error = exit_and_stderr(evaluate.main, [*argv, "--base-weights", tmp_path / "other.pth"], monkeypatch, capsys)
    assert code == 2 and re.search(rf"found {found}.*other.pth; pass --base-weights FILE", error.splitlines()[-1])


def test_base_weights_that_do_not_exist_are_a_usage_error(monkeypatch, capsys):
    code, error = exit_and_stderr(evaluate.main, ["--base-weights", "no/such"], monkeypatch, capsys)
    assert code == 2 and "--base-weights: expected a file or a folder, found none at 'no/such'" in error


@pytest.mark.parametrize("name", ["test_vit2", "test_resnet"])
def test_training_from_weights_of_another_architecture_is_one_line(name):
    detector = create_model("foundation", backbone=BACKBONE)
    with pytest.raises(UserError, match=r"expected the \d+ tensors of test_vit.* in w.pth, found \d+ that fit and no"):
        make_base(detector, tower(name=name), TAGGED, "w.pth")
