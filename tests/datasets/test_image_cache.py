"""The cache of decoded images: same pixels, built once, and never trusted when it is not whole."""

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import image_cache
from datasets.decoding.images import UnreadableImage, read_image, read_record
from datasets.image_cache import cache_listing
from datasets.listing.records import Record
from datasets.listing.spec import open_records
from datasets.loading import ImageDataset, make_loader
from datasets.transforms import Geometry, TrainTransform
from utils.files import ROOT


@pytest.fixture
def folder(make_folder) -> Path:
    """Images of several sizes, one of them broken."""
    folder = make_folder("faces", {"train/real": 6, "train/fake": 6})
    for number, side in enumerate((33, 50, 71)):
        image = np.random.default_rng(number).integers(0, 255, (side, 2 * side, 3), np.uint8)
        cv2.imwrite(str(folder / "train/real" / f"{number:03}.png"), image)
    (folder / "train/fake/004.png").write_bytes(b"nothing")
    return folder


@pytest.fixture
def listing(folder):
    return open_records(f"{folder}@split=train")


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The paths that are decoded from now on."""
    paths = []
    monkeypatch.setattr(image_cache, "read_image", lambda path: (paths.append(path), read_image(path))[1])
    return paths


def same_pixels(records: list[Record]) -> bool:
    """Whether records read from their cache as from their files."""
    for record in records:
        assert record.pixels is not None
        try:
            expected = read_image(record.path)
        except UnreadableImage as error:
            with pytest.raises(UnreadableImage, match=str(error)):
                read_record(record)
            continue
        if not np.array_equal(read_record(record), expected):
            return False
    return True


@pytest.mark.parametrize("threads", [1, 3, 40])
def test_every_image_has_its_own_size_and_pixels(threads, listing, tmp_path):
    cached = cache_listing(listing, tmp_path / "cache", threads)
    assert cached.records == listing.records
    assert same_pixels(cached.records)


def test_training_sees_the_same_batches(listing, tmp_path):
    cached = cache_listing(listing, tmp_path / "cache", 2)
    for workers in (0, 2):
        batches = []
        for records in (listing.records, pickle.loads(pickle.dumps(cached.records))):
            dataset = ImageDataset(records, TrainTransform(Geometry("crop", 32), "forensic"), memory_limit=10**8)
            batches.append(list(make_loader(dataset, 4, workers=workers)))
        for plain, fast in zip(*batches, strict=True):
            assert plain.images.equal(fast.images) and plain.unreadable == fast.unreadable


def test_an_image_that_could_not_be_read_is_tried_again(listing, tmp_path, monkeypatch):
    def refuse(path):
        raise UnreadableImage("permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "read_image", refuse)
        cached = cache_listing(listing, tmp_path / "cache", 2)
    assert same_pixels(cached.records)


def test_a_cache_is_built_once(listing, tmp_path, decoded):
    cache_listing(listing, tmp_path / "cache", 2)
    assert sorted(decoded) == sorted(record.path for record in listing.records)
    cache_listing(listing, tmp_path / "cache", 2)
    assert len(decoded) == len(listing.records)


def test_repeated_and_joined_records_share_the_cache(folder, tmp_path, decoded, make_folder):
    cached = cache_listing(open_records(f"{folder}@split=train,repeat=3"), tmp_path / "cache", 2)
    other = cache_listing(open_records(str(make_folder("more", {"real": 2, "fake": 2}))), tmp_path / "cache", 2)
    assert len(decoded) == 16 and len(list((tmp_path / "cache").glob("*/index.npz"))) == 2
    joined = [*cached.records, *other.records]
    assert len(joined) == 40 and len(decoded) == 16 and same_pixels(joined)


def test_changed_images_get_another_cache(folder, listing, tmp_path):
    cache_listing(listing, tmp_path / "cache", 2)
    image = np.full((40, 40, 3), 77, np.uint8)
    cv2.imwrite(listing.records[0].path, image)
    os.utime(listing.records[0].path, ns=(1, 1))
    cached = cache_listing(listing, tmp_path / "cache", 2)
    assert same_pixels(cached.records)


@pytest.mark.parametrize("damage", ["half-written", "of another data set", "no index", "damaged index"])
def test_a_cache_that_is_not_whole_is_built_again(damage, listing, tmp_path, make_folder, capsys):
    root = tmp_path / "cache"
    cache_listing(listing, root, 2)
    own = next(root.glob("*/index.npz")).parent
    if damage == "half-written":
        pixels = own / "pixels-0.u8"
        pixels.write_bytes(pixels.read_bytes()[:-100])
    elif damage == "of another data set":
        other = cache_listing(open_records(str(make_folder("more", {"real": 6, "fake": 6}))), root, 2)
        foreign = other.records[0].pixels.folder
        for file in foreign.iterdir():
            (own / file.name).write_bytes(file.read_bytes())
    elif damage == "no index":
        (own / "index.npz").unlink()
    else:
        (own / "index.npz").write_bytes(b"PK\x03\x04 and nothing else")
    assert same_pixels(cache_listing(listing, root, 2).records)
    assert "it is built again" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_no_cache(listing, tmp_path, monkeypatch, capsys):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_cache.os, "fsync", full)
    cached = cache_listing(listing, tmp_path / "cache", 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left on device" in error and "are not cached" in error
    assert cached is listing or cached == listing
    assert not [file for file in (tmp_path / "cache").rglob("*") if not file.name.endswith(".lock")]


def test_leftovers_of_a_killed_builder_are_removed(listing, tmp_path):
    cached = cache_listing(listing, tmp_path / "cache", 2)
    name = cached.records[0].pixels.folder.name
    (tmp_path / "cache" / name / "index.npz").unlink()
    stale = tmp_path / "cache" / f".{name}.0123.tmp"
    stale.mkdir()
    assert same_pixels(cache_listing(listing, tmp_path / "cache", 2).records) and not stale.exists()


def _build(text: str, root: str, queue) -> None:
    from datasets import image_cache as module

    count = []
    module.read_image = lambda path: (count.append(path), read_image(path))[1]
    cached = cache_listing(open_records(text), Path(root), 1)
    queue.put((len(count), same_pixels(cached.records)))


def test_concurrent_builders_build_it_once(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [
        context.Process(target=_build, args=(f"{folder}@split=train", str(tmp_path / "cache"), queue)) for _ in range(3)
    ]
    for job in jobs:
        job.start()
    results = [queue.get(timeout=800) for _ in jobs]
    for job in jobs:
        job.join()
    assert sorted(count for count, _ in results) == [0, 0, 12] and all(same for _, same in results)


def test_train_and_evaluate_give_the_same_with_a_cache(image_folder, tmp_path, monkeypatch):
    import evaluate
    import train

    flags = [
        "--model",
        "cnn_baseline",
        "--model-args",
        "input_size=32",
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--epochs",
        "1",
        "--threads",
        "1",
        "--data",
        str(image_folder),
    ]
    rows = []
    for name, more in (("plain", []), ("cached", ["--cache", str(tmp_path / "cache")])):
        done = train.main([*flags, "--output-dir", str(tmp_path / name), *more])
        common = ["--data", str(image_folder), "--no-score-cache", "--n-boot", "20", "--threads", "1"]
        found = evaluate.main(
            ["--checkpoint", str(tmp_path / name), *common, "--output-dir", str(tmp_path / "e"), *more]
        )
        rows.append((done["rows"][0]["auc"], found["rows"][0]["brier"]))
    assert rows[0] == rows[1] and len(list((tmp_path / "cache").glob("*/index.npz"))) == 3  # train, valid, test


def test_importing_the_cache_needs_no_torch():
    code = "import sys, datasets.image_cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
