"""predict.py: output files, streaming, memory, and its behaviour as a process."""

import io
import json
import os
import shlex
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

import datasets.decoding.images
from tests.conftest import write_images
from tests.predicting import csv_rows, refused, run
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import ROOT, open_output
from utils.scoring.prediction import READ_AHEAD, _prepare

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture
def checkpoint(_tiny_checkpoint_file):
    return str(_tiny_checkpoint_file)


# ------------------------------------------------------------------------------------------------------- output


def test_output_replaces_the_old_file_and_leaves_stdout_empty(checkpoint, capsys):
    write_images("a.png")
    Path("out.csv").write_text("old")
    run(checkpoint, "a.png", "--output", "out.csv")
    assert capsys.readouterr().out == ""
    assert [row["path"] for row in csv_rows(Path("out.csv").read_text())] == ["a.png"]
    run(checkpoint, "a.png", "--output", "new/folder/out.csv")
    assert Path("new/folder/out.csv").read_bytes() == Path("out.csv").read_bytes()
    assert sorted(os.listdir()) == ["a.png", "new", "out.csv"]


@pytest.mark.parametrize("file_format", ["csv", "json"])
def test_metadata_stands_beside_the_scores(checkpoint, capsys, file_format):
    write_images("a.png", "plain.png")
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a portrait\nSteps: 20, Sampler: Euler a, Seed: 3")
    with Image.open("a.png") as image:
        image.save("a.png", pnginfo=info)
    Path("broken.jpg").write_bytes(b"\xff\xd8\xff")
    paths = ("a.png", "plain.png", "broken.jpg")

    def rows(*flags):
        run(checkpoint, *paths, "--format", file_format, *flags)
        text = capsys.readouterr().out
        return json.loads(text) if file_format == "json" else csv_rows(text)

    told = rows("--metadata")
    metadata = [row.pop("metadata") for row in told if "error" not in row]
    assert told == rows()
    generator = "Stable Diffusion parameters: a portrait Steps: 20, Sampler: Euler a, Seed: 3"
    if file_format == "csv":
        camera = "camera: none named (file)"
        assert metadata == [f"generator: {generator} (PNG text parameters); {camera}", camera]
    else:
        camera = {"what": "camera", "value": "none named", "where": "file"}
        found = {"what": "generator", "value": generator, "where": "PNG text parameters"}
        assert metadata == [[found, camera], [camera]]


def test_failure_leaves_the_old_output_and_nothing_else(checkpoint, monkeypatch):
    write_images("a.png", "b.png")
    Path("out.csv").write_text("old")
    broken = load_checkpoint(checkpoint)
    broken["state_dict"] = {key: value * float("nan") for key, value in broken["state_dict"].items()}
    save_checkpoint("nan.pt", broken)
    assert "finite logits" in refused("nan.pt", "a.png", "--output", "out.csv")
    real_read = datasets.decoding.images.read_image

    def interrupted(path):
        if path == "b.png":
            raise KeyboardInterrupt
        return real_read(path)

    monkeypatch.setattr(datasets.decoding.images, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, "a.png", "b.png", "--batch-size", "1", "--output", "out.csv")
    assert Path("out.csv").read_text() == "old"
    assert sorted(os.listdir()) == ["a.png", "b.png", "nan.pt", "out.csv"]


def test_output_that_cannot_be_written(checkpoint):
    write_images("a.png")
    Path("folder").mkdir()
    assert "folder" in refused(checkpoint, "a.png", "--output", "folder")
    assert "a.png/out.csv" in refused(checkpoint, "a.png", "--output", "a.png/out.csv")
    assert "/proc/out.csv" in refused(checkpoint, "a.png", "--output", "/proc/out.csv")
    assert sorted(os.listdir()) == ["a.png", "folder"]


def test_output_is_never_an_input(checkpoint):
    write_images("a.png")
    Path("list.csv").write_text("path\na.png\n")
    for argument in ("list.csv", "csv:list.csv", "./list.csv"):
        assert "differ from the inputs" in refused(checkpoint, argument, "--output", "list.csv")
    assert Path("list.csv").read_text() == "path\na.png\n"
    (picture,) = write_images("photos/sub/b.png")
    Path("twin.png").hardlink_to(picture)
    pixels = Path(picture).read_bytes()
    for argument in ("photos", "photos/**", "photos/sub/*.png", "list.csv"):
        for output in (picture, "twin.png", "photos/../photos/sub/b.png"):
            Path("list.csv").write_text(f"path\n{picture}\n")
            assert "differ from the inputs" in refused(checkpoint, argument, "--output", output)
    assert Path(picture).read_bytes() == pixels


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_a_redirected_stream_is_not_replaced(checkpoint, name):
    write_images("a.png")
    with open("log.txt", "w+") as file:
        file.write("head\n")
        file.flush()
        line = refused(checkpoint, "a.png", "--output", name.format(file.fileno()))
        assert "leave out the flag to write to stdout" in line
        file.write("tail\n")
    assert Path("log.txt").read_text() == "head\ntail\n"
    assert sorted(os.listdir()) == ["a.png", "log.txt"]


def test_full_disk_is_one_line():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(UserError, match="No space left"), open_output("/dev/full") as stream:
        stream.write("x" * 100_000)


# ---------------------------------------------------------------------------------------- streaming and memory


def test_rows_are_out_before_later_images_are_read(checkpoint, monkeypatch):
    write_images(*[f"photos/{number}.png" for number in range(9)])
    stdout = io.StringIO()
    real_read, rows_at_read = datasets.decoding.images.read_image, []

    def recording_read(path):
        rows_at_read.append(max(0, stdout.getvalue().count("\n") - 1))
        return real_read(path)

    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(datasets.decoding.images, "read_image", recording_read)
    run(checkpoint, "photos", "--batch-size", "1", "--workers", "1")
    assert len(rows_at_read) == 9
    assert all(rows >= read - READ_AHEAD for read, rows in enumerate(rows_at_read))


def test_memory_does_not_grow_with_the_number_of_images(checkpoint, monkeypatch, capsys):
    name = write_images("a.png")[0]
    views, most = [], [0]

    def counting(*arguments):
        prepared = _prepare(*arguments)
        views.append(weakref.ref(prepared[0]))
        most[0] = max(most[0], sum(reference() is not None for reference in views))
        return prepared

    monkeypatch.setattr("utils.scoring.prediction._prepare", counting)
    assert run(checkpoint, *[name] * 60, "--batch-size", "4", "--workers", "2")["n_images"] == 60
    # Each thread may still hold what it returned last.
    assert len(views) == 60 and most[0] <= 4 * (READ_AHEAD + 2) + 2


# ----------------------------------------------------------------------------------------------------- as a process


def test_usage_errors_come_without_torch(checkpoint):
    write_images("a.png")
    calls = [
        ["gone.png", "--checkpoint", checkpoint],
        ["a.png", "--checkpoint", "gone.pt"],
        ["a.png", "--checkpoint", checkpoint, "--output", "a.png/b"],
    ]
    code = f"""
import sys, predict
from utils.errors import UserError
for call in {calls!r}:
    try:
        predict.main(call)
    except UserError:
        assert "torch" not in sys.modules, call
    else:
        raise AssertionError(call)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr


def as_process(*arguments, pipe="", **options):
    """Run the script in a separate process with a stand-in for the detector, which avoids importing torch."""
    Path("stand_in.py").write_text("""
import numpy as np
import predict
from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from utils.args import run_script
from utils.scoring import prediction


def score(predictor, records, *_):
    for index, record in enumerate(records):
        bad = "bad" in record.path
        indices = np.arange(index, index + (not bad))
        yield indices, np.tile([[40.0], *[[np.nan]] * 5], len(indices)), [(index, "empty file")] * bad

point = OperatingPoint(thresholds={"balanced": 0.5})
prediction.open_predictor = lambda *_: prediction.Predictor(Geometry("crop", 32), point, None)
prediction.predict_records = score
run_script(predict.main)
""")
    command = shlex.join([sys.executable, "stand_in.py", *arguments])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {pipe}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=800,
        **options,
    )


def test_exit_codes_as_a_process(checkpoint):
    for paths, code in {"a.png\0b.png\0": 0, "a.png\0bad.png": 1, "": 2}.items():
        done = as_process("-", "--null", "--checkpoint", checkpoint, "--format", "json", input=paths)
        assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("stand_in.py: expected") and done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_ends_the_script_without_a_message(checkpoint):
    done = as_process("-", "--checkpoint", checkpoint, pipe="| head -n 2", input="a.png\n" * 50_000)
    assert done.returncode == 141, done.stderr  # with pipefail, as of other programs
    assert done.stdout == "path,p_fake,verdict,logit\na.png,1.0,fake,40.0\n"
    assert done.stderr == ""
