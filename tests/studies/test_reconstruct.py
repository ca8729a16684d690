"""Reconstructions of real images: pairs that differ in the autoencoder alone, resuming, bad input."""

import re
import shutil

import cv2
import numpy as np
import pytest
import torch

from datasets.decoding.images import read_image
from datasets.listing.spec import open_records
from datasets.listing.splits import open_training_data
from models.tiny_autoencoder import TinyAutoencoder, make_decoder, make_encoder
from studies import reconstruct
from tests.conftest import exit_and_stderr, write_image
from utils.checkpoints.weights import read_weights_file
from utils.errors import UserError


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The file of a random encoder, with its decoder next to it."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for part, layers in (("encoder", make_encoder(4, 2, (13,))), ("decoder", make_decoder(4, 2, (3,)))):
        torch.save({key: value.half() for key, value in layers.state_dict().items()}, folder / f"tiny_{part}.pth")
    return folder / "tiny_encoder.pth"


@pytest.fixture
def run(autoencoder, tmp_path):
    """Return a function that reconstructs the data sets of some specs into tmp_path/out, in float32."""

    def call(*specs: object, **flags: str) -> dict:
        flags = {"autoencoder": str(autoencoder), "output-dir": str(tmp_path / "out"), "precision": "fp32", **flags}
        words = [word for key, value in flags.items() for word in (f"--{key}", value)]
        return reconstruct.main(["--data", *map(str, specs), *words, "--threads", "1"])

    return call


@pytest.fixture
def passed(monkeypatch) -> list[int]:
    """The number of images in each batch that goes through an autoencoder."""
    sizes: list[int] = []
    original = TinyAutoencoder.forward

    def counted(self, images):
        sizes.append(len(images))
        return original(self, images)

    monkeypatch.setattr(TinyAutoencoder, "forward", counted)
    return sizes


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def as_jpeg(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1], 1)[:, :, ::-1]


def test_both_classes_hold_the_same_images_but_for_the_autoencoder(image_folder, run, autoencoder, tmp_path, capsys):
    for split in ("train", "valid"):  # sides that the stride does not divide
        write_image(image_folder / split / "real" / "odd.png", 7, False, 37, 51)
    result = run(image_folder)
    folder = tmp_path / "out" / "faces-tiny"
    assert result == {"sets": {str(folder): {"train": 9, "valid": 5}}, "unreadable": [], "exit_code": 0}
    assert capsys.readouterr().out == f"{folder}: 9 train, 5 valid pairs\n"
    files = [autoencoder, autoencoder.with_name("tiny_decoder.pth")]
    network = TinyAutoencoder(*map(read_weights_file, files))
    for split, count in (("train", 9), ("valid", 5)):
        assert names(folder / split / "real") == names(folder / split / "fake")
        assert len(names(folder / split / "real")) == count
        for file in (folder / split / "real").iterdir():
            original = read_image(image_folder / split / "real" / f"{file.stem.split('-')[1]}.png")
            assert np.array_equal(read_image(file), as_jpeg(original))
            padded = np.pad(original, [(0, -side % 8) for side in original.shape[:2]] + [(0, 0)], "reflect")
            with torch.inference_mode():
                rebuilt = network(torch.from_numpy(padded).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).numpy()
            wanted = as_jpeg((255 * rebuilt).round().astype(np.uint8))[: len(original), : original.shape[1]]
            fake = read_image(folder / split / "fake" / file.name)
            assert fake.shape == original.shape
            assert np.abs(fake.astype(int) - wanted).mean() < 1.5  # cropped before JPEG, and not after it as here


def test_the_result_is_a_data_set_to_train_on(image_folder, run, tmp_path):
    run(image_folder)
    data = open_training_data([str(image_folder), str(tmp_path / "out" / "faces-tiny")])
    assert [listing.name for listing in data.train] == ["faces", "faces-tiny"]
    assert {record.generator for record in data.train[1].records} == {"real", "faces-tiny"}
    assert data.notes == []


def test_one_class_is_enough_and_several_sources_stay_apart(make_folder, run, tmp_path):
    one = make_folder("one", {"train/real": 3, "valid/real": 1})
    two = make_folder("two", {"train/real": 2, "valid/fake": 2})
    sets = run(one, two)["sets"]
    out = tmp_path / "out"
    assert sets == {str(out / "one-tiny"): {"train": 3, "valid": 1}, str(out / "two-tiny"): {"train": 2, "valid": 0}}


def test_what_train_holds_out_is_in_the_validation_split(make_folder, run, tmp_path):
    source = make_folder("faces", {"train/real": 12, "train/fake": 12})
    run(source)
    data = open_training_data([str(source)])
    for listing in (*data.train, *data.valid):
        stems = {record.path.rsplit("/")[-1][:-4] for record in listing.records if record.label == 0}
        assert {
            name.split("-")[1][:-4] for name in names(tmp_path / "out/faces-tiny" / listing.split / "real")
        } == stems


def test_larger_pictures_are_reduced(make_folder, run, tmp_path):
    source = make_folder("faces", {"valid/fake": 1})
    write_image(source / "train/real/wide.png", 0, False, 90, 200)
    run(source, **{"longer-side": "64"})
    shapes = {read_image(r.path).shape for r in open_records(str(tmp_path / "out/faces-tiny"), "train").records}
    assert shapes == {(29, 64, 3)}


def test_pictures_of_one_size_share_a_batch(make_folder, run, passed):
    source = make_folder("faces", {"train/real": 9, "valid/fake": 1})
    write_image(source / "train/real/004-odd.png", 0, False, 50, 50)
    run(source)
    assert passed == [8, 1, 1]


# ---------------------------------------------------------------------------------------------- resume, bad input


def test_an_interrupted_run_goes_on(image_folder, run, tmp_path, passed):
    first = run(image_folder)
    folder = tmp_path / "out" / "faces-tiny"
    before = {file: file.read_bytes() for file in folder.rglob("*.jpg")}
    assert sum(passed) == 12
    for label, place in (("real", 0), ("fake", 3)):  # one pair each
        sorted((folder / "train" / label).iterdir())[place].unlink()
    passed.clear()
    assert run(image_folder) == first
    assert sum(passed) == 2
    assert {file: file.read_bytes() for file in folder.rglob("*.jpg")} == before


def test_an_error_leaves_no_half_written_file(image_folder, run, tmp_path, monkeypatch):
    def broken(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", broken)
    with pytest.raises(UserError, match="No space left"):
        run(image_folder)
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == []


def test_unreadable_images_are_listed_and_skipped(image_folder, run, tmp_path, capsys):
    (image_folder / "train/real/000.png").write_bytes(b"no image")
    write_image(image_folder / "train/real/small.png", 0, False, 9, 9)
    result = run(image_folder)
    folder = tmp_path / "out" / "faces-tiny"
    assert result["exit_code"] == 1 and result["sets"] == {str(folder): {"train": 7, "valid": 4}}
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sorted(lines) == [
        f"unreadable: {image_folder}/train/real/000.png: not an image",
        f"unreadable: {image_folder}/train/real/small.png: too small for a verdict: 9 x 9 px, each side needs 16",
    ]


@pytest.mark.parametrize("change", ["longer-side", "autoencoder", "images"])
def test_a_folder_of_another_plan_is_refused(change, image_folder, run, autoencoder, tmp_path):
    run(image_folder)
    flags = {"longer-side": "64"} if change == "longer-side" else {}
    if change == "autoencoder":
        for part in ("encoder", "decoder"):
            torch.save(make_encoder(4, 2).state_dict(), tmp_path / f"tiny_{part}.pth")
        flags = {"autoencoder": str(tmp_path / "tiny_encoder.pth")}
    if change == "images":
        write_image(image_folder / "train/real/new.png", 0, False)
    with pytest.raises(UserError, match="fakes made from the same images with the same flags, got"):
        run(image_folder, **flags)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no weights", "expected a safetensors file or a state dict"), ({"a": torch.ones(2)}, "another architecture: a")],
)
def test_a_file_of_something_else_is_one_line(content, message, image_folder, autoencoder, tmp_path, run):
    file = tmp_path / "odd_encoder.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    shutil.copy(autoencoder.with_name("tiny_decoder.pth"), tmp_path / "odd_decoder.pth")
    with pytest.raises(UserError, match=message) as caught:
        run(image_folder, autoencoder=str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data {faces} --autoencoder {tmp}", "such as taef2_encoder.pth, got .*, which is no file"),
        ("--data {faces} --autoencoder {tmp}/decoder.pth", "to be the file of an encoder"),
        ("--data {faces} --autoencoder {tmp}/my_encoder.pth", "next to it, found no my_decoder.pth; put it there"),
        ("--data {faces}@split=train --autoencoder {tiny}", "expected --data without split="),
        ("--data {faces} {faces} --autoencoder {tiny}", "two named 'faces'"),
        ("--data {fakes} --autoencoder {tiny}", "expected real images in .*, found none"),
        ("--data {tests} --autoencoder {tiny}", "expected a train split in .*, found test only"),
        ("--data {tmp}/none --autoencoder {tiny}", "no such folder"),
        ("--data {faces} --autoencoder {tiny} --longer-side 9", "expected an integer in 64..4096, got 9"),
    ],
)
def test_mistakes_are_one_line(flags, message, make_folder, autoencoder, tmp_path, monkeypatch, capsys):
    for name in ("my_encoder.pth", "decoder.pth"):
        shutil.copy(autoencoder, tmp_path / name)
    known = {
        "faces": make_folder("faces", {"train/real": 2, "valid/real": 2}),
        "fakes": make_folder("fakes", {"train/fake": 2, "valid/real": 2}),
        "tests": make_folder("tests", {"test/real": 2}),
    }
    argv = f"{flags} --output-dir {{tmp}}/out".format(tmp=tmp_path, tiny=autoencoder, **known).split()
    monkeypatch.setattr(reconstruct, "load_network", lambda *_args: pytest.fail("weights were loaded first"))
    code, stderr = exit_and_stderr(reconstruct.main, argv, monkeypatch, capsys)
    assert code == 2 and stderr.count("\n") == 1
    assert re.search(message, stderr), stderr
