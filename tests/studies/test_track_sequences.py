"""studies/track_sequences.py: networks on face tracks, on videos whose order of frames tells the label."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.faces.finder import FaceFinder
from datasets.listing.records import Record
from datasets.listing.spec import open_records
from datasets.transforms import Geometry
from studies.track_sequences import main, read_tracks
from tests.clips import find, scene, write_clip
from utils.errors import UserError
from utils.files import read_json

COUNTS = {"train": 12, "valid": 6, "test": 6}
FLAGS = "--data clips:clips --model-args width=4 hidden=8 --image-size 16 --frames 4 --epochs 18 --lr 0.02".split()


@pytest.fixture(autouse=True)
def clips(in_empty_folder, monkeypatch):
    """Reals get brighter, fakes get darker: as a bag of frames they are the same."""
    monkeypatch.setattr(FaceFinder, "__call__", lambda _, image: find(image))
    levels = np.linspace(0.75, 1.15, 4)
    for split, count in COUNTS.items():
        for number in range(count):
            for name, order in (("real", levels), ("fake", levels[::-1])):
                frames = [scene((number % 3, 40 + 8 * number)) for _ in order]
                frames = [
                    (frame * level).clip(0, 255).astype(np.uint8) for frame, level in zip(frames, order, strict=True)
                ]
                write_clip(f"clips/{split}/{name}/{number}.avi", frames, fps=2)


def test_only_the_sequence_tells_an_order():
    result = main([*FLAGS, "--output-dir", "out"])
    auc = {row["network"]: row["auc"] for row in result["rows"]}
    assert auc["sequence"] > 0.9 and abs(auc["mean"] - 0.5) < 0.3 and abs(auc["frames"] - 0.5) < 0.3
    assert result["exit_code"] == 0 and read_json("out/sequences.json")["rows"] == result["rows"]
    assert len(list(csv.DictReader(Path("out/sequences.csv").read_text().splitlines()))) == 3


def test_the_longest_track_is_taken_and_videos_without_a_face_are_named(capsys):
    first, second = (Path(f"clips/valid/real/{number}.avi") for number in (0, 1))
    write_clip(first, [scene((0, 20), (2, 200)), *[scene((2, 200 - 2 * at)) for at in range(9)]], fps=2)
    write_clip(second, [scene()] * 4, fps=2)
    listing = open_records("clips:clips@limit=4", "valid", videos=True)
    listing = replace(
        listing, records=[Record(str(first), 0, "real"), Record(str(second), 0, "real"), *listing.records]
    )
    tracks = read_tracks(listing, FaceFinder(), Geometry("face", 16), 4)
    assert tracks.missing == [(str(second), "no face")] and f"left out: {second}: no face\n" in capsys.readouterr().err
    still = Geometry("face", 16)(scene((2, 200)), find(scene((2, 200)))[0].box)
    assert tracks.views.shape[1:] == (4, 16, 16, 3) and np.abs(tracks.views[0][0] - still.astype(float)).mean() < 12
    shutil.rmtree("clips/valid/fake")
    with pytest.raises(UserError, match="expected"):
        main([*FLAGS, "--output-dir", "out"])


def test_pictures_are_refused():
    with pytest.raises(UserError, match="expected --data clips:DIR, got demo"):
        main(["--data", "demo"])
