"""predict.py on videos: a row for each face, in place among pictures, and its timeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from datasets.faces.finder import FaceFinder
from tests.clips import find, scene, walk, write_clip, write_framing
from tests.conftest import write_images
from tests.predicting import csv_rows, refused, run

pytestmark = pytest.mark.usefixtures("in_empty_folder", "no_evaluation_figures")

FIND = FaceFinder.__call__
TRACK = ["track", "start_s", "end_s", "frames"]


@pytest.fixture(scope="module")
def checkpoint(_tiny_checkpoint_file, tmp_path_factory):
    return write_framing(_tiny_checkpoint_file, tmp_path_factory.mktemp("faces"))


@pytest.fixture(autouse=True)
def portraits_are_found(monkeypatch):
    monkeypatch.setattr(FaceFinder, "__call__", lambda _, image: find(image))


def test_each_face_has_a_row_and_the_most_suspicious_comes_first(checkpoint, capsys):
    write_clip("clip.mp4", [*walk(5, 0), *walk(10, 0, 4)])
    result = run(checkpoint, "clip.mp4")
    printed = capsys.readouterr()
    rows = csv_rows(printed.out)
    assert list(rows[0]) == ["path", "p_fake", "verdict", "logit", "framed", "finder", *TRACK]
    by_track = {row["track"]: row for row in rows}
    assert [by_track["1"][key] for key in TRACK[1:]] == ["0.0", "14.5", "30"]
    assert [by_track["2"][key] for key in TRACK[1:]] == ["5.0", "14.5", "20"]
    logits = [float(row["logit"]) for row in rows]
    assert logits[0] > logits[1] and {row["framed"] for row in rows} == {"face"}
    assert result["n_images"] == 1 and result["verdicts"][rows[0]["verdict"]] == 1
    assert printed.err.startswith("1 video: ")


def test_the_logit_of_a_track_is_the_mean_of_its_frames_in_the_timeline(checkpoint, rendered, capsys):
    write_clip("clip.mp4", walk(4, 0, 4))
    run(checkpoint, "clip.mp4", "--timeline", "lines", "--every", "0.25")
    rows = {row["track"]: row for row in csv_rows(capsys.readouterr().out)}
    lines = csv_rows(Path("lines/clip.mp4.csv").read_text())
    assert list(lines[0]) == ["time_s", "track", "left", "top", "width", "height", "logit", "p_fake"]
    assert [float(line["time_s"]) for line in lines] == [number / 4 for number in range(16) for _ in (1, 2)]
    for track, row in rows.items():
        logits = [float(line["logit"]) for line in lines if line["track"] == track]
        assert float(row["logit"]) == pytest.approx(np.mean(logits), rel=1e-9) and int(row["frames"]) == len(logits)
    assert float(lines[0]["left"]) < 0.2 < 0.5 < float(lines[1]["left"])
    assert Path("lines/clip.mp4.pdf").read_bytes().startswith(b"%PDF")
    assert Path("lines/clip.mp4.png").read_bytes().startswith(b"\x89PNG")


def test_a_still_video_gets_the_score_of_its_picture(checkpoint, capsys):
    still = scene((2, 100))
    write_clip("still.avi", [still] * 6)
    from PIL import Image

    from datasets.decoding.video import sample_frames

    Image.fromarray(next(sample_frames("still.avi")).image).save("still.png")
    run(checkpoint, "still.png", "still.avi", "--batch-size", "1")
    picture, video = csv_rows(capsys.readouterr().out)
    assert float(video["logit"]) == pytest.approx(float(picture["logit"]), abs=1e-5)
    assert [picture[key] for key in TRACK] == [""] * 4 and picture["framed"] == video["framed"] == "face"


def test_pictures_and_videos_keep_their_order_and_json_has_what_applies(checkpoint, capsys):
    write_images("a.png", "b.png", "c.png", "d.png")
    write_clip("one.mp4", walk(2, 0))
    shutil.copy("one.mp4", "photo.jpg")  # content decides
    inputs = ["a.png", "one.mp4", "b.png", "c.png", "photo.jpg", "one.mp4", "d.png"]
    result = run(checkpoint, *inputs, "--format", "json", "--metadata")
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == inputs and result["n_images"] == 7
    assert ["track" in row for row in rows] == [False, True, False, False, True, True, False]
    assert ["metadata" in row for row in rows] == ["track" not in row for row in rows]
    assert [row[key] for row in rows[1:2] for key in TRACK] == [1, 0.0, 1.5, 4]
    run(checkpoint, "a.png", "b.png", "c.png", "d.png")
    alone = csv_rows(capsys.readouterr().out)
    assert list(alone[0]) == ["path", "p_fake", "verdict", "logit", "framed", "finder"]
    together = [row["logit"] for row in rows if "track" not in row]
    assert together == pytest.approx([float(row["logit"]) for row in alone], rel=1e-4)


def test_a_detector_of_whole_pictures_judges_faces_of_videos_but_not_of_pictures(tiny_checkpoint, capsys):
    write_images("a.png")
    write_clip("clip.mp4", walk(2, 0, 4))
    run(str(tiny_checkpoint), "a.png", "clip.mp4")
    printed = capsys.readouterr()
    picture, *faces = csv_rows(printed.out)
    assert (picture["framed"], picture["finder"]) == ("", "") and [face["framed"] for face in faces] == ["face"] * 2
    assert printed.err.startswith("1 image and 1 video: ") and "without" not in printed.err
    run(str(tiny_checkpoint), "a.png", "clip.mp4", "--faces")
    rows = csv_rows(capsys.readouterr().out)
    assert [(row["face"], row["track"]) for row in rows] == [("1", ""), ("", rows[1]["track"]), ("", rows[2]["track"])]


def test_without_a_face_there_is_no_verdict_unless_whole_frames_are_asked_for(checkpoint, tiny_checkpoint, capsys):
    write_clip("empty.mp4", [scene()] * 8)
    for detector, flags in ((checkpoint, []), (str(tiny_checkpoint), ["--faces"])):
        result = run(detector, "empty.mp4", "--format", "json", "--metadata", "--timeline", "lines", *flags)
        (row,) = json.loads(capsys.readouterr().out)
        assert row.pop("finder") == "cascade" and result["exit_code"] == 0 and not list(Path("lines").iterdir())
        assert row == {"path": "empty.mp4", "p_fake": None, "verdict": "no face", "logit": None, "framed": None} | {
            "track": None
        }
    run(str(tiny_checkpoint), "empty.mp4")  # nobody asked for faces
    assert csv_rows(capsys.readouterr().out)[0]["framed"] == "whole"
    run(checkpoint, "empty.mp4", "--timeline", "lines", "--whole")
    printed = capsys.readouterr()
    (row,) = csv_rows(printed.out)
    assert (row["framed"], row["frames"]) == ("whole", "4")
    assert printed.err.endswith("1 without a face, scored as a whole\n")
    assert Path("lines/empty.mp4.csv").read_text().splitlines()[1].startswith("0.0,1,,,,,")


def test_a_folder_lists_videos_and_names_all_that_are_broken(checkpoint, capsys):
    write_images("in/a.png")
    good = write_clip("in/b.mp4", walk(2, 0)).read_bytes()
    Path("in/cut.mov").write_bytes(good[:-300])
    Path("in/sound.mp4").write_bytes(good.replace(b"vide", b"soun"))
    shutil.copy("/bin/sh", "in/program.mp4")
    Path("in/empty.webm").write_bytes(b"")
    Path("in/notes.txt").write_text("neither")
    write_clip("in/single.avi", walk(0.25, 0))
    assert run(checkpoint, "in", "--timeline", "lines")["exit_code"] == 1
    printed = capsys.readouterr()
    assert [row["path"] for row in csv_rows(printed.out)] == ["in/a.png", "in/b.mp4", "in/single.avi"]
    for name, reason in {
        "cut.mov": "truncated",
        "sound.mp4": "no video stream that can be decoded",
        "program.mp4": "not an image",
        "empty.webm": "empty file",
    }.items():
        assert f"unreadable: in/{name}: {reason}\n" in printed.err
    assert sorted(path.stem for path in Path("lines").glob("*.csv")) == ["b.mp4", "single.avi"]


def test_timelines_of_equal_names_do_not_replace_each_other(checkpoint):
    write_clip("x/clip.mp4", walk(1, 0))
    write_clip("y/clip.mp4", walk(1, 4))
    run(checkpoint, "x/clip.mp4", "y/clip.mp4", "--timeline", "lines")
    assert Path("lines/clip.mp4-1.csv").read_text() != Path("lines/clip.mp4-2.csv").read_text()


def test_more_frames_than_the_limit_are_spread_over_the_video(checkpoint, capsys):
    write_clip("clip.mp4", walk(20, 0, fps=4))
    run(checkpoint, "clip.mp4", "--max-frames", "5")
    (row,) = csv_rows(capsys.readouterr().out)
    assert [row[key] for key in TRACK] == ["1", "0.0", "16.0", "5"]


def test_refused_flags(checkpoint, capsys):
    write_images("a.png")
    assert "a video among the PATHs" in refused(checkpoint, "a.png", "--timeline", "lines")
    write_clip("clip.mp4", walk(1, 0))
    Path("file").write_text("")
    assert "--timeline" in refused(checkpoint, "clip.mp4", "--timeline", "file")
    for flag, value in (("--every", "0"), ("--every", "x"), ("--max-frames", "0")):
        with pytest.raises(SystemExit) as stopped:
            run(checkpoint, "clip.mp4", flag, value)
        assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_cascade_follows_a_portrait(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(FaceFinder, "__call__", FIND)
    pytest.importorskip("skimage")
    write_clip("clip.mp4", walk(4, 0))
    run(checkpoint, "clip.mp4")
    row = csv_rows(capsys.readouterr().out)[0]
    assert (row["framed"], row["finder"]) == ("face", "cascade") and int(row["frames"]) >= 6
