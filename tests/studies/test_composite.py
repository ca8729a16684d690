"""Composites as a data set: pairs, resuming, bad input."""

import numpy as np
import pytest

from datasets.decoding.images import read_image
from datasets.listing.splits import open_training_data
from studies import composite
from tests.conftest import exit_and_stderr, write_image
from utils.errors import UserError

FACE = np.array([[0.35, 0.4], [0.65, 0.4], [0.5, 0.55], [0.38, 0.72], [0.62, 0.72]])


class FixedLandmarks:
    """Stands for YuNet: the face is in the middle of every picture but the dark ones."""

    def __init__(self, file):
        self.file = file

    def __call__(self, image):
        return FACE * image.shape[1::-1] if image.mean() > 5 else None


@pytest.fixture
def source(tmp_path):
    for split, count in (("train", 4), ("valid", 2)):
        for index in range(count):
            write_image(tmp_path / "faces" / split / "real" / f"{index}.png", index, False, 90, 80)
            write_image(tmp_path / "faces" / split / "fake" / f"{index}.png", index, True, 90, 80)
    return tmp_path / "faces"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a function that makes composites of some specs in tmp_path/out."""
    monkeypatch.setattr(composite, "LandmarkFinder", FixedLandmarks)
    (tmp_path / "yunet.onnx").write_bytes(b"stands for YuNet")

    def call(*specs, **flags):
        words = [word for key, value in flags.items() for word in (f"--{key}", value)]
        flags = ["--face-detector", str(tmp_path / "yunet.onnx"), "--output-dir", str(tmp_path / "out"), *words]
        return composite.main(["--data", *map(str, specs), *flags])

    return call


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.jpg"))}


def test_pairs_differ_in_a_part_of_the_face_and_in_nothing_else(source, run, tmp_path, capsys):
    result = run(source)
    folder = tmp_path / "out" / "faces-composites"
    assert result == {"sets": {str(folder): {"train": 4, "valid": 2}}, "left_out": [], "exit_code": 0}
    assert capsys.readouterr().out == f"{folder}: 4 train, 2 valid pairs\n"
    for real in sorted(folder.glob("*/real/*")):
        fake = real.parent.parent / "fake" / real.name
        before, after = read_image(str(real)).astype(int), read_image(str(fake)).astype(int)
        assert before.shape == after.shape == (90, 80, 3)
        assert np.abs(before - after).max() > 12
    data = open_training_data([str(source), str(folder)])
    assert [listing.name for listing in data.train] == ["faces", "faces-composites"] and data.notes == []


def test_an_interrupted_run_goes_on_with_the_same_pictures(source, run, tmp_path):
    run(source)
    folder = tmp_path / "out"
    before = contents(folder)
    for label, place in (("real", 0), ("fake", 3)):
        sorted((folder / "faces-composites/train" / label).iterdir())[place].unlink()
    run(source)
    assert contents(folder) == before


def test_the_seed_decides(source, run, tmp_path):
    run(source)
    fakes = contents(tmp_path / "out")
    run(source, **{"seed": "1", "output-dir": str(tmp_path / "other")})
    others = contents(tmp_path / "other")
    assert fakes.keys() == others.keys()
    assert {name for name in fakes if fakes[name] == others[name]} == {name for name in fakes if "/real/" in name}


def test_the_second_variant_is_what_the_next_seed_makes(source, run, tmp_path):
    folder = str(tmp_path / "out/faces-composites")
    assert run(source, variants="2")["sets"] == {folder: {"train": 8, "valid": 4}}
    both = contents(tmp_path / "out")
    run(source, **{"output-dir": str(tmp_path / "first")})
    run(source, **{"seed": "1", "output-dir": str(tmp_path / "second")})
    second = contents(tmp_path / "second").items()
    second = {name.replace(".jpg", "-1.jpg") if "/fake/" in name else name: data for name, data in second}
    assert both == contents(tmp_path / "first") | second


def test_pictures_without_a_face_or_pixels_are_listed(source, run, capsys):
    import cv2

    cv2.imwrite(str(source / "train/real/dark.png"), np.zeros((90, 80, 3), np.uint8))
    write_image(source / "train/real/small.png", 0, False, 40, 40)  # 12 px between the eyes
    (source / "valid/real/broken.png").write_bytes(b"no image")
    result = run(source)
    assert result["exit_code"] == 1 and list(result["sets"].values()) == [{"train": 4, "valid": 2}]
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"left out: {source}/train/real/dark.png: no face with 22 px between its eyes",
        f"left out: {source}/train/real/small.png: no face with 22 px between its eyes",
        f"left out: {source}/valid/real/broken.png: not an image",
    ]


def test_a_folder_of_another_plan_is_refused(source, run):
    run(source)
    with pytest.raises(UserError, match="fakes made from the same images with the same flags, got"):
        run(source, seed="1")


def test_a_negative_seed_is_refused(source, tmp_path, monkeypatch, capsys):
    code, stderr = exit_and_stderr(composite.main, ["--data", source, "--seed", "-1"], monkeypatch, capsys)
    assert code == 2 and "expected an integer in 0..2147483647, got -1" in stderr


def test_without_yunet_there_are_no_landmarks(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DEEPFAKE_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("DEEPFAKE_FACE_DETECTOR", raising=False)
    code, stderr = exit_and_stderr(composite.main, ["--data", source], monkeypatch, capsys)
    assert code == 2 and "expected a YuNet file, which finds the landmarks of faces, found none" in stderr
    (tmp_path / "odd.onnx").write_bytes(b"odd")
    argv = ["--data", source, "--face-detector", tmp_path / "odd.onnx"]
    code, stderr = exit_and_stderr(composite.main, argv, monkeypatch, capsys)
    assert code == 2 and "expected --face-detector to be a YuNet ONNX file" in stderr
