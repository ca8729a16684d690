"""evaluate.py on videos: one item per video, with the score that predict.py reports."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

import evaluate
import utils.scoring.tracks
from datasets.faces.finder import FaceFinder
from datasets.listing.records import Sampling
from datasets.listing.spec import open_records
from tests.clips import find, scene, walk, write_clip, write_framing
from tests.conftest import exit_and_stderr, write_images
from tests.predicting import csv_rows, run
from utils.errors import UserError
from utils.scoring.table import read_scores, read_sidecar

pytestmark = pytest.mark.usefixtures("in_empty_folder", "no_evaluation_figures")


@pytest.fixture(scope="module")
def checkpoint(_tiny_checkpoint_file, tmp_path_factory):
    return write_framing(_tiny_checkpoint_file, tmp_path_factory.mktemp("faces"))


@pytest.fixture(autouse=True)
def portraits_are_found(monkeypatch):
    monkeypatch.setattr(FaceFinder, "__call__", lambda _, image: find(image))


@pytest.fixture
def clips():
    """A folder ``clips/test/{real,fake}`` of six videos, a truncated one and a picture."""
    for number in range(6):
        frames = walk(2, number % 3 * 2, *((4,) if number == 5 else ()))
        write_clip(f"clips/test/{'fake' if number % 2 else 'real'}/{number}.mp4", frames)
    whole = Path("clips/test/real/0.mp4").read_bytes()
    Path("clips/test/fake/cut.mp4").write_bytes(whole[:-200])
    write_images("clips/test/real/picture.png")
    return Path("clips")


def evaluated(checkpoint, *flags):
    """The result of evaluate.py and the logit of each video by its path in the set."""
    fixed = ["--output-dir", "out", "--n-boot", "20", "--device", "cpu"]
    result = evaluate.main(["--checkpoint", checkpoint, *flags, *fixed])
    table = read_scores(result["scores"][0])
    return result, dict(zip(table.path, table.logit.tolist(), strict=True))


def test_each_video_is_one_item_with_the_logit_that_predict_reports(checkpoint, clips, capsys):
    result, logits = evaluated(checkpoint, "--data", "clips:clips")
    printed = capsys.readouterr()
    assert sorted(logits) == [f"test/{'fake' if n % 2 else 'real'}/{n}.mp4" for n in (1, 3, 5, 0, 2, 4)]
    assert result["exit_code"] == 1 and "unreadable: clips/test/fake/cut.mp4: truncated" in printed.err
    (row,) = result["rows"]
    assert (row["n_real"], row["n_fake"], row["unreadable"]) == (3, 3, 1)
    run(checkpoint, *(f"clips/{path}" for path in logits))
    decisive: dict[str, float] = {}
    for line in csv_rows(capsys.readouterr().out):
        decisive.setdefault(line["path"].removeprefix("clips/"), float(line["logit"]))
    assert logits == pytest.approx(decisive, abs=1e-5)
    assert len(set(logits.values())) == 3  # else equality would say nothing
    sidecar = read_sidecar(result["scores"][0])
    assert sidecar["finder"] == "cascade" and sidecar["n_images"] == 7


def test_frames_are_degraded_and_sampled_as_asked(checkpoint, clips, monkeypatch):
    Path("clips/test/fake/cut.mp4").unlink()
    _, clean = evaluated(checkpoint, "--data", "clips:clips@every=1")
    _, web = evaluated(checkpoint, "--data", "clips:clips@every=1", "--tiers", "web")
    assert web.keys() == clean.keys() and all(abs(web[path] - clean[path]) > 1e-4 for path in web)
    taken = []
    real = utils.scoring.tracks.sample_frames
    monkeypatch.setattr("utils.scoring.tracks.sample_frames", lambda *a: (taken.append(a[1]), real(*a))[1])
    evaluated(checkpoint, "--data", "clips:clips@every=1,max_frames=3,limit=2")
    assert taken == [Sampling(1.0, 3)] * 2


def test_two_detectors_and_pictures_can_be_evaluated_together(checkpoint, tiny_checkpoint, clips, image_folder):
    Path("clips/test/fake/cut.mp4").unlink()
    _, alone = evaluated(checkpoint, "--data", "clips:clips")
    fixed = ["--output-dir", "both", "--n-boot", "20", "--device", "cpu", "--no-score-cache"]
    result = evaluate.main(
        ["--checkpoint", checkpoint, str(tiny_checkpoint), "--data", "clips:clips", str(image_folder), *fixed]
    )
    tables = [read_scores(file) for file in result["scores"]]
    assert [len(table) for table in tables] == [6, 8, 6, 8] and result["exit_code"] == 0
    assert dict(zip(tables[0].path, tables[0].logit, strict=True)) == pytest.approx(alone, abs=1e-5)


def test_videos_without_a_face_are_counted(checkpoint, clips, capsys):
    write_clip("clips/test/real/empty.mp4", [scene()] * 8)
    evaluated(checkpoint, "--data", "clips:clips")
    assert "clips test: no face in 1 of 8 videos, scored as a whole\n" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train", "audit", "attack"])
def test_other_scripts_refuse_videos_in_one_line(script, checkpoint, clips, monkeypatch, capsys):
    main = importlib.import_module(script).main
    flags = {"train": ["--model", "cnn"], "audit": [], "attack": ["--checkpoint", checkpoint]}[script]
    code, text = exit_and_stderr(main, [*flags, "--data", "clips:clips", "--output-dir", "o"], monkeypatch, capsys)
    assert code == 2 and "expected pictures, got videos (clips:clips)" in text and text.count("\n") == 1
    assert "python -m studies.track_sequences trains on them" in text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("clips:clips@every=0", "every= with seconds, 0.01 or more"),
        ("clips:clips@every=x", "got every=x"),
        ("clips:clips@every=nan", "got every=nan"),
        ("clips:clips@max_frames=1.5", "max_frames= with a whole number"),
        ("clips:clips@max_frames=0", "got max_frames=0"),
        ("clips:empty", "expected videos (.mp4"),
        ("clips:gone", "expected a folder of videos, no such folder: gone"),
        ("only", "write clips:only"),
        ("clips@every=1", "'every'"),
    ],
)
def test_specs_that_are_refused(spec, said, clips):
    Path("empty/real").mkdir(parents=True)
    Path("only/real").mkdir(parents=True)
    shutil.copy("clips/test/real/0.mp4", "only/real/0.mp4")
    with pytest.raises(UserError) as error:
        open_records(spec, videos=True)
    assert said in str(error.value) and "\n" not in str(error.value)
