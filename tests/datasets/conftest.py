"""Fixtures for tests of datasets: folders of tiny images."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from utils.files import ROOT

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_jpeg(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.jpg"
    Image.new("RGB", (2, 2), "grey").save(path)
    return path


@pytest.fixture
def build(tmp_path, tiny_jpeg):
    """Make files below tmp_path/name from lines such as `train/real 3` (three images) and return the folder."""

    def make(lines: str, name: str = "faces") -> Path:
        root = tmp_path / name
        for line in lines.split(","):
            folder, count = line.split()
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(int(count)):
                shutil.copy(tiny_jpeg, root / folder / f"{folder.replace('/', '_')}_{number:03d}.jpg")
        return root

    return make


def counts(listing_or_records) -> Counter:
    records = getattr(listing_or_records, "records", listing_or_records)
    return Counter((record.label, record.generator) for record in records)


def one_line(caught) -> str:
    text = str(caught.value)
    assert text and "\n" not in text
    return text
