"""The forgery `decoder`: what it promises like all others, its traces, its training, and the file that a run keeps."""

import pickle

import cv2
import numpy as np
import pytest
import torch

import train
from datasets.forgeries import decoder
from datasets.forgeries.decoder import DecoderForgery
from datasets.forgeries.forger import Forger, make_forger
from datasets.images import read_image, read_record
from datasets.spec import Record
from models.autoencoder import STRIDE, Autoencoder
from models.detector import count_parameters
from models.registry import list_models
from tests.conftest import write_image
from utils.errors import UserError
from utils.training import forgery_decoder, setup
from utils.training.forgery_decoder import load_decoder, random_window, train_decoder, with_decoder

SEEDS = range(6)
N_FILES = 10


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Record]:
    """Real images of 96 px, a fake, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(N_FILES):
        write_image(folder / f"{number}.png", number, False, 96, 96)
    (folder / "broken.png").write_bytes(b"no image")
    reals = [Record(str(folder / f"{number}.png"), 0, "real") for number in range(N_FILES)]
    return [*reals, Record(str(folder / "broken.png"), 0, "real"), Record(str(folder / "none.png"), 1, "fake")]


@pytest.fixture(scope="module")
def trained(records) -> DecoderForgery:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgery_decoder, "STEPS", 25)
        patch.setattr(forgery_decoder, "CROP", 64)
        return DecoderForgery(train_decoder(records, 0), STRIDE)


def photographs(records: list[Record]) -> list[np.ndarray]:
    return [read_image(record.path) for record in records[:N_FILES]]


def forge(forgery: DecoderForgery, image: np.ndarray, seed: int = 0) -> np.ndarray:
    return forgery(image, np.random.default_rng(seed))[0]


# ------------------------------------------------------------------------------------------------ network


@pytest.mark.parametrize("size", [(32, 32), (33, 57), (300, 200), (34, 35)])
def test_the_autoencoder_takes_every_size_and_is_small(size):
    network = Autoencoder()
    assert network(torch.rand(2, 3, *size)).shape == (2, 3, *size)
    assert count_parameters(network) < 60_000
    assert "autoencoder" not in list_models()


# ------------------------------------------------------------------------------------------------ forgery


@pytest.mark.parametrize("size", [(32, 32), (33, 57), (300, 200)])
def test_the_forgery_is_an_image_that_is_new_everywhere(trained, size, records):
    image = cv2.resize(photographs(records)[0], size[::-1])
    image.flags.writeable = False  # as those of a mapped cache are
    before = torch.get_rng_state()
    for seed in SEEDS:
        forged, mask = trained(image, np.random.default_rng(seed))
        assert forged.shape == image.shape
        assert forged.dtype == np.uint8
        assert mask.shape == size
        assert mask.dtype == np.float32
        assert mask.min() == mask.max() == 1
        assert np.abs(forged.astype(int) - image).mean() > 1
        assert np.array_equal(forge(trained, image, seed), forged)
    assert len({forge(trained, image, seed).tobytes() for seed in SEEDS}) == len(SEEDS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_constant_images_survive(trained, level):
    assert forge(trained, np.full((64, 48, 3), level, np.uint8)).shape == (64, 48, 3)


def waves(images: list[np.ndarray]) -> np.ndarray:
    """Grey levels, averaged over images, of the waves of 2 and 4 px along and across: the strides of the decoder."""
    found = []
    for image in images:
        spectrum = np.abs(np.fft.fft2(image.astype(float).mean(axis=2))) / image[..., 0].size
        rows, columns = ([0, side // 4, side // 2] for side in spectrum.shape)
        found.append(spectrum[np.ix_(rows, columns)].ravel()[1:])
    return np.mean(found, axis=0)


def test_forged_images_have_peaks_at_the_strides_of_the_decoder(trained, records):
    images = photographs(records)
    forged = [forge(trained, image, seed) for seed, image in enumerate(images)]
    assert waves(forged).max() > 5 * waves(images).max()
    assert np.mean(waves(forged) > 2 * waves(images)) > 0.7


def test_putting_detail_back_brings_the_picture_back_and_leaves_the_traces(trained, records, monkeypatch):
    images = photographs(records)
    errors, traces = [], []
    for share in (0.0, 0.95):
        monkeypatch.setattr(decoder, "KEPT_DETAIL", (share, share))
        forged = [forge(trained, image, seed) for seed, image in enumerate(images)]
        differences = [new.astype(np.float32) - old for new, old in zip(forged, images, strict=True)]
        errors.append(np.mean([np.abs(cv2.blur(part, (4, 4))).mean() for part in differences]))  # without the waves
        traces.append(waves(forged).max())
    assert errors[1] < 0.5 * errors[0]
    assert traces[1] > 0.5 * traces[0]


def test_the_forger_takes_the_decoder_and_survives_pickling(trained, records):
    forger = Forger(("blend", "decoder"), 1.0, trained)
    again = pickle.loads(pickle.dumps(forger))
    image = photographs(records)[1]
    for seed in SEEDS:
        forged, label = forger(image, 0, seed)
        assert label == 1
        assert np.array_equal(again(image, 0, seed)[0], forged)


# ----------------------------------------------------------------------------------------------- training


def test_training_reduces_the_loss(trained, records):
    def error(forgery: DecoderForgery) -> float:
        images = [image.astype(np.float32) for image in photographs(records)]
        return float(np.mean([np.abs(forgery.rebuild(image) - image).mean() for image in images]))

    assert error(trained) < 0.6 * error(DecoderForgery(Autoencoder().eval(), STRIDE))


def test_training_repeats_with_its_seed_and_touches_no_other_draws(records, monkeypatch):
    monkeypatch.setattr(forgery_decoder, "STEPS", 2)
    before = torch.get_rng_state()
    first, again, other = (train_decoder(records, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["decoder.0.weight"], other["decoder.0.weight"])


def test_no_more_photographs_are_read_than_needed(records, monkeypatch):
    read = []
    monkeypatch.setattr(forgery_decoder, "POOL", 4)
    monkeypatch.setattr(forgery_decoder, "read_record", lambda record: (read.append(record), read_record(record))[1])
    assert len(forgery_decoder.read_photographs(records[:N_FILES], np.random.default_rng(0))) == len(read) == 4
    with pytest.raises(UserError, match="expected real images to train the forgery decoder on"):
        forgery_decoder.read_photographs(records[N_FILES:], np.random.default_rng(0))


@pytest.mark.parametrize("size", [(20, 500), (128, 128), (300, 200)])
def test_crops_have_their_size(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert random_window(image, 128, np.random.default_rng(0)).shape == (128, 128, 3)
    assert random_window(image, 256, np.random.default_rng(0), pad=False).shape == (
        min(size[0], 256),
        min(size[1], 256),
        3,
    )


def test_a_forger_without_it_is_left_as_it_is(tmp_path):
    forger = make_forger("blend,smooth", 0.5)
    assert with_decoder(forger, [], tmp_path, 0, False) is forger
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- train.py


def test_a_run_keeps_its_decoder_and_resumes_with_it(image_folder, tmp_path, monkeypatch):
    forgers = []

    def spy(*args, **options):
        forgers.append(with_decoder(*args, **options))
        return forgers[-1]

    monkeypatch.setattr(setup, "with_decoder", spy)
    monkeypatch.setattr(forgery_decoder, "STEPS", 5)
    flags = ["--data", str(image_folder), "--model-args", "width=4", "--image-size", "32", "--batch-size", "8"]
    flags += ["--workers", "0", "--threads", "1", "--calibration", "none", "--epochs", "2"]
    run = ("--output-dir", str(tmp_path / "run"))

    def stop(_history: list[dict]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.main([*flags, "--forgeries", "decoder,blend", *run], on_epoch=stop)
    monkeypatch.setattr(forgery_decoder, "train_decoder", None)  # from here on it is read
    assert len(train.main(["--resume", *run])["history"]) == 2
    image = read_image(next(image_folder.glob("train/real/*")))
    assert np.array_equal(*(forge(forger.decoder, image) for forger in forgers))
    (tmp_path / "run" / "decoder.pt").unlink()
    with pytest.raises(UserError, match=r"decoder\.pt"):
        train.main(["--resume", *run])


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "other weights"])
def test_a_wrong_file_is_one_line(kind, tmp_path):
    file = tmp_path / "decoder.pt"
    if kind == "other weights":
        torch.save({"weight": torch.zeros(3)}, file)
    elif kind != "missing":
        file.write_bytes(b"text" if kind == "text" else b"")
    with pytest.raises(UserError, match=r"expected .*decoder\.pt") as caught:
        load_decoder(file)
    assert "\n" not in str(caught.value)


def test_a_saved_decoder_reads_back(records, tmp_path, monkeypatch):
    monkeypatch.setattr(forgery_decoder, "STEPS", 2)
    forger = make_forger("decoder", 0.5)
    first = with_decoder(forger, records, tmp_path, 0, False).decoder
    resumed = with_decoder(forger, [], tmp_path, 0, True).decoder
    image = photographs(records)[2]
    assert np.array_equal(forge(first, image), forge(resumed, image))
