"""datasets/listing/inputs.py: what the arguments of predict.py and explain.py name."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from datasets.listing.inputs import list_inputs, name_others
from tests.conftest import write_images
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def stdin(data):
    return SimpleNamespace(buffer=io.BytesIO(data))


def test_arguments_are_expanded_in_the_order_given(tmp_path):
    write_images("z.png", "photos/b.png", "photos/sub/a.JPG", "photos/a.webp", "lists/x.png", "lists/y.png")
    Path("photos/notes.txt").write_text("no image")
    Path("lists/list.csv").write_text("path\ny.png\nx.png\n")
    os.rename("lists/list.csv", "lists/list.lst")
    Path("lists/labelled.csv").write_text("filename,label\nx.png,7\n")
    inputs = list_inputs(["z.png", "photos", "csv:lists/list.lst", "lists/labelled.csv", "z.png"])
    assert inputs.others == ["photos/notes.txt"] and inputs.paths == [
        "z.png",
        "photos/a.webp",
        "photos/b.png",
        "photos/sub/a.JPG",
        "lists/y.png",
        "lists/x.png",
        "lists/x.png",
        "z.png",
    ]


def test_patterns(tmp_path):
    write_images("photos/b.png", "photos/a.png", "photos/c.jpg", "photos/sub/d.png", "odd[1].png")
    Path("photos/notes.txt").write_text("no image")
    assert list_inputs(["photos/*.png"]).paths == ["photos/a.png", "photos/b.png"]
    assert list_inputs(["photos/[bc].*"]).paths == ["photos/b.png", "photos/c.jpg"]
    assert list_inputs(["photos/**"]) == list_inputs(["photos"])
    assert list_inputs(["**/?.png"]).paths == ["photos/a.png", "photos/b.png", "photos/sub/d.png"]
    assert list_inputs(["photos/s*"]).paths == ["photos/sub/d.png"]
    assert list_inputs(["odd[1].png"]).paths == ["odd[1].png"]  # a file of that name is no pattern


def test_files_of_other_kinds_are_listed_apart_but_not_what_systems_leave_behind():
    write_images("photos/a.png", "photos/sub/b.png")
    names = ("notes.txt", "sub/raw.dng", "none/report.pdf", ".DS_Store", "Thumbs.db", "sub/desktop.ini", ".git/config")
    for name in names:
        Path("photos", name).parent.mkdir(exist_ok=True)
        Path("photos", name).write_text("no image")
    others = ["photos/none/report.pdf", "photos/notes.txt", "photos/sub/raw.dng"]
    assert list_inputs(["photos"]) == list_inputs(["photos/**"]) == (["photos/a.png", "photos/sub/b.png"], others)
    with pytest.raises(UserError, match="got none"):
        list_inputs(["photos/none/**"])


def test_few_files_are_named_one_by_one_and_many_by_their_suffixes():
    assert name_others([], "no image") == []
    assert name_others(["a.txt", "b"], "no image") == ["left out: a.txt: no image", "left out: b: no image"]
    many = [f"{n}.XMP" for n in range(4_990)] + ["a"] + [f"b.{n}" for n in range(9)]
    (line,) = name_others(many, "no image")
    assert line.startswith("left out: 5,000 files (4,990 .xmp, 1 without a suffix, 1 .0, ")
    assert line.endswith(", 3 more suffixes): no image")


@pytest.mark.parametrize(
    ("data", "null", "expected"),
    [
        (b"b.png\na.png\n", False, ["b.png", "a.png"]),
        (b"b.png\r\n\r\na b.png", False, ["b.png", "a b.png"]),
        (b"line\nbreak.png\0b.png\0", True, ["line\nbreak.png", "b.png"]),
        ("人.png\n".encode(), False, ["人.png"]),
        (b"\xff.png\n", False, ["\udcff.png"]),
    ],
)
def test_paths_on_stdin(monkeypatch, data, null, expected):
    monkeypatch.setattr(sys, "stdin", stdin(data))
    assert list_inputs(["-"], null=null).paths == expected


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_image_bytes_on_stdin_are_named(monkeypatch, form, null):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(buffer, format=form)
    monkeypatch.setattr(sys, "stdin", stdin(buffer.getvalue()))
    with pytest.raises(UserError, match="got the bytes of an image; save it to a file"):
        list_inputs(["-"], null=null)


@pytest.mark.parametrize("data", [b"PK\x03\x04\x14\0\0", b"\x1f\x8b\x08\0\0\0", b"\x7fELF\x02\x01\x01\0"])
def test_other_binary_data_on_stdin_do_not_suggest_null(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", stdin(data))
    with pytest.raises(UserError, match="got binary data"):
        list_inputs(["-"])
