"""Videos: the faces in them, each with a verdict, its score over time, and its most suspicious frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from datasets.faces.framing import Box
from utils.scoring.rows import NO_FACE
from utils.scoring.tracks import Scored, Track, ranked, tracks_of
from utils.serving.offers import Offer
from utils.serving.pictures import in_json, square_dict
from utils.serving.preparation import PreparedFrame, Still

NOTHING: dict[str, Any] = {"p_fake": None, "verdict": NO_FACE, "logit": None}  # scores where no face was found
Size = tuple[int, int]
Stills = dict[tuple[float, Box | None], tuple[Still, Size]]  # with the frame's, by its time and the face in it


def judge_video(
    chunks: Iterable[list[PreparedFrame]], offer: Offer, score: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Score the frames of a video as they come, then its faces; those that predict.py lists first come first.

    Without any face and views of whole frames, the verdict is ``no face``.
    """
    frames: list[Scored] = []
    stills: Stills = {}
    for chunk in chunks:
        logits = score(np.concatenate([frame.views for frame in chunk]))
        parts = np.split(logits, np.cumsum([len(frame.views) for frame in chunk])[:-1])
        for frame, part in zip(chunk, parts, strict=True):
            frames.append((frame.time, frame.boxes, part))
            found = [(still, frame.size) for still in frame.stills]
            stills |= zip([(frame.time, box) for box in frame.boxes or (None,)], found, strict=False)
    tracks = tracks_of(frames) if stills else []
    rows = [{"track": at + 1, **_track_row(tracks[at], offer, stills)} for at in ranked(tracks)]
    first = {key: rows[0][key] for key in NOTHING} if rows else NOTHING
    return {**first, "seconds": round(frames[-1][0], 3), "frames": len(frames), "tracks": rows}


def _track_row(track: Track, offer: Offer, stills: Stills) -> dict[str, Any]:
    (answer,) = offer.answers(np.array([float(track.logit)]))
    worst = int(track.logits.argmax())
    points = zip(track.times, offer.operating_point.p_fake(track.logits).tolist(), strict=True)
    box = track.boxes[worst]
    still, size = stills[track.times[worst], box]
    return {
        "start_s": round(track.times[0], 3),
        "end_s": round(track.times[-1], 3),
        "frames": len(track.times),
        **answer,
        "framed": "face" if track.is_face else "whole",
        "points": [[round(time, 3), p_fake] for time, p_fake in points],
        "face": square_dict(box, size, offer.geometry) if box else None,
        "picture": in_json(still.data, still.shape),
    }
