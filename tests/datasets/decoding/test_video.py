"""datasets/decoding/video.py: which frames of a clip are taken, their times, and files that are no good."""

from __future__ import annotations

import io
import shutil
import struct
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

import datasets.decoding.video
from datasets.decoding.containers import is_video
from datasets.decoding.images import UnreadableImage, read_image
from datasets.decoding.video import Sampling, sample_frames
from tests.clips import CODECS, retime, walk, write_clip

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def numbered(count: int) -> list[np.ndarray]:
    """Frames whose brightness tells their number."""
    step = 240 // count
    return [np.full((32, 64, 3), 8 + step * number, np.uint8) for number in range(count)]


def taken(path: Path, every: float, max_frames: int = 64, count: int = 40) -> list[tuple[float, int]]:
    """Times and numbers of the frames that are taken out of so many."""
    frames = sample_frames(str(path), Sampling(every, max_frames))
    return [(round(time, 3), round((float(image.mean()) - 6) / (240 // count))) for time, image in frames]


def reason(path: Path | str, **options: int) -> str:
    with pytest.raises(UnreadableImage) as error:
        list(sample_frames(str(path), **options))
    return str(error.value)


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_are_evenly_spaced_and_upright_rgb(suffix):
    clip = write_clip(f"clip{suffix}", numbered(40))
    assert is_video(str(clip))
    assert taken(clip, 1.0) == [(second, 4 * second) for second in range(10)]
    red = np.zeros((32, 64, 3), np.uint8)
    red[:16, :, 0] = 200  # above
    image = next(sample_frames(str(write_clip(f"red{suffix}", [red] * 3)))).image
    assert image[4, 30, 0] > 150 > 50 > image[4, 30, 2] and image[28, 30].max() < 50


@pytest.mark.parametrize("suffix", [*CODECS, "variable.mp4"])
def test_a_frame_is_found_again_by_its_time(suffix):
    clip = write_clip(f"clip{suffix}" if suffix in CODECS else suffix, numbered(80))
    if suffix not in CODECS:
        retime(clip, [1000 + 3000 * (number % 3) for number in range(80)])
    frames = list(sample_frames(str(clip), Sampling(0.01, 10_000)))
    assert len(frames) == 80
    for frame in (frames[0], frames[13], frames[57], frames[-1]):
        again = next(sample_frames(str(clip), Sampling(max_frames=1), start=round(frame.time, 3)))
        assert again.time == pytest.approx(frame.time) and np.array_equal(again.image, frame.image)
    assert frames[57].time > datasets.decoding.video.FAR  # there, it is sought


def test_an_open_file_is_as_good_as_a_path():
    clip = write_clip("clip.mp4", numbered(20))
    times = [frame.time for frame in sample_frames(io.BytesIO(clip.read_bytes()), Sampling(1.0))]
    assert times == [time for time, _ in taken(clip, 1.0, count=20)]
    with pytest.raises(UnreadableImage, match="truncated"):
        next(sample_frames(io.BytesIO(clip.read_bytes()[:-200])))


def test_few_frames_cover_the_whole_clip():
    clip = write_clip("clip.avi", numbered(40))
    assert taken(clip, 0.5, 4) == [(0, 0), (2.5, 10), (5, 20), (7.5, 30)]
    assert len(taken(clip, 0.01)) == 40


def test_far_frames_are_reached_by_seeking(monkeypatch):
    clip = write_clip("clip.mp4", numbered(60), fps=2)
    wanted = taken(clip, 7.0, count=60)
    assert [number for _, number in wanted] == [0, 14, 28, 42, 56]
    monkeypatch.setattr(datasets.decoding.video, "FAR", 3.0)
    assert taken(clip, 7.0, count=60) == wanted


def test_times_of_a_variable_frame_rate_are_those_of_the_container():
    clip = write_clip("clip.mp4", numbered(20))
    retime(clip, [16384 if number % 5 == 4 else 2048 for number in range(20)])  # 1 s and 1/8 s
    assert taken(clip, 1.0, count=20) == [(0, 0), (1.5, 5), (2, 9), (3, 10), (4.5, 15), (5, 19)]


def test_absurd_rates_end(monkeypatch):
    """A search for frames that are never reached must not repeat itself."""
    clip = write_clip("clip.avi", numbered(40))
    data, rate = bytearray(clip.read_bytes()), struct.pack("<II", 2**31 - 1, 1000)
    at = data.index(b"strh") + 28
    data[at : at + 8] = rate
    clip.write_bytes(data)
    calls = []
    grab = cv2.VideoCapture.grab
    monkeypatch.setattr(cv2.VideoCapture, "grab", lambda capture: (calls.append(1), grab(capture))[1])
    assert 1 <= len(list(sample_frames(str(clip)))) <= 40 and len(calls) <= 100


def test_a_container_without_a_duration_is_measured_first(monkeypatch):
    clip = write_clip("clip.mkv", numbered(40))
    monkeypatch.setattr(datasets.decoding.video, "_stated_duration", lambda capture: 0.0)
    assert taken(clip, 0.1, 4) == [(0, 0), (2.5, 10), (5, 20), (7.5, 30)]


def test_a_clip_of_one_frame_has_one():
    assert taken(write_clip("one.mp4", numbered(1)), 0.5, count=1) == [(0, 0)]


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_files_say_so(suffix, share):
    clip = write_clip(f"clip{suffix}", walk(4, 0))
    data = clip.read_bytes()
    clip.write_bytes(data[: int(share * len(data))])
    assert reason(clip) == "truncated"


@pytest.mark.parametrize("suffix", CODECS)
def test_a_file_that_grows_while_it_is_read_has_the_frames_of_its_beginning(suffix):
    clip = write_clip(f"clip{suffix}", numbered(40))
    times, data = [], clip.read_bytes()
    for frame in sample_frames(str(clip), Sampling(1.0)):
        times.append(round(frame.time, 3))
        with clip.open("ab") as file:
            file.write(data)
    assert times[:10] == list(range(10)) and len(times) <= 20


def test_sound_without_pictures_is_no_video_stream():
    clip = write_clip("sound.mp4", numbered(4))
    clip.write_bytes(clip.read_bytes().replace(b"vide", b"soun"))  # the type of its only track
    assert is_video(str(clip)) and reason(clip) == "no video stream that can be decoded"


def test_a_video_among_pictures_is_named():
    with pytest.raises(UnreadableImage, match="a video, not an image"):
        read_image(write_clip("clip.jpg.mp4", numbered(4)))


def test_other_files_are_no_videos(tmp_path):
    shutil.copy("/bin/sh", "renamed.mp4")
    Path("list.m3u8").write_text("#EXTM3U\n#EXTINF:5,\nclip.ts\n#EXT-X-ENDLIST\n")
    Path("empty.mp4").write_bytes(b"")
    with wave.open("sound.mp4", "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(100))
    heic = struct.pack(">I", 24) + b"ftypheic" + bytes(12)
    Path("photo.mov").write_bytes(heic)
    names = ["renamed.mp4", "list.m3u8", "empty.mp4", "sound.mp4", "photo.mov", "missing.mp4", str(tmp_path)]
    assert not any(map(is_video, names))
    assert reason("missing.mp4") == "cannot be read (No such file or directory)"


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    whole = {suffix: write_clip(f"clip{suffix}", numbered(6)).read_bytes() for suffix in CODECS}
    for suffix, data in whole.items():
        for number in range(12):
            damaged = bytearray(data)
            for place in rng.integers(0, min(len(data), 800) if number % 2 else len(data), 8):
                damaged[place] = rng.integers(256)
            Path(f"damaged{suffix}").write_bytes(damaged)
            try:
                frames = list(sample_frames(f"damaged{suffix}"))
            except UnreadableImage as error:
                assert "\n" not in str(error)
            else:
                assert 1 <= len(frames) <= 64


def test_large_frames_are_refused_before_one_is_decoded(monkeypatch):
    assert reason(write_clip("tiny.avi", [np.zeros((8, 8, 3), np.uint8)] * 2)).startswith("too small for a verdict")
    clip = write_clip("clip.mp4", walk(1, 0))
    monkeypatch.setattr(cv2.VideoCapture, "grab", None)
    assert reason(clip, max_pixels=320 * 180 - 1) == "too large: 320 x 180 pixels, the limit is 57,599"


def test_frames_are_decoded_when_they_are_asked_for():
    frames = sample_frames(str(write_clip("clip.mp4", numbered(40))), Sampling(0.25))
    assert next(frames).time == 0 and next(frames).time == 0.25
    frames.close()
