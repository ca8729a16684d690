"""Tar shards: packing, reading by name, damage, and that nothing is lost or repeated over processes and workers."""

import io
import json
import logging
import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import pack
from datasets.decoding.images import UnreadableImage, read_image
from datasets.listing.spec import open_records
from datasets.listing.storage import open_shard, parse_index, stat_image
from datasets.loading import EpochSampler, ImageDataset, make_loader, typical_side
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


def pack_again(folder, shards, *flags, size=4):
    return pack.main([str(folder), "--output-dir", str(shards), "--images-per-shard", str(size), *flags])


def test_interrupted_packing_resumes_and_gives_the_same_bytes(folder, shards):
    first = {file.name: file.read_bytes() for file in shards.iterdir()}
    (shards / "train-00001.tar").unlink()
    (shards / "train-00001.index.json").unlink()
    (shards / "train-00002.index.json").unlink()
    kept = (shards / "train-00000.tar").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"expected the shard train-00001.tar in .*run python -m datasets.pack again"):
        open_records(f"wds:{shards}")
    result = pack_again(folder, shards)
    assert {file.name: file.read_bytes() for file in shards.iterdir()} == first
    assert (shards / "train-00000.tar").stat().st_mtime_ns == kept and result["n_images"] == 21


@pytest.mark.parametrize("change", ["another size", "another set", "a new image", "an image overwritten"])
def test_shards_of_another_plan_are_refused_or_replaced(change, folder, shards, make_folder):
    size = 9 if change == "another size" else 4
    image = folder / "train/real/000.png"
    if change == "another set":
        folder = make_folder("others", {"train/real": 3, "train/fake": 2})
    elif change == "a new image":
        (folder / "test/real/new.png").write_bytes(png(5))
    elif change == "an image overwritten":
        cv2.imwrite(str(image), read_image(image)[::-1])
        os.utime(image, ns=(1, 1))
    before = {file.name: file.read_bytes() for file in shards.iterdir()}
    with pytest.raises(UserError, match="replace them with --overwrite"):
        pack_again(folder, shards, size=size)
    assert {file.name: file.read_bytes() for file in shards.iterdir()} == before
    pack_again(folder, shards, "--overwrite", size=size)
    assert contents(open_records(f"wds:{shards}@split=all")) == contents(open_records(f"{folder}@split=all"))
    assert len(list(shards.glob("*.tar"))) == len(json.loads((shards / "pack.json").read_text())["shards"])


def test_foreign_shards_are_not_overwritten(folder, tmp_path):
    write_tar(tmp_path / "mine/train-00000.tar", {"real/1.png": png(), "fake/2.png": png(1)})
    with pytest.raises(UserError, match=r"train-00000\.tar of others"):
        pack_again(folder, tmp_path / "mine")


def test_shards_can_be_packed_again(folder, shards, tmp_path):
    pack_again(f"wds:{shards}", tmp_path / "again", size=5)
    for split in ("train", "test"):
        assert contents(open_records(f"wds:{tmp_path}/again", split)) == contents(open_records(str(folder), split))


@pytest.mark.parametrize("with_index", [True, False])
def test_masks_groups_and_meta_are_packed(with_index, folder, tmp_path):
    (folder / "mask.png").write_bytes(png(9))
    (folder / "plain").write_bytes((folder / "train/real/000.png").read_bytes())
    rows = ["train/fake/gan/000.png,fake,gan,v1,mask.png,f", "plain,real,,v2,,"]
    (folder / "list.csv").write_text("\n".join(["path,label,generator,group,mask,sex", *rows]) + "\n")
    pack_again(f"csv:{folder}/list.csv", tmp_path / "out")
    for file in (tmp_path / "out").glob("*.index.json") if not with_index else ():
        file.unlink()
    real, fake = sorted(open_records(f"wds:{tmp_path}/out").records, key=lambda record: record.label)
    assert (real.group, real.mask, fake.group, fake.meta) == ("v2", None, "v1", {"sex": "f"})
    assert np.array_equal(read_image(fake.mask), read_image(folder / "mask.png"))
    assert np.array_equal(read_image(real.path), read_image(folder / "plain"))


def test_images_without_a_split_are_not_lost(folder, tmp_path):
    rows = ["train/fake/gan/000.png,fake,train", "train/real/000.png,real,train", "test/real/000.png,real,"]
    (folder / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    with pytest.raises(UserError, match="got 1 without"):
        pack_again(f"csv:{folder}/list.csv", tmp_path / "out")
    assert pack_again(f"csv:{folder}/list.csv@split=all", tmp_path / "out")["n_images"] == 3


def test_shards_of_version_1_1_are_read(folder, shards):
    for index in shards.glob("*.index.json"):
        shard = parse_index(json.loads(index.read_text()))
        rows = [[name, *shard.places[name], image.label, image.generator] for name, image in shard.images.items()]
        index.write_text(json.dumps(rows))
    assert contents(open_records(f"wds:{shards}", "test")) == contents(open_records(str(folder), "test"))


def test_an_overwritten_shard_is_read_again(shards):
    listing = open_records(f"wds:{shards}", "test")
    before, state = contents(listing), stat_image(listing.records[0].path)
    for file in shards.glob("test-*.tar"):
        file.with_name(file.name.replace(".tar", ".index.json")).unlink()
        write_tar(file, {"000000.png": png(7), "000000.cls": b"fake"})
        os.utime(file, ns=(1, 1))  # the clock of a file system is coarse
    again = open_records(f"wds:{shards}", "test")
    assert contents(again) != before and again.fingerprint != listing.fingerprint
    assert stat_image(listing.records[0].path).st_mtime_ns != state.st_mtime_ns


def test_audit_and_input_size_are_those_of_the_folder(folder, shards, tmp_path, monkeypatch):
    import audit

    for spec in (str(folder), f"wds:{shards}"):
        assert typical_side(open_records(spec, "train").records) == 40
    result = audit.main(["--data", f"wds:{shards}", "--output-dir", str(tmp_path / "out"), "--workers", "1"])
    assert result["broken"] == [] and result["n_images"] == 21
    lists = str(tmp_path / "lists")
    audit.main(["--data", f"wds:{shards}", "--output-dir", str(tmp_path / "out"), "--write-clean-lists", lists])
    (clean,) = Path(lists).iterdir()
    assert contents(open_records(f"csv:{clean}@split=test")) == contents(open_records(str(folder), "test"))


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
    shard = open_shard(str(file))
    offset, _ = shard.places[list(shard.images)[2]]
    with open(file, "r+b") as stream:
        stream.truncate(offset + 10)
    listing = open_records(f"wds:{shards}", "train")
    assert len(listing.records) == len(whole.records) and listing.fingerprint != whole.fingerprint
    batches = list(make_loader(ImageDataset(listing.records, EvalTransform(Geometry("crop", 32))), 4))
    failed = [item for batch in batches for item in batch.unreadable]
    assert len(failed) == 2 and {item.reason for item in failed} == {"its shard ends before this image"}
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
    "text",
    [
        "{}x",
        '{"images": [], "places": {}, "plan": ""}',
        '{"images": {}, "places": {"1.png": ["far", 1]}, "plan": ""}',
        "[" * 100_000,
        "9" * 5_000,
    ],
    ids=["not JSON", "no images", "no offset", "too deep", "too long"],
)
def test_what_is_no_index_is_one_line(text, tmp_path):
    write_tar(tmp_path / "a.tar", {"real/1.png": png()})
    (tmp_path / "a.index.json").write_text(text)
    with pytest.raises(UserError, match=r"expected the index of .*a\.tar at .*a\.index\.json, got something else"):
        open_records(f"wds:{tmp_path}")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "expected .tar shards"),
        (lambda folder: (folder / "a.tar").write_bytes(b"no tar at all" * 100), "expected a tar shard"),
        (lambda folder: write_tar(folder / "a.tar", {"1.png": png()}), "expected a class for every image"),
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
    assert pack.write_shard(tmp_path / "train-0.tar", listing.records, listing.root, "plan", unreadable) == 14
    assert unreadable == [str(victim)]
    assert len(json.loads((tmp_path / "train-0.index.json").read_text())["images"]) == 14
