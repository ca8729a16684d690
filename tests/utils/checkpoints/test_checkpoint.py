"""The checkpoint: what is saved comes back bit-equal, and no broken or hostile file does harm."""

import argparse
import errno
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.transforms import Geometry
from models.registry import create_model
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint, strip_prefixes
from utils.errors import UserError
from utils.files import plain_values


def parts(model: str = "cnn", model_args: dict | None = None) -> dict:
    """Everything that a checkpoint must hold, for a freshly built model."""
    model_args = {"width": 4} if model_args is None else model_args
    return {
        "model": model,
        "model_args": model_args,
        "state_dict": create_model(model, **model_args).state_dict(),
        "geometry": Geometry("crop", 32).to_dict(),
        "thresholds": None,
        "calibration": None,
    }


def write_raw(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def refuses(path: Path, message: str) -> None:
    """Both loaders refuse, with one line that names the file."""
    for load in (load_checkpoint, load_detector):
        with pytest.raises(UserError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize(
    ("model", "model_args"),
    [
        ("cnn", {"width": 4}),
        ("cnn_baseline", {"input_size": 32, "dropout": 0.1}),
        ("test_resnet", {"head": "dense512"}),
        ("test_vit", {}),
        ("mobilenetv3_small_050", {}),
    ],
)
def test_round_trip_is_bit_equal(model, model_args, tmp_path):
    geometry = Geometry("crop", 32, resize_to=48)
    thresholds = {"balanced": 0.1 + 0.2, "fpr1": 0.9}
    calibration = {"method": "temperature", "temperature": 1.7}
    detector = create_model(model, **model_args)
    with torch.no_grad():
        detector(torch.rand(4, 3, 32, 32))  # in training mode: the running statistics move
    saved = {**parts(model, model_args), "state_dict": detector.state_dict(), "geometry": geometry.to_dict()}
    save_checkpoint(tmp_path / "best.pt", {**saved, "thresholds": thresholds, "calibration": calibration, "seed": 3})
    loaded, checkpoint = load_detector(tmp_path / "best.pt")
    state = loaded.state_dict()
    assert list(state) == list(detector.state_dict())
    assert all(torch.equal(state[key], value) for key, value in detector.state_dict().items())
    assert loaded.geometry == geometry
    assert loaded.operating_point.calibration == calibration
    assert checkpoint["thresholds"] == thresholds
    assert checkpoint["seed"] == 3
    assert not loaded.training
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(images), detector.eval()(images))


def test_a_run_folder_stands_for_its_best_checkpoint(tiny_checkpoint):
    assert load_checkpoint(tiny_checkpoint.parent)["model"] == "cnn"


def test_a_run_folder_without_best_is_refused(tmp_path):
    refuses(tmp_path, "expected --checkpoint to be a checkpoint or a run folder with best.pt, found none at")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_dropped(prefix, tmp_path):
    content = parts()
    content["state_dict"] = {prefix + key: value for key, value in content["state_dict"].items()}
    save_checkpoint(tmp_path / "best.pt", content)
    detector, _ = load_detector(tmp_path / "best.pt")
    for key, value in detector.state_dict().items():
        assert torch.equal(content["state_dict"][prefix + key], value)


def test_a_prefix_that_only_some_keys_have_is_part_of_the_names():
    assert set(strip_prefixes({"module.a": 1, "b": 2})) == {"module.a", "b"}
    assert strip_prefixes({}) == {}


# ------------------------------------------------------------------------------------------------ bad files


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(share, tiny_checkpoint):
    data = tiny_checkpoint.read_bytes()
    tiny_checkpoint.write_bytes(data[: int(share * len(data))])
    refuses(tiny_checkpoint, "an empty file" if share == 0 else "a truncated file or one of another kind")


def test_a_file_that_lost_its_middle_is_refused(tiny_checkpoint):
    data = tiny_checkpoint.read_bytes()
    tiny_checkpoint.write_bytes(data[: len(data) // 4] + data[len(data) // 2 :])
    refuses(tiny_checkpoint, "expected a checkpoint written by train.py")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mknod, (self.target,)


def test_no_code_in_a_checkpoint_runs(tmp_path):
    target = tmp_path / "exploded"
    refuses(write_raw(tmp_path / "zipped.pt", {**parts(), "format_version": 1, "x": Bomb(target)}), "could run code")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(target)))
    refuses(tmp_path / "plain.pt", "a truncated file or one of another kind")
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))  # the bomb is real
    assert target.exists()


def test_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    refuses(tmp_path / "archive.pt", "expected a checkpoint written by train.py")


def test_bare_weights_are_for_the_weights_flag(tmp_path):
    refuses(write_raw(tmp_path / "bare.pt", parts()["state_dict"]), "found bare weights; .*--weights")
    refuses(write_raw(tmp_path / "list.pt", [1, 2]), "found bare weights")


@pytest.mark.parametrize("version", [0, 2, "1", None, torch.zeros(3)])
def test_other_format_versions_are_refused(version, tmp_path):
    path = write_raw(tmp_path / "best.pt", {**parts(), "format_version": version})
    refuses(path, r"expected checkpoint format 1 in .*, found .*; use the version")


@pytest.mark.parametrize("key", ["model", "model_args", "state_dict", "geometry", "thresholds", "calibration"])
def test_missing_keys_are_named(key, tmp_path):
    content = {"format_version": 1, **parts()}
    del content[key]
    refuses(write_raw(tmp_path / "best.pt", content), f"found no {key}$")


@pytest.mark.parametrize("key", ["model_args", "state_dict", "geometry", "thresholds", "fitted_on", "model", "base"])
def test_parts_of_the_wrong_kind_are_named(key, tmp_path):
    refuses(write_raw(tmp_path / "best.pt", {"format_version": 1, **parts(), key: 5}), rf"a \w+ as {key} of")


def cannot_rebuild(path: Path, content: dict, message: str) -> None:
    save_checkpoint(path, content)
    with pytest.raises(UserError, match=message) as caught:
        load_detector(path)
    assert str(path) in str(caught.value)


def test_a_model_that_is_no_longer_registered(tmp_path):
    cannot_rebuild(tmp_path / "a.pt", {**parts(), "model": "cnn_2019"}, "cannot rebuild .* got 'cnn_2019'")


def test_model_args_and_geometry_of_another_time(tmp_path):
    cannot_rebuild(tmp_path / "a.pt", {**parts(), "model_args": {"depth": 3}}, "cannot rebuild .*got depth")
    cannot_rebuild(tmp_path / "b.pt", {**parts(), "geometry": {"mode": "warp"}}, "cannot rebuild .*'warp'")
    cannot_rebuild(tmp_path / "c.pt", {**parts(), "geometry": {"side": 32}}, "cannot rebuild .*side")


def test_weights_that_do_not_fit(tmp_path):
    cannot_rebuild(tmp_path / "a.pt", {**parts(), "model_args": {"width": 8}}, "weights of cnn in .*size mismatch")
    shorter = parts()
    shorter["state_dict"].pop("head.bias")
    cannot_rebuild(tmp_path / "b.pt", shorter, "Missing key.*head.bias")


# ---------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize(
    "value",
    [argparse.Namespace(a=1), Path("a"), np.float64(0.5), np.zeros(2), Bomb(Path("a")), lambda: 0],
    ids=lambda value: type(value).__name__,
)
def test_what_the_safe_loader_would_refuse_is_refused_when_saving(value, tmp_path):
    path = tmp_path / "best.pt"
    path.write_bytes(b"old")
    with pytest.raises(TypeError, match="plain values only"):
        save_checkpoint(path, {**parts(), "train_args": {"x": value}})
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["best.pt"]


def test_plain_values_make_numbers_and_paths_fit_for_a_checkpoint(tmp_path):
    metrics = plain_values({"auc": np.float64(0.1 + 0.2), "n": np.int64(3), "path": Path("a"), "ci": (0.1, 0.2)})
    save_checkpoint(tmp_path / "best.pt", {**parts(), "metrics": metrics})
    assert load_checkpoint(tmp_path / "best.pt")["metrics"] == {"auc": 0.1 + 0.2, "n": 3, "path": "a", "ci": [0.1, 0.2]}


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file(call, tiny_checkpoint, monkeypatch):
    old = tiny_checkpoint.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(call, full_disk)
        with pytest.raises(UserError, match="No space left on device"):
            save_checkpoint(tiny_checkpoint, parts())
    assert tiny_checkpoint.read_bytes() == old
    assert os.listdir(tiny_checkpoint.parent) == ["best.pt"]


def test_a_write_that_stops_half_way_leaves_the_old_file(tiny_checkpoint):
    """Nothing is simulated here: the system refuses to let the new file grow as long as it must."""
    resource = pytest.importorskip("resource")
    old = tiny_checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            save_checkpoint(tiny_checkpoint, parts())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tiny_checkpoint.read_bytes() == old
    assert os.listdir(tiny_checkpoint.parent) == ["best.pt"]


def test_ctrl_c_while_saving_leaves_the_old_file(tiny_checkpoint, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    old = tiny_checkpoint.read_bytes()
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tiny_checkpoint, parts())
    assert tiny_checkpoint.read_bytes() == old
    assert os.listdir(tiny_checkpoint.parent) == ["best.pt"]


def test_a_place_that_is_no_folder_is_reported(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="expected to write"):
        save_checkpoint(tmp_path / "file" / "best.pt", parts())


def test_equal_checkpoints_are_equal_files(tmp_path):
    content = parts()
    save_checkpoint(tmp_path / "a.pt", content)
    save_checkpoint(tmp_path / "b.pt", content)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert isinstance(torch.load(io.BytesIO((tmp_path / "a.pt").read_bytes()), weights_only=True), dict)
