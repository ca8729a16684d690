"""predict.py: what it takes as inputs, and which it refuses."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import write_images
from tests.predicting import csv_rows, refused, run

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture
def checkpoint(_tiny_checkpoint_file):
    return str(_tiny_checkpoint_file)


def test_stdin_with_a_missing_file_scores_the_others(checkpoint, capsys, monkeypatch):
    write_images("a.png")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"gone.png\na.png\n")))
    assert run(checkpoint, "-")["exit_code"] == 1
    captured = capsys.readouterr()
    assert [row["path"] for row in csv_rows(captured.out)] == ["a.png"]
    assert "unreadable: gone.png: file not found" in captured.err


AWKWARD_NAMES = [
    "with, comma.png",
    'with "quotes".png',
    "line\nbreak.png",
    "carriage\rreturn.png",
    "d\xe9j\xe0 vu \u4eba.png",
    " space .png",
    "=formula.png",
    "-dash.png",
    "not-utf8-\udcff.png",
]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_awkward_file_names_come_back(checkpoint, form):
    template = write_images("template.png")[0]
    names = [f"names/{name}" for name in AWKWARD_NAMES]
    Path("names").mkdir()
    for name in names:
        Path(name).write_bytes(Path(template).read_bytes())
    assert run(checkpoint, *names, "--output", "out", "--format", form)["exit_code"] == 0
    text = Path("out").read_bytes().decode("utf-8", "surrogateescape")
    assert [row["path"] for row in (csv_rows(text) if form == "csv" else json.loads(text))] == names


def test_missing_path_names_the_nearest(checkpoint):
    write_images("photos/portrait.png")
    assert "did you mean photos/portrait.png?" in refused(checkpoint, "photos/portrat.png")
    assert "did you mean photos?" in refused(checkpoint, "phots")


def test_refused_inputs(checkpoint, monkeypatch):
    Path("empty/below").mkdir(parents=True)
    Path("empty/notes.txt").write_text("no image")
    Path("list.csv").write_text("path\ngone.png\n")
    write_images("a.png")
    assert "expected images" in refused(checkpoint, "a.png", "empty")
    assert "*.jpg" in refused(checkpoint, "a.png", "*.jpg")
    assert "gone.png" in refused(checkpoint, "list.csv")
    assert "no such path: sub/gone.png" in refused(checkpoint, "sub/gone.png")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    assert "standard input" in refused(checkpoint, "-")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a.png\0b.png\0")))
    assert "--null" in refused(checkpoint, "-")
    assert "--null" in refused(checkpoint, "a.png", "--null")
