"""audit.py: leaks, broken files and labels that the file tells are found and named; the clean list is clean."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import audit
from datasets.decoding.images import read_image
from datasets.listing.spec import open_records
from tests.conftest import write_image
from utils.audit.shortcuts import metadata_classifier
from utils.errors import UserError
from utils.files import ROOT

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return audit.main([*map(str, arguments), "--output-dir", "out", "--workers", "1"])


def recode(source, target, quality=85, mirrored=False):
    image = read_image(source)[:, ::-1] if mirrored else read_image(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])


def test_clean_set(image_folder, rendered, capsys):
    result = run("--data", image_folder)
    assert result["exit_code"] == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "faces: 32 images (16 real, 16 fake), 0 broken"
    assert out[-1] == "clean"
    assert {path.name for path in Path("out").iterdir()} >= {"report.md", "audit.json", "distributions.png"}
    assert json.loads(Path("out/audit.json").read_text())["n_images"] == 32
    assert str(image_folder) not in Path("out/report.md").read_text().split("## ", 1)[1]


def test_leak_is_named_and_the_clean_list_has_none(image_folder, capsys):
    recode(image_folder / "test/real/000.png", image_folder / "train/real/leaked.jpg", mirrored=True)
    recode(image_folder / "train/fake/001.png", image_folder / "train/fake/again.jpg")
    shutil.copy(image_folder / "valid/real/002.png", image_folder / "test/real/copied.png")
    result = run("--data", image_folder, "--write-clean-lists", "lists")
    assert result["exit_code"] == 1
    assert {(row["first"], row["second"], row["kind"]) for row in result["leaks"]} == {
        ("faces/test/real/000.png", "faces/train/real/leaked.jpg", "near, mirrored"),
        ("faces/test/real/copied.png", "faces/valid/real/002.png", "same file"),
    }
    assert [(row["first"], row["second"]) for row in result["repeats"]] == [
        ("faces/train/fake/001.png", "faces/train/fake/again.jpg")
    ]
    assert "leak: faces/test/real/000.png = faces/train/real/leaked.jpg" in capsys.readouterr().out
    kept = {Path(record.path).resolve() for record in open_records("csv:lists/faces.csv@split=all").records}
    everything = {path.resolve() for path in image_folder.rglob("*.*g")}
    gone = {"train/real/leaked.jpg", "valid/real/002.png", "train/fake/again.jpg"}
    assert everything - kept == {(image_folder / name).resolve() for name in gone}
    assert run("--data", "csv:lists/faces.csv")["exit_code"] == 0
    assert {split: len(open_records(f"csv:lists/faces.csv@split={split}").records) for split in ("train", "test")} == {
        "train": 16,
        "test": 9,
    }


def test_equal_pixels_under_both_labels_are_left_out(image_folder):
    shutil.copy(image_folder / "train/real/000.png", image_folder / "train/fake/900.png")
    result = run("--data", image_folder, "--write-clean-lists", "lists")
    assert result["n_clean"] == 31
    names = {Path(record.path).name for record in open_records("csv:lists/faces.csv@split=train,classes=real").records}
    assert "000.png" not in names and "001.png" in names


def test_original_and_forgery_in_one_split_both_stay(image_folder):
    recode(image_folder / "train/real/000.png", image_folder / "train/fake/forged.jpg")
    result = run("--data", image_folder, "--write-clean-lists", "lists")
    assert (result["n_counterparts"], result["n_leaks"], result["n_clean"]) == (1, 0, 33)


def test_leak_between_two_sets(make_folder):
    first, second = make_folder("one", {"train/real": 3, "train/fake": 3}), make_folder("two", {"test/real": 2})
    shutil.copy(first / "train/real/001.png", second / "test/real/other.png")
    for path in second.glob("test/real/00*.png"):
        write_image(path, 7000 + int(path.stem), False)
    result = run("--data", first, second)
    assert result["exit_code"] == 1
    assert [row["across_sets"] for row in result["leaks"]] == [True]


def test_clean_lists_keep_the_names_of_their_sets(make_folder):
    folders = [make_folder(name, {"train/real": 2, "train/fake": 2}) for name in ("one", "two")]
    for path in folders[1].rglob("*.png"):
        write_image(path, 7000 + int(path.stem) + 10 * ("fake" in str(path)), False)
    run("--data", *folders, "--write-clean-lists", "lists")
    listings = [open_records(f"csv:lists/{name}.csv") for name in ("one", "two")]
    assert [(listing.name, len(listing.records)) for listing in listings] == [("one", 4), ("two", 4)]
    shutil.rmtree(folders[1])
    shutil.copytree(folders[0], folders[1])
    result = run("--data", *folders, "--write-clean-lists", "lists")
    assert result["summary"][-1] == "clean lists: 4 of 8 images; no list of two, of which no image is left"
    assert [path.name for path in Path("lists").iterdir()] == ["one.csv"], "the earlier list is removed"


def test_metadata_leak_is_warned_about(image_folder, capsys):
    for path in image_folder.rglob("real/*.png"):
        recode(path, path.with_suffix(".jpg"), 90)
        path.unlink()
    result = run("--data", image_folder)
    assert result["exit_code"] == 0  # a warning: training on re-encoded images is still possible
    assert result["metadata"][0]["auc"] > 0.95
    telling = [row["column"] for row in result["metadata"][0]["columns"] if row["auc"] == 1.0]
    assert "format" in telling
    assert "warning: faces: the label can be read off the file" in capsys.readouterr().out


def test_broken_files_are_listed(image_folder, capsys):
    (image_folder / "train/real/900.jpg").write_bytes(b"no image")
    (image_folder / "test/fake/901.png").write_bytes(b"")
    result = run("--data", image_folder, "--write-clean-lists", "lists")
    assert result["exit_code"] == 1
    assert sorted((row["path"], row["reason"]) for row in result["broken"]) == [
        ("faces/test/fake/901.png", "empty file"),
        ("faces/train/real/900.jpg", "not an image"),
    ]
    assert "broken: faces/train/real/900.jpg: not an image" in capsys.readouterr().out
    assert "not an image" in Path("out/report.md").read_text()
    assert result["n_clean"] == 32


def test_one_class_and_nothing_readable(make_folder):
    folder = make_folder("lonely", {"test/real": 4})
    result = run("--data", folder)
    assert result["exit_code"] == 0 and result["metadata"] == []
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert len(run("--data", folder)["broken"]) == 4


def test_one_spec_named_twice_is_no_leak(image_folder):
    assert run("--data", image_folder, f"{image_folder}@split=test")["n_images"] == 32


def test_one_file_in_two_splits_of_a_list_is_a_leak(image_folder):
    rows = [
        "faces/train/real/000.png,real,train",
        "faces/train/real/000.png,real,test",
        "faces/test/fake/000.png,fake,test",
    ]
    Path("list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    result = run("--data", "csv:list.csv")
    assert (result["n_leaks"], result["exit_code"]) == (1, 1)


@pytest.mark.parametrize("spelling", ["same", "other", "copy"])
def test_an_image_with_both_labels_is_a_conflict_and_in_no_clean_list(image_folder, spelling, capsys):
    for name in ("real", "fake"):
        shutil.copy(image_folder / f"train/{name}/001.png", f"{name}.png")
    shutil.copy("real.png", "copy.png")
    again = {"same": "real.png", "other": "faces/../real.png", "copy": "copy.png"}[spelling]
    rows = ["real.png,real", "fake.png,fake", f"{again},fake", "faces/test/real/000.png,real"]
    Path("list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    result = run("--data", "csv:list.csv", "--write-clean-lists", "lists")
    assert (result["n_images"], result["n_conflicts"], result["n_leaks"], result["exit_code"]) == (4, 1, 0, 1)
    out = capsys.readouterr().out
    assert "conflicts: 1 pairs" in out and "conflict: list/" in out and "clean\n" not in out
    kept = {Path(record.path).name: record.label for record in open_records("csv:lists/list.csv").records}
    assert kept == {"fake.png": 1, "000.png": 0}


@pytest.mark.parametrize("spelling", ["./real.png", "faces/../real.png", "link.png"])
def test_one_image_spelt_twice_counts_once(image_folder, spelling):
    shutil.copy(image_folder / "train/real/001.png", "real.png")
    Path("link.png").symlink_to("real.png")
    Path("list.csv").write_text(f"path,label\nreal.png,real\n{spelling},real\nfaces/train/fake/000.png,fake\n")
    assert run("--data", "csv:list.csv")["n_images"] == 2


def test_groups_in_several_splits_are_named_and_not_in_the_clean_list(image_folder, capsys):
    result = run("--data", f"{image_folder}@group_by=(real|fake)/000", "--write-clean-lists", "lists")
    assert result["exit_code"] == 1 and [(row["group"], row["splits"], row["images"]) for row in result["groups"]] == [
        ("fake", "test, train, valid", 3),
        ("real", "test, train, valid", 3),
    ]
    assert "group: real of faces is in test, train, valid" in capsys.readouterr().out
    assert "Groups in several splits" in Path("out/report.md").read_text()
    assert result["n_clean"] == 28
    kept = open_records("csv:lists/faces.csv@split=all").records
    assert {Path(record.path).parts[-3] for record in kept if record.group} == {"test"}
    assert run("--data", "csv:lists/faces.csv")["exit_code"] == 0


def test_sample(image_folder):
    assert run("--data", image_folder, "--sample", "6")["n_images"] == 6
    with pytest.raises(SystemExit):
        run("--data", image_folder, "--sample", "6", "--write-clean-lists", "lists")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--data", "absent"], "no such folder"),
        (["--data", "empty"], "got none"),
        (["--data", "faces", "--write-clean-lists", "empty.txt"], "writable folder"),
        (["--data", "csv:list.csv", "--write-clean-lists", "."], "beside no input"),
    ],
)
def test_mistakes_are_one_line(image_folder, arguments, word):
    Path("empty").mkdir()
    Path("empty.txt").touch()
    Path("list.csv").write_text("path,label\nfaces/train/real/000.png,real\n")
    with pytest.raises(UserError, match=word) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


def test_exit_code_of_a_mistake(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "audit.py", "--data", "absent"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "absent" in done.stderr


@pytest.mark.skipif(not (SHARED / "faces140k").is_dir(), reason="the real images are not there")
def test_real_faces():
    result = run("--data", f"{SHARED}/faces140k@limit=60")
    assert result["n_images"] == 60
    assert result["n_leaks"] == result["n_repeats"] == result["n_counterparts"] == 0
    assert result["files"][0]["quality"] == "75 100%"


def test_a_random_tag_tells_nothing():
    """Many values and few images: the shares of fakes among the same images would say otherwise."""
    generator = np.random.default_rng(0)
    same = dict.fromkeys(("width", "height", "file_bytes", "quality", "exif_tags"), 100)
    same |= dict.fromkeys(("progressive", "icc", "alpha", "provenance", "format", "mode", "subsampling"), False)
    facts = [SimpleNamespace(**same, software=str(tag)) for tag in generator.integers(0, 11, 40)]
    (column,) = metadata_classifier(facts, np.repeat([0, 1], 20))["columns"]
    assert column["column"] == "software" and column["auc"] < 0.6
