"""studies/demo_clips.py: clips of moving faces that every reader takes, with traces that flicker in the fakes only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.decoding.video import sample_frames
from datasets.demo_set.generate import Job
from datasets.listing.spec import open_records
from studies import demo_clips
from utils.errors import UserError

SIZE = 64


def frames(generator: str | None, index: int = 3) -> np.ndarray:
    return np.stack(list(demo_clips.frames_of(Job("", 0, index, "train", generator, SIZE), 4))).astype(int)


def test_the_set_is_read_as_clips(tmp_path, monkeypatch, capsys):
    drawn = np.zeros((SIZE, SIZE, 3), np.uint8)
    monkeypatch.setattr(demo_clips, "frames_of", lambda job, n: [drawn + 9 * at for at in range(n)])
    folder = tmp_path / "clips"
    flags = ["--n", "60", "--frames", "3", "--size", str(SIZE), "--output-dir", str(folder)]
    assert demo_clips.main(flags) == {"folder": str(folder)} and capsys.readouterr().out == f"clips {folder}\n"
    counts = {}
    for split in ("train", "valid", "test"):
        records = open_records(f"clips:{folder}", split, videos=True).records
        counts[split] = [sum(record.label == label for record in records) for label in (0, 1)]
        assert {record.generator for record in records} == {"real", "upsampled", "blended", "denoised"}
    assert counts == {"train": [21, 21], "valid": [3, 3], "test": [6, 6]}
    found = list(sample_frames(str(next(folder.glob("test/real/*.avi")))))
    assert [(frame.time, round(frame.image.mean() / 9)) for frame in found] == [(0, 0), (0.5, 1), (1, 2)]
    with pytest.raises(UserError, match="expected an empty or new --output-dir"):
        demo_clips.main(flags)
    with pytest.raises(UserError, match="even --size"):
        demo_clips.main([*flags[:-1], str(tmp_path / "other"), "--size", "65"])
    assert not list(Path(tmp_path / "other").iterdir())


def test_clips_are_the_same_each_time_and_differ_from_each_other():
    assert np.array_equal(frames(None), frames(None)) and not np.array_equal(frames(None), frames(None, 4))


@pytest.mark.parametrize("generator", ["upsampled", "blended", "denoised"])
def test_a_fake_differs_from_its_real_clip_anew_in_each_frame(generator):
    change = frames(generator) - frames(None)
    assert np.abs(change).mean() > 0.5
    steady = np.abs(np.diff(change, axis=0)).mean((1, 2, 3))
    assert (steady > 0.5).all()
