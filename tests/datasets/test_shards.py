"""Tar shards: packing, reading by name, damage, and that nothing is lost or repeated over processes and workers."""

import io
import json
import logging
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import pack
from datasets.images import UnreadableImage, read_image
from datasets.loading import EpochSampler, ImageDataset, make_loader
from datasets.spec import open_records
from datasets.storage import shard_index
from datasets.transforms import EvalTransform, Geometry
from utils.errors import UserError

COUNTS = {"train/real": 7, "train/fake/gan": 8, "test/real": 3, "test/fake/gan": 3}


@pytest.fixture
def folder(make_folder) -> Path:
    return make_folder("faces", COUNTS)


@pytest.fixture
def shards(folder, tmp_path) -> Path:
    pack.main([str(folder), "--output-dir", str(tmp_path / "shards"), "--images-per-shard", "4"])
    return tmp_path / "shards"


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as shard:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))


def png(seed: int = 0) -> bytes:
    return cv2.imencode(".png", np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8))[1].tobytes()


def contents(listing) -> list[tuple]:
    return sorted((read_image(r.path).tobytes(), r.label, r.generator) for r in listing.records)


@pytest.mark.parametrize("with_index", [True, False])
def test_packed_images_come_back_with_class_generator_and_split(with_index, folder, shards):
    if not with_index:
        for file in shards.glob("*.index.json"):
            file.unlink()
    assert len(list(shards.glob("train-*.tar"))) == 4 and len(list(shards.glob("test-*.tar"))) == 2
    for split in ("train", "test"):
        packed = open_records(f"wds:{shards}", split)
        assert packed.splits == ("train", "test")
        assert contents(packed) == contents(open_records(str(folder), split))
    only = open_records(f"wds:{shards}/train-*.tar")
    assert only.split == "all" or only.splits == ("train",)
    assert len(only.records) == 15


def test_packing_goes_on_where_it_was_and_gives_the_same_bytes(folder, shards, tmp_path):
    first = {file.name: file.read_bytes() for file in shards.iterdir()}
    (shards / "train-00001.tar").unlink()
    (shards / "train-00002.index.json").unlink()
    kept = (shards / "train-00000.tar").stat().st_mtime_ns
    result = pack.main([str(folder), "--output-dir", str(shards), "--images-per-shard", "4"])
    assert {file.name: file.read_bytes() for file in shards.iterdir()} == first
    assert (shards / "train-00000.tar").stat().st_mtime_ns == kept and result["n_images"] == 21


def test_every_image_once_over_processes_and_workers(shards):
    listing = open_records(f"wds:{shards}", "train")
    dataset = ImageDataset(listing.records, EvalTransform(Geometry("crop", 32)))
    seen = []
    for rank in range(3):
        for batch in make_loader(dataset, 2, sampler=EpochSampler(15, 0, rank, 3), workers=2):
            seen += batch.indices.tolist()
    assert sorted(seen) == list(range(15))


def test_images_before_the_damage_are_used_and_the_rest_counted(folder, shards):
    whole = open_records(f"wds:{shards}", "train")
    file = shards / "train-00000.tar"
    members = list(shard_index(str(file)).values())
    with open(file, "r+b") as stream:
        stream.truncate(members[2].offset + 10)
    listing = open_records(f"wds:{shards}", "train")
    assert len(listing.records) == len(whole.records) and listing.fingerprint != whole.fingerprint
    batches = list(make_loader(ImageDataset(listing.records, EvalTransform(Geometry("crop", 32))), 4))
    failed = [item for batch in batches for item in batch.unreadable]
    assert len(failed) == 2 and {item.reason for item in failed} == {"its shard is truncated before it"}
    assert sum(len(batch.images) for batch in batches) == 13


def test_damage_without_an_index_is_told(shards, caplog):
    for file in shards.glob("*.index.json"):
        file.unlink()
    file = shards / "train-00000.tar"
    with open(file, "r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        listing = open_records(f"wds:{shards}", "train")
    assert 11 < len(listing.records) < 15 and "before the damage are used" in caplog.text


def test_shards_of_others_are_read_by_the_name_of_the_class(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": png(), "1.cls": b"real", "2.png": png(1), "2.json": b'{"label": "fake"}'})
    write_tar(tmp_path / "b.tar", {"real/3.png": png(2), "fake/4.png": png(3), "notes.txt": b"x"})
    listing = open_records(f"wds:{tmp_path}")
    assert [record.label for record in listing.records] == [0, 1, 1, 0]
    assert [record.generator for record in listing.records] == ["real", tmp_path.name, tmp_path.name, "real"]


def test_numbers_need_a_mapping(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": png(), "1.cls": b"0", "2.png": png(1), "2.cls": b"1"})
    with pytest.raises(UserError, match="numbers need @labels=0:real"):
        open_records(f"wds:{tmp_path}")
    listing = open_records(f"wds:{tmp_path}@labels=0:fake+1:real")
    assert [record.label for record in listing.records] == [1, 0]
    assert read_image(listing.records[0].path).shape == (40, 40, 3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "expected .tar shards"),
        (lambda folder: (folder / "a.tar").write_bytes(b"no tar at all" * 100), "expected a tar shard"),
        (lambda folder: write_tar(folder / "a.tar", {"1.png": png()}), "expected a class for every image"),
        (
            lambda folder: (
                write_tar(folder / "a.tar", {"real/1.png": png()}),
                (folder / "a.index.json").write_text("{}x"),
            ),
            "expected the index",
        ),
    ],
)
def test_what_are_no_shards_is_one_line(make, says, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=says) as refused:
        open_records(f"wds:{tmp_path}")
    assert "\n" not in str(refused.value)


def test_paths_into_no_shard_are_unreadable(shards):
    for path in ("nowhere.tar/1.png", f"{shards}/train-00000.tar/none.png", f"{shards}/train-00000.tar"):
        with pytest.raises(UnreadableImage):
            read_image(path)


def test_evaluate_and_predict_read_shards(folder, shards, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    import evaluate

    monkeypatch.setattr("utils.evaluation.report.save_figure", lambda figure, stem: None)
    rows = []
    for spec in (str(folder), f"wds:{shards}"):
        flags = ["--n-boot", "20", "--threads", "1", "--no-score-cache", "--output-dir", str(tmp_path / "out")]
        rows.append(evaluate.main(["--checkpoint", str(tiny_checkpoint), "--data", spec, *flags])["rows"][0])
    assert rows[0]["n_real"] == rows[1]["n_real"] == 3
    assert rows[0]["brier"] == pytest.approx(rows[1]["brier"], abs=1e-6)


def test_an_unreadable_file_is_listed_and_left_out(folder, tmp_path, capsys, monkeypatch):
    victim = sorted((folder / "train/real").iterdir())[0]
    listing = open_records(str(folder), "train")
    victim.unlink()
    unreadable: list[str] = []
    assert pack.write_shard(tmp_path / "train-0.tar", listing.records, listing.root, unreadable) == 14
    assert unreadable == [str(victim)]
    assert len(json.loads((tmp_path / "train-0.index.json").read_text())) == 14
