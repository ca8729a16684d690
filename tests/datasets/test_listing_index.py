"""The index of a large folder: the same listing, and never an old one."""

import os
from pathlib import Path

import pytest

from datasets import listing_index
from datasets.spec import open_records


@pytest.fixture
def folder(make_folder, tmp_path, monkeypatch) -> Path:
    """A folder whose times lie in the past, and an index that takes any size."""
    monkeypatch.setattr(listing_index, "LEAST", 1)
    monkeypatch.setattr(listing_index, "INDEX_DIR", tmp_path / "index")
    folder = make_folder("faces", {"train/real": 3, "train/fake/gan": 3, "test/real": 2, "test/fake/gan": 2})
    settle(folder)
    return folder


def settle(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            os.utime(path, ns=(1, path.stat().st_mtime_ns - 10**10))


@pytest.fixture
def listed(monkeypatch) -> list[str]:
    """The folders that are really listed from now on."""
    calls = []
    read = listing_index.read_folder
    monkeypatch.setattr(listing_index, "read_folder", lambda location: (calls.append(location), read(location))[1])
    return calls


@pytest.mark.parametrize(
    "options", ["", "@split=train", "@split=all,limit=3", "@split=train,generator=gan", "@split=train,repeat=2"]
)
def test_the_index_gives_the_same_listing(options, folder, listed, monkeypatch):
    first = open_records(f"{folder}{options}")
    again = open_records(f"{folder}{options}")
    assert again == first and len(listed) == 1
    monkeypatch.setattr(listing_index, "LEAST", 10**9)
    for file in listing_index.INDEX_DIR.iterdir():
        file.unlink()
    assert open_records(f"{folder}{options}") == first  # as it is without any index


def test_parts_have_fingerprints_of_their_own(folder):
    specs = ["", "@split=train", "@split=train,classes=fake", "@split=all", "@split=all,limit=3"]
    assert len({open_records(f"{folder}{options}").fingerprint for options in specs * 2}) == len(specs)


@pytest.mark.parametrize("change", ["add", "remove", "new folder"])
def test_a_changed_folder_is_listed_again(change, folder, listed):
    before = open_records(f"{folder}@split=train")
    image = next((folder / "train/real").iterdir())
    if change == "add":
        (folder / "train/real/new.png").write_bytes(image.read_bytes())
    elif change == "remove":
        image.unlink()
    else:
        (folder / "train/fake/other").mkdir()
        (folder / "train/fake/other/new.png").write_bytes(image.read_bytes())
    after = open_records(f"{folder}@split=train")
    assert len(after.records) != len(before.records) and after.fingerprint != before.fingerprint and len(listed) == 2


def test_a_damaged_index_is_made_again(folder, listed):
    before = open_records(str(folder))
    for file in listing_index.INDEX_DIR.iterdir():
        file.write_text(file.read_text()[:50])
    assert open_records(str(folder)) == before and len(listed) == 2


def test_folders_that_may_still_be_changing_and_small_ones_get_no_index(folder, monkeypatch):
    (folder / "train/real/new.png").write_bytes(b"x")
    open_records(str(folder))
    assert not listing_index.INDEX_DIR.exists()
    settle(folder)
    monkeypatch.setattr(listing_index, "LEAST", 100)
    open_records(str(folder))
    assert not listing_index.INDEX_DIR.exists()
