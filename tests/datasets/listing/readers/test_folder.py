"""Folders: the layouts and files that are recognised, and the errors for mistakes."""

import os
from pathlib import Path

import pytest
from PIL import Image

from datasets.decoding.images import UnreadableImage, read_image
from datasets.listing.readers.folder import class_label, list_images, read_folder
from datasets.listing.spec import open_records
from tests.datasets.conftest import counts, one_line
from utils.errors import UserError
from utils.files import ROOT

SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *[(name, 0) for name in "real Real REALS 0_real original Originals authentic genuine nature".split()],
        *[(name, 0) for name in ("training_real", "real_images", "Real Faces", "real-faces", "original_sequences")],
        *[(name, 1) for name in "fake FAKE fakes 1_fake ai AI manipulated synthetic generated gan deepfakes".split()],
        *[(name, 1) for name in ("training_fake", "fake_images", "AI-generated", "manipulated_sequences")],
        *[(name, None) for name in "progan train 0 1 images faces realistic unreal masks".split()],
    ],
)
def test_class_names(name, label):
    assert class_label(name) is label


SPLITS_3 = "train/real 3,train/fake 3,{valid}/real 2,{valid}/fake 1,{test}/real 1,{test}/fake 2"
PLAIN = {(0, "real"): 1, (1, "faces"): 2}


@pytest.mark.parametrize(
    ("lines", "split", "splits", "expected"),
    [
        (SPLITS_3.format(valid="valid", test="test"), "test", "train valid test", PLAIN),
        (SPLITS_3.format(valid="Validation", test="Testing"), "test", "train valid test", PLAIN),
        (SPLITS_3.format(valid="VAL", test="TEST").upper(), "test", "train valid test", PLAIN),
        ("train/real 1,train/fake 1,val/real 1,val/fake 2", "valid", "train valid", PLAIN),
        ("real 1,fake 2", "all", "", PLAIN),
        ("0_real 1,1_fake 2", "all", "", PLAIN),
        ("training_real 1,training_fake 2", "all", "", PLAIN),
        ("Dataset/Test/Real 1,Dataset/Test/Fake 2,Dataset/Train/Real 3", "test", "train test", PLAIN),
        ("a/b/c/real 1,a/b/c/fake 2", "all", "", PLAIN),
        ("real/test 1,fake/test 2,real/train 4,fake/train 4", "test", "train test", PLAIN),
        ("real 1,fake/progan 2,fake/sd15/deep/er 3", "all", "", {(0, "real"): 1, (1, "progan"): 2, (1, "sd15"): 3}),
        ("test/real 1,test/fake/progan 2", "test", "test", {(0, "real"): 1, (1, "progan"): 2}),
        (
            "progan/0_real 1,progan/1_fake 2,gan/0_real 3,gan/1_fake 4",
            "all",
            "",
            {(0, "real"): 4, (1, "progan"): 2, (1, "gan"): 4},
        ),
        (
            "pg/car/0_real 1,pg/car/1_fake 2,pg/train/0_real 1,pg/train/1_fake 2,sg/0_real 1,sg/1_fake 1",
            "all",
            "",
            {(0, "real"): 3, (1, "pg"): 4, (1, "sg"): 1},
        ),
        (
            "sd/train/ai 1,sd/train/nature 1,sd/val/ai 2,sd/val/nature 1,mj/val/ai 3,mj/val/nature 1",
            "valid",
            "train valid",
            {(0, "real"): 2, (1, "sd"): 2, (1, "mj"): 3},
        ),
        ("test/progan/0_real 1,test/progan/1_fake 2", "test", "test", {(0, "real"): 1, (1, "progan"): 2}),
        ("fake/gan 2,fake/ai 1,real 1", "all", "", {(0, "real"): 1, (1, "gan"): 2, (1, "ai"): 1}),
        (
            "original_sequences/youtube 1,manipulated_sequences/Deepfakes 2,manipulated_sequences/FaceSwap 1",
            "all",
            "",
            {(0, "real"): 1, (1, "Deepfakes"): 2, (1, "FaceSwap"): 1},
        ),
        ("test/real 3", "test", "test", {(0, "real"): 3}),
        ("fake 3", "all", "", {(1, "faces"): 3}),
        ("real 1,fake 2,masks 3,.hidden/real 3,__MACOSX/real 1", "all", "", PLAIN),
    ],
)
def test_layouts_are_recognised(build, lines, split, splits, expected):
    listing = open_records(str(build(lines)))
    assert (listing.split, listing.splits, listing.name) == (split, tuple(splits.split()), "faces")
    assert counts(listing) == expected
    assert all(Path(record.path).is_file() for record in listing.records)


NESTED = "real_vs_fake/real-vs-fake"


@pytest.mark.parametrize("inner", ["", "real_vs_fake", NESTED, f"{NESTED}/test", f"{NESTED}/test/"])
def test_the_140k_set_is_the_same_from_any_folder_of_it(build, inner):
    root = build(
        ",".join(f"{NESTED}/{s}/{c} 2" for s in ("train", "valid", "test") for c in ("real", "fake")), "faces140k"
    )
    outer = open_records(str(root))
    listing = open_records(f"{root}/{inner}")
    assert (listing.name, listing.split, listing.fingerprint) == ("faces140k", "test", outer.fingerprint)
    assert counts(listing) == {(0, "real"): 2, (1, "faces140k"): 2}


def test_one_class_folder_of_a_set_keeps_split_and_label(build):
    listing = open_records(f"{build('test/real 2,test/fake 1')}/test/real")
    assert (listing.name, listing.split, counts(listing)) == ("faces", "test", {(0, "real"): 2})


def test_relative_locations_and_the_current_folder(build, monkeypatch):
    root = build("test/real 2,test/fake 1")
    absolute = open_records(str(root))
    for where, location in ((root.parent, "faces"), (root, "test"), (root, "."), (root, "./test")):
        monkeypatch.chdir(where)
        listing = open_records(location)
        assert (listing.name, listing.split, listing.fingerprint) == ("faces", "test", absolute.fingerprint)


def test_splits_below_a_folder_named_test_are_not_mixed(build):
    listing = open_records(f"{build('train/real 1,test/real 2,test/fake 2', 'test')}@split=train")
    assert len(listing.records) == 1


def test_folders_beside_the_splits_are_left_out_with_a_warning(build, caplog):
    listing = open_records(f"{build('train/real 1,test/real 2,samples 4')}@split=all")
    assert len(listing.records) == 3
    assert "samples" in caplog.text


def test_masks_of_fakes_are_found(build, tmp_path):
    root = build("test/real 1,test/fake/splice 2")
    (root / "masks" / "test").mkdir(parents=True)
    for stem in ("test_fake_splice_000", "test_real_000"):
        Image.new("L", (2, 2)).save(root / "masks" / "test" / f"{stem}.png")
    masks = {Path(r.path).name: r.mask for r in open_records(str(root)).records}
    assert masks["test_fake_splice_000.jpg"] == f"{root.as_posix()}/masks/test/test_fake_splice_000.png"
    assert masks["test_fake_splice_001.jpg"] is None and masks["test_real_000.jpg"] is None


def test_symbolic_link_loops_end(build):
    root = build("real 1,fake 2")
    os.symlink(root, root / "fake" / "again")
    os.symlink("itself", root / "fake" / "itself")
    assert len(open_records(str(root)).records) == 3


def test_list_images_ignores_the_layout(build):
    root = build("b 1,a/c 2,masks 1")
    (root / "notes.txt").write_text("no image")
    assert [Path(path).name for path in list_images(root)[0]] == ["a_c_000.jpg", "a_c_001.jpg", "b_000.jpg"]


def test_files_are_recognised_by_content_and_the_others_named(build, tmp_path, caplog):
    folder = build("train/real 2,train/fake 2")
    image = next((folder / "train/real").iterdir()).read_bytes()
    heic = b"\x00\x00\x00\x18ftypheic" + bytes(40)
    for name, data in (("photo", image), ("shot.MPO", image), ("a.dat", image), ("b.HEIC", heic), ("c.bin", heic)):
        (folder / "train/real" / name).write_bytes(data)
    (folder / "train/notes.txt").write_text("BM, a text")
    (folder / "train/fake/empty").write_bytes(b"")
    (folder / "docs").mkdir()
    (folder / "docs/readme.md").write_text("text")
    records = open_records(f"{folder}@split=train").records
    assert {os.path.basename(record.path) for record in records} >= {"photo", "shot.MPO", "a.dat", "b.HEIC", "c.bin"}
    assert len(records) == 9 and len(list_images(folder)[0]) == 9
    assert "ignored files that are not images (3): docs/readme.md, train/fake/empty, train/notes.txt" in caplog.text
    assert read_image(folder / "train/real/photo").shape == (2, 2, 3)
    with pytest.raises(UnreadableImage, match=r"HEIC|truncated"):
        read_image(folder / "train/real/c.bin")


@pytest.mark.parametrize(
    ("lines", "location", "told"),
    [
        ("real 1", "facs", "did you mean faces"),
        ("real 1", "faces/real/real_000.jpg", "got the file"),
        ("cats 1,dogs 2", "faces", r"0_real.*1_fake.*got cats, dogs.*csv:"),
        ("real 1,fake 1,deepdream 2", "faces", "got deepdream"),
        ("photos/x 1", "faces", "got images without any"),
        ("real 0,fake 0", "faces", "expected images"),
        ("real/fake 1,fake 2", "faces", "other class"),
        ("train/real 1,valid/real 1", "faces@split=test", "expected a test split in .*got train, valid"),
        ("real 1,fake 1", "faces@split=train", "@split=all"),
        ("real 1", "faces@classes=fake", "got none"),
    ],
)
def test_folder_mistakes_are_told_in_one_line(build, monkeypatch, lines, location, told):
    monkeypatch.chdir(build(lines).parent)
    with pytest.raises(UserError, match=told) as caught:
        open_records(location)
    one_line(caught)


def test_read_folder_takes_a_name(build):
    assert read_folder(build("real 1,fake 1"), name="demo").by_split[""][0].generator == "demo"


def test_a_set_whose_name_sounds_like_a_class_keeps_it(tmp_path):
    folder = tmp_path / "sets" / "generated_photos" / "test" / "fake"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"x")
    for location in (folder, folder.parent, folder.parent.parent):
        listing = open_records(str(location))
        assert (listing.name, listing.records[0].generator) == ("generated_photos", "generated_photos")


def test_a_pipe_among_the_images_is_not_read(make_folder):
    folder = make_folder("faces", {"real": 1, "fake": 1})
    os.mkfifo(folder / "real" / "pipe.png")  # to open it would block
    assert len(open_records(str(folder)).records) == 2
    assert list_images(folder / "real")[1] == [str(folder / "real" / "pipe.png")]
