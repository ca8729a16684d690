"""datasets/inputs.py: what the arguments of predict.py and explain.py name."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from datasets.inputs import list_inputs
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
    assert list_inputs(["z.png", "photos", "csv:lists/list.lst", "lists/labelled.csv", "z.png"]) == [
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
    assert list_inputs(["photos/*.png"]) == ["photos/a.png", "photos/b.png"]
    assert list_inputs(["photos/[bc].*"]) == ["photos/b.png", "photos/c.jpg"]
    assert list_inputs(["photos/**"]) == list_inputs(["photos"])
    assert list_inputs(["**/?.png"]) == ["photos/a.png", "photos/b.png", "photos/sub/d.png"]
    assert list_inputs(["photos/s*"]) == ["photos/sub/d.png"]
    assert list_inputs(["odd[1].png"]) == ["odd[1].png"]  # a file of that name is no pattern


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
    assert list_inputs(["-"], null=null) == expected


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
