"""predict.py --save-case: pictures with their right answers become a data set that evaluate.py scores."""

import os
import threading
from pathlib import Path

import pytest

import calibrate
import evaluate
import predict
from tests.clips import walk, write_clip
from tests.conftest import exit_and_stderr, write_images
from tests.predicting import csv_rows, refused, run
from utils.cases import LIST_NAME
from utils.scoring.table import read_scores

pytestmark = pytest.mark.usefixtures("in_empty_folder", "no_evaluation_figures")


def test_saved_cases_are_scored_and_calibrate_a_detector(tiny_checkpoint, monkeypatch, capsys):
    checkpoint = str(tiny_checkpoint)
    monkeypatch.setattr("utils.checkpoint_files.RELEASE_FILE", tiny_checkpoint)  # what evaluate.py takes by default
    photos = write_images(*(f"photos/{number}.png" for number in range(6)))
    Path("photos/broken.png").write_bytes(b"no picture")
    result = run(checkpoint, *photos[:3], "photos/broken.png", "--save-case", "cases", "--label", "fake")
    printed = capsys.readouterr()
    assert result["exit_code"] == 1 and printed.err.splitlines()[-2] == "cases/cases.csv: 3 pictures saved as fake"
    run(checkpoint, *photos[2:], "--save-case", "cases", "--label", "real", "--format", "json")
    run(checkpoint, *photos)
    wanted = {row["path"]: float(row["logit"]) for row in csv_rows(capsys.readouterr().out.rpartition("]\n")[2])}

    flags = ["--data", f"csv:cases/{LIST_NAME}", "--n-boot", "20", "--device", "cpu", "--output-dir", "out"]
    evaluated = evaluate.main(flags)
    (row,) = evaluated["rows"]
    assert (row["n_real"], row["n_fake"], row["unreadable"]) == (4, 2, 0)  # the third picture was fake at first
    table = read_scores(evaluated["scores"][0])
    logits = dict(zip(table.path, table.logit.tolist(), strict=True))
    by_bytes = {Path("cases", name).read_bytes(): logit for name, logit in logits.items()}
    assert {path: by_bytes[Path(path).read_bytes()] for path in photos} == pytest.approx(wanted, abs=1e-5)
    assert {*os.listdir("cases")} == {LIST_NAME, *logits}
    fitted = calibrate.main(["--checkpoint", checkpoint, "--from-scores", *evaluated["scores"], "--output-dir", "mine"])
    assert {(row["dataset"], row["label"], row["n"]) for row in fitted["rows"]} == {
        ("cases", "real", 4),
        ("cases", "fake", 2),
    }


def test_refused_before_any_work(tiny_checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("utils.scoring.prediction.open_predictor", None)
    (photo,) = write_images("photo.png")
    write_clip("clip.mp4", walk(1, 0))
    Path("file").write_text("")
    Path("damaged").mkdir()
    Path("damaged", LIST_NAME).write_text("who knows")
    for flags, reason in (
        ([photo, "--save-case", "file", "--label", "fake"], "expected --save-case to be a writable folder, got 'file'"),
        ([photo, "--save-case", "damaged", "--label", "fake"], "expected the columns path,label,generator in damaged"),
        ([photo, "--save-case", "cases"], "expected --save-case DIR together with --label"),
        ([photo, "--label", "real"], "expected --save-case DIR together with --label"),
        ([photo, "clip.mp4", "--save-case", "cases", "--label", "real"], "got the video clip.mp4"),
    ):
        code, error = exit_and_stderr(predict.main, [*flags, "--checkpoint", tiny_checkpoint], monkeypatch, capsys)
        assert code == 2 and reason in error and error.count("\n") == 1
    assert not Path("cases").exists()


def test_a_pipe_cannot_be_a_case(tiny_checkpoint):
    (photo,) = write_images("photo.png")
    read_end, write_end = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(write_end, Path(photo).read_bytes()), os.close(write_end)))
    writer.start()
    pipe = f"/dev/fd/{read_end}"
    assert "cannot be read twice" in refused(str(tiny_checkpoint), pipe, "--save-case", "cases", "--label", "real")
    writer.join()
    os.close(read_end)
