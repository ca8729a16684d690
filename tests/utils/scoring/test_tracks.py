"""utils/scoring/tracks.py: faces are followed through a video, and their frames decide together."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest

import utils.scoring.tracks
from datasets.decoding.images import UnreadableImage
from datasets.faces.framing import Box
from datasets.listing.records import Sampling
from datasets.transforms import Geometry
from tests.clips import HEIGHT, WIDTH, find, scene, walk, write_clip
from utils.scoring.tracks import Track, follow, highest, score_video

pytestmark = pytest.mark.usefixtures("in_empty_folder")

ALL = Sampling(0.01, 1000)


def box(left: float, top: float = 0.1) -> Box:
    return Box(left, top, 0.2, 0.3)


def brightness(views: np.ndarray) -> np.ndarray:
    return views.mean((1, 2, 3))


def tracks_of(path: str, sampling: Sampling = ALL, finder=find, score=brightness, batch_size: int = 32) -> list[Track]:
    geometry = Geometry("face", 32)
    return score_video(str(path), sampling, finder, geometry, score, batch_size)


# ------------------------------------------------------------------------------------------------------- following


def test_moving_faces_keep_their_numbers_in_any_order():
    frames = [[box(0.1 + 0.02 * at), box(0.7 - 0.02 * at)] for at in range(8)]
    assert follow(frames) == [[0, 1]] * 8
    assert follow([boxes[:: 1 - 2 * (at % 2)] for at, boxes in enumerate(frames)]) == [[0, 1], [1, 0]] * 4


def test_a_face_may_be_missed_for_a_while_but_not_longer():
    there, gone = [box(0.1)], []
    assert follow([there, gone, gone, there], gap=2) == [[0], [], [], [0]]
    assert follow([there, gone, gone, gone, there], gap=2) == [[0], [], [], [], [1]]
    assert follow([gone, there, [box(0.6)], there]) == [[], [0], [1], [0]]


def test_two_faces_never_share_a_number():
    assert follow([[box(0.11)], [box(0.14), box(0.1)], [box(0.14), box(0.1)]]) == [[0], [1, 0], [1, 0]]
    assert follow([[box(0.1)], [box(0.5), box(0.1)]]) == [[0], [1, 0]]  # the closest, not the first
    assert follow([]) == [] and follow([[], []]) == [[], []]


# --------------------------------------------------------------------------------------------------------- scoring


def test_each_face_has_a_track_with_its_own_logits():
    clip = write_clip("clip.avi", walk(5, 0, 4))
    left, right = tracks_of(clip)
    assert left.times == right.times == [number / 4 for number in range(20)]
    assert all(one.left < other.left for one, other in zip(left.boxes, right.boxes, strict=True))
    alone = [tracks_of(write_clip(f"{who}.avi", walk(5, who)))[0] for who in (0, 4)]
    assert left.logit == pytest.approx(alone[0].logit, abs=2) and right.logit == pytest.approx(alone[1].logit, abs=2)
    assert abs(left.logit - right.logit) > 8  # else equality would say nothing
    assert left.logit == pytest.approx(left.logits.mean())


def test_a_person_who_leaves_and_comes_back_elsewhere_has_two_tracks():
    frames = [scene((0, 10))] * 6 + [scene()] * 4 + [scene((0, 200))] * 5
    first, second = tracks_of(write_clip("clip.avi", frames))
    assert (first.times[0], first.times[-1]) == (0, 1.25) and (second.times[0], second.times[-1]) == (2.5, 3.5)
    assert len(first.boxes) == len(first.logits) == 6 and len(second.logits) == 5


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_and_chunks_change_nothing(monkeypatch, batch_size):
    clip = write_clip("clip.avi", [scene()] * 3 + walk(3, 0, 4))
    whole = tracks_of(clip)
    monkeypatch.setattr(utils.scoring.tracks, "CHUNK", 2)
    parts = tracks_of(clip, batch_size=batch_size)
    assert [track.times for track in parts] == [track.times for track in whole]
    assert [track.logits.tolist() for track in parts] == [track.logits.tolist() for track in whole]


def test_without_a_face_whole_frames_are_scored():
    clip = write_clip("clip.avi", [scene(), np.full((HEIGHT, WIDTH, 3), 200, np.uint8)] * 4)
    (track,) = tracks_of(clip, finder=lambda image: [])
    assert not track.is_face and track.boxes == [None] * 8 and len(track.times) == 8
    assert track.logits == pytest.approx([90, 200] * 4, abs=3)


def test_whole_frames_do_not_count_where_a_face_appears_later():
    scored = []
    clip = write_clip("clip.avi", [scene()] * 20 + walk(2, 0))
    tracks = tracks_of(clip, score=lambda views: (scored.append(len(views)), brightness(views))[1])
    assert [len(track.times) for track in tracks] == [8] and tracks[0].is_face
    assert sum(scored) == 16 + 8  # the first chunk, in which there was none


def test_several_detectors_score_the_same_tracks():
    clip = write_clip("clip.avi", walk(3, 0, 4))
    both = tracks_of(clip, score=lambda views: np.stack([brightness(views), -brightness(views)]))
    for one, two in zip(tracks_of(clip), both, strict=True):
        assert two.logits.tolist() == [one.logits.tolist(), (-one.logits).tolist()]
        assert two.logit.tolist() == [one.logit, -one.logit]


def test_the_most_suspicious_long_track_decides():
    tracks = [
        Track([0.0] * n, [box(0.1)] * n, np.full((2, n), [[high], [-high]])) for n, high in ((2, 9), (3, 1), (4, 2))
    ]
    assert highest(tracks).tolist() == [2, -1] and highest(tracks[:1]).tolist() == [9, -9]


def test_frames_are_not_kept(monkeypatch):
    alive: list[weakref.ref] = []
    most = [0]
    lock = threading.Lock()

    def counting(image):
        with lock:
            alive.append(weakref.ref(image))
            most[0] = max(most[0], sum(reference() is not None for reference in alive))
        return find(image)

    tracks_of(write_clip("clip.avi", walk(12, 0)), finder=counting)
    assert len(alive) == 48 and most[0] <= 3


def test_what_cannot_be_read_is_an_unreadable_image():
    clip = write_clip("clip.avi", walk(2, 0))
    clip.write_bytes(clip.read_bytes()[:-500])
    with pytest.raises(UnreadableImage, match="truncated"):
        tracks_of(clip)
