"""Videos, scored by their faces: each face is followed through the sampled frames, and its frames decide together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from datasets.decoding.video import sample_frames
from datasets.faces.finder import Finder
from datasets.faces.framing import Box
from datasets.faces.search import overlap
from datasets.listing.records import Sampling
from datasets.listing.storage import UnreadableImage
from utils.distributed import gather, team

OVERLAP = 0.3  # of the boxes of one face in neighbouring samples: intersection over union
GAP = 2  # samples in which a face may be turned away or hidden
LONG = 3  # frames; a shorter track may be a mistake of the finder
CHUNK = 16  # frames that are prepared while others are scored

View = Callable[[np.ndarray, Box | None], np.ndarray]  # what a detector sees of a face, or of a whole frame (None)
Score = Callable[[np.ndarray], np.ndarray]  # from views (N, ...) to logits (..., N)
Prepared = tuple[float, list[Box], np.ndarray]  # a frame: its time, its faces and their views, or that of the whole
Scored = tuple[float, list[Box], np.ndarray]  # the same with logits (..., N) instead of views


@dataclass(frozen=True)
class Track:
    """One face in the frames that show it, or all frames of a video without a face.

    Attributes:
        times: of the N frames, in s, increasing.
        boxes: of the face; None for whole frames.
        logits: ``(..., N)`` float64.
    """

    times: list[float]
    boxes: list[Box | None]
    logits: np.ndarray

    @property
    def logit(self) -> np.ndarray:
        """The mean over the frames, ``(...)``."""
        return self.logits.mean(-1)

    @property
    def is_face(self) -> bool:
        return self.boxes[0] is not None

    @property
    def is_long(self) -> bool:
        """Whether the track may decide on a video that has several; without a long one, short ones do."""
        return len(self.times) >= LONG


ScoredVideo = tuple[str, list[Track] | str]  # its path, and its tracks (none: no face) or why it is unreadable


def highest(tracks: Sequence[Track]) -> np.ndarray:
    """The logit of a video, ``(...)``: that of its most suspicious track."""
    return np.max([track.logit for track in tracks if track.is_long] or [track.logit for track in tracks], axis=0)


def follow(frames: Sequence[Sequence[Box]], gap: int = GAP) -> list[list[int]]:
    """Number the faces in consecutive frames from 0, so that boxes of one face have the same number.

    A box takes the number of the latest box that it overlaps most, if that was seen at most ``gap`` frames before the
    previous one and no other box overlaps it more; else its face is new.
    """
    latest: list[tuple[int, Box]] = []  # the frame and box of each number
    numbers: list[list[int]] = []
    for at, boxes in enumerate(frames):
        pairs = [
            (overlap(box, old), place, number)
            for place, box in enumerate(boxes)
            for number, (seen, old) in enumerate(latest)
            if at - seen <= gap + 1
        ]
        found: dict[int, int] = {}  # number by place
        for shared, place, number in sorted(pairs, reverse=True):
            if shared >= OVERLAP and place not in found and number not in found.values():
                found[place] = number
        for place, box in enumerate(boxes):
            if place in found:
                latest[found[place]] = at, box
            else:
                found[place] = len(latest)
                latest.append((at, box))
        numbers.append([found[place] for place in range(len(boxes))])
    return numbers


def score_video(
    path: str, sampling: Sampling, finder: Finder, view: View, score: Score, batch_size: int = 32
) -> list[Track]:
    """The faces of a video in the order of their appearance; without any, one track of its whole frames.

    Frames are decoded, searched and cut in a thread while others are scored, and never kept. Raises UnreadableImage.
    """
    return tracks_of(list(_scored(_prepared(path, sampling, finder, view), score, batch_size)))


def tracks_of(frames: Sequence[Scored]) -> list[Track]:
    """The faces in the frames of a video in the order of their appearance; without any, one track of whole frames."""
    if not any(boxes for _, boxes, _ in frames):
        return [Track([time for time, *_ in frames], [None] * len(frames), np.concatenate([f[2] for f in frames], -1))]
    tracks: dict[int, tuple[list[float], list[Box | None], list[np.ndarray]]] = {}
    for (time, boxes, scored), numbers in zip(frames, follow([boxes for _, boxes, _ in frames]), strict=True):
        for place, number in enumerate(numbers):
            times, places, columns = tracks.setdefault(number, ([], [], []))
            times.append(time)
            places.append(boxes[place])
            columns.append(scored[..., place])
    return [Track(times, places, np.stack(columns, -1)) for times, places, columns in tracks.values()]


def ranked(tracks: Sequence[Track]) -> list[int]:
    """The indices of tracks, the most suspicious first; short ones come after all others."""
    return sorted(range(len(tracks)), key=lambda at: (tracks[at].is_long, float(tracks[at].logit)), reverse=True)


def score_videos(paths: Sequence[str], score: Callable[[str], list[Track]]) -> Iterator[ScoredVideo]:
    """Score videos one after the other, in order.

    Under torchrun each process scores every n-th video, and all of them yield all results.
    """

    def judge(path: str) -> list[Track] | str:
        try:
            return score(path)
        except UnreadableImage as error:
            return str(error)

    for start in range(0, len(paths), team.size):
        block = paths[start : start + team.size]
        found = gather(judge(block[team.rank]) if team.rank < len(block) else None)
        yield from zip(block, found, strict=False)  # the last block may be shorter


def _prepared(path: str, sampling: Sampling, finder: Finder, view: View) -> Iterator[list[Prepared]]:
    """Chunks of frames, each prepared while the caller works on the one before."""
    frames = sample_frames(path, sampling)

    def prepare() -> list[Prepared]:
        chunk = []
        for time, image in islice(frames, CHUNK):
            boxes = [face.box for face in finder(image)]
            chunk.append((time, boxes, np.stack([view(image, box) for box in boxes or (None,)])))
        return chunk

    pool = ThreadPoolExecutor(1)
    try:
        ahead = pool.submit(prepare)
        while chunk := ahead.result():
            ahead = pool.submit(prepare)
            yield chunk
    finally:  # without waiting: the garbage collector may close a generator where a thread must not be joined
        pool.shutdown(wait=False)


def _scored(chunks: Iterator[list[Prepared]], score: Score, batch_size: int) -> Iterator[Scored]:
    """Replace views by logits; those of whole frames are not needed, and are empty, once a face was found."""
    has_face = False
    for chunk in chunks:
        has_face = has_face or any(boxes for _, boxes, _ in chunk)
        counts = [len(views) if boxes or not has_face else 0 for _, boxes, views in chunk]
        views = np.concatenate([views[:count] for (_, _, views), count in zip(chunk, counts, strict=True)])
        blocks = [views[first : first + batch_size] for first in range(0, len(views), batch_size)]
        logits = np.concatenate([score(block) for block in blocks], -1) if blocks else np.empty(0)
        parts = np.split(logits, np.cumsum(counts)[:-1], -1)
        for (time, boxes, _), part in zip(chunk, parts, strict=True):
            yield time, boxes, part
