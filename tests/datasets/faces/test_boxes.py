"""The boxes of a data set: searched once, kept on disk, searched again when a file or the finder changes."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import numpy as np
import pytest

from datasets.faces import boxes
from datasets.faces.boxes import find_faces, with_faces
from datasets.faces.finder import Face, FaceFinder
from datasets.faces.framing import Box
from datasets.listing.spec import open_records
from tests.conftest import write_image

BOX = Box(0.25, 0.5, 0.125, 0.25)


@pytest.fixture
def searched(monkeypatch) -> list[int]:
    """The heights of the pictures that were searched; every one but those of 40 px shows a face."""
    heights: list[int] = []

    def search(_: FaceFinder, image: np.ndarray) -> list[Face]:
        heights.append(len(image))
        return [Face(BOX)] if len(image) > 40 else []

    monkeypatch.setattr(FaceFinder, "__call__", search)
    return heights


@pytest.fixture
def pictures(make_folder) -> Path:
    folder = make_folder("pictures", {"test/real": 2, "test/fake": 1})
    write_image(folder / "test/fake/large.png", 9, True, 48, 48)
    (folder / "test/fake/broken.png").write_bytes(b"no image")
    return folder


def faces_of(folder: Path, cache: Path | None) -> dict[str, tuple]:
    records = find_faces(open_records(str(folder), "test").records, FaceFinder(), cache)
    return {Path(record.path).name: record.faces for record in records}


def test_pictures_are_searched_once_until_they_change(pictures, searched, tmp_path):
    first = faces_of(pictures, tmp_path / "cache")
    assert first["large.png"] == (BOX,) and first["000.png"] == first["broken.png"] == ()
    assert sorted(searched) == [40, 40, 40, 48]
    assert faces_of(pictures, tmp_path / "cache") == first and len(searched) == 4
    write_image(pictures / "test/real/000.png", 5, False, 52, 52)
    write_image(pictures / "test/fake/broken.png", 5, False, 44, 44)  # an unreadable file may be repaired
    later = faces_of(pictures, tmp_path / "cache")
    assert sorted(searched[4:]) == [44, 52] and later["broken.png"] == (BOX,)


def test_known_pictures_wait_for_no_other_process(pictures, searched, tmp_path, monkeypatch):
    (pictures / "test/fake/broken.png").unlink()  # an unreadable picture is tried again
    first = faces_of(pictures, tmp_path)
    monkeypatch.setattr(boxes, "locked", lambda *_: pytest.fail("asked for the lock"))
    assert faces_of(pictures, tmp_path) == first


def test_pictures_that_another_process_has_searched_meanwhile_are_not_searched_again(
    pictures, searched, tmp_path, monkeypatch
):
    first = faces_of(pictures, tmp_path)
    (cache,) = tmp_path.glob("*.jsonl")
    lines = cache.read_text()
    cache.write_text("")

    @contextlib.contextmanager
    def locked(*_):
        cache.write_text(lines)
        yield

    monkeypatch.setattr(boxes, "locked", locked)
    del searched[:]
    assert faces_of(pictures, tmp_path) == first and not searched


def test_another_finder_has_boxes_of_its_own(pictures, searched, tmp_path, monkeypatch):
    faces_of(pictures, tmp_path)
    monkeypatch.setattr(FaceFinder, "digest", "yunet-0123")
    faces_of(pictures, tmp_path)
    assert len(searched) == 8 and len([*tmp_path.glob("*.jsonl")]) == 2


def test_damaged_lines_are_searched_again(pictures, searched, tmp_path):
    first = faces_of(pictures, tmp_path)
    (cache,) = tmp_path.glob("*.jsonl")
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join([lines[0], lines[1][:20], *lines[2:], '["a", 3]', '["a", [1, 2], [[1, 2]]]', "null"]))
    del searched[:]
    assert faces_of(pictures, tmp_path) == first and len(searched) == 1


def test_a_folder_that_cannot_be_written_keeps_nothing(pictures, searched, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert faces_of(pictures, tmp_path / "file")["large.png"] == (BOX,)
    assert "faces are not kept" in capsys.readouterr().err


def test_a_disk_that_is_full_keeps_nothing(pictures, searched, tmp_path, monkeypatch, capsys):
    def refuse(file, found):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("datasets.faces.boxes._append", refuse)
    assert faces_of(pictures, tmp_path / "cache")["large.png"] == (BOX,)
    assert capsys.readouterr().err.count("(No space left on device); continuing") == 1


def test_a_listing_says_how_many_pictures_show_a_face(pictures, searched, capsys):
    listing = open_records(str(pictures), "test")
    assert with_faces(listing, None) is listing
    found = with_faces(listing, FaceFinder())
    assert [record.path for record in found.records] == [record.path for record in listing.records]
    assert "pictures test: 1 of 5 pictures show a face (cascade); the others are used whole" in capsys.readouterr().err
