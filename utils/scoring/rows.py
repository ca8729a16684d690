"""The rows that predict.py reports, as CSV and JSON: one for each picture, or for each face in a picture or video."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, TextIO

from datasets.listing.records import Record

if TYPE_CHECKING:
    import numpy as np

    from models.operating_point import OperatingPoint
    from utils.distributed import ScoredBatch
    from utils.scoring.tracks import ScoredVideo

COLUMNS = ("path", "p_fake", "verdict", "logit")
FACE_COLUMNS = ("face", "left", "top", "width", "height", "confidence")
TRACK_COLUMNS = ("track", "start_s", "end_s", "frames")

NO_FACE = "no face"

Row = dict[str, Any]  # the columns that apply to it; or path and error
Item = list[Row]  # the rows of an input; the first one tells the verdict on it


def columns_of(faces: bool, framed: bool, tracks: bool, metadata: bool) -> tuple[str, ...]:
    """The columns of a CSV file, which has those that apply to some of its rows."""
    return (
        *COLUMNS,
        *(("framed", "finder") if framed else ()),
        *(FACE_COLUMNS if faces else ()),
        *(TRACK_COLUMNS if tracks else ()),
        *(("metadata",) if metadata else ()),
    )


def picture_rows(
    batches: Iterator[ScoredBatch],
    records: Sequence[Record],
    point: OperatingPoint,
    threshold: str | float | None,
    finder: str | None,
    with_faces: bool,
) -> Iterator[list[Item]]:
    """Turn each batch of ``predict_records`` into items in the order of the records.

    The most suspicious face of a picture comes first; its faces are numbered from 1, the largest first.
    """
    import numpy as np

    for indices, columns, unreadable in batches:
        items = {index: [{"path": records[index].path, "error": reason}] for index, reason in unreadable}
        for index in dict.fromkeys(indices.tolist()):
            logits, *places = columns[:, indices == index]
            rows = _scored_rows(records[index].path, logits, point, threshold)
            faces = [_face(number, *place) for number, place in enumerate(np.transpose(places).tolist(), 1)]
            for row, face in zip(rows, faces, strict=True):
                if finder:
                    row |= {"framed": "face" if face else "whole" if row["logit"] is not None else None}
                    row["finder"] = finder
                row |= face if with_faces else {}
            items[index] = [rows[at] for at in np.argsort(-logits, kind="stable")]
        yield [items[index] for index in sorted(items)]


def _face(number: int, left: float, top: float, width: float, height: float, confidence: float) -> Row:
    """The columns of a face, none without a box."""
    if math.isnan(left):
        return {}
    values = number, round(left), round(top), round(width), round(height)
    return dict(zip(FACE_COLUMNS, (*values, None if math.isnan(confidence) else confidence), strict=True))


def _scored_rows(path: str, logits: np.ndarray, point: OperatingPoint, threshold: str | float | None) -> list[Row]:
    """A row for each logit; one of NaN stands for a picture in which no face was found."""
    if math.isnan(logits[0]):
        return [dict(zip(COLUMNS, (path, None, NO_FACE, None), strict=True))]
    p_fake = point.p_fake(logits)
    values = zip(p_fake.tolist(), point.verdicts(p_fake, threshold), logits.tolist(), strict=True)
    return [dict(zip(COLUMNS, (path, *row), strict=True)) for row in values]


def video_rows(
    videos: Iterable[ScoredVideo], point: OperatingPoint, threshold: str | float | None, finder: str
) -> Iterator[list[Item]]:
    """Turn each video of ``predict_videos`` into an item, with a row for each face and the most suspicious one first.

    Faces are numbered from 1 in the order of their appearance. Short tracks come after all others.
    """
    import numpy as np

    from utils.scoring.tracks import ranked

    for path, tracks in videos:
        if isinstance(tracks, str):
            yield [[{"path": path, "error": tracks}]]
            continue
        logits = np.array([float(track.logit) for track in tracks] or [math.nan])
        rows = _scored_rows(path, logits, point, threshold)
        for row in rows:
            row |= {"framed": None, "finder": finder, "track": None}
        for number, (row, track) in enumerate(zip(rows, tracks, strict=False), 1):  # without a face: no track
            row["framed"] = "face" if track.is_face else "whole"
            interval = round(track.times[0], 3), round(track.times[-1], 3)
            row |= zip(TRACK_COLUMNS, (number, *interval, len(track.times)), strict=True)
        yield [[rows[at] for at in ranked(tracks)] or rows]


def in_order(
    records: Sequence[Record],
    videos: Sequence[str],
    score_pictures: Callable[[Sequence[Record]], Iterator[list[Item]]],
    video_items: Iterator[list[Item]],
) -> Iterator[list[Item]]:
    """Yield the rows of pictures and videos in the order of the records; consecutive pictures share batches."""
    known = set(videos)
    for is_run_of_videos, run in groupby(records, lambda record: record.path in known):
        found = list(run)
        yield from islice(video_items, len(found)) if is_run_of_videos else score_pictures(found)


def write_csv(stream: TextIO, batches: Iterator[Item], columns: Sequence[str]) -> None:
    """Write readable inputs as CSV, columns that do not apply empty; floats read back bit-equal."""
    writer = csv.writer(stream, lineterminator="\n")
    # csv does not quote a carriage return unless it is part of the line end, but reads it as one.
    quoting_writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(columns)
    for rows in batches:
        for row in rows:
            if "error" not in row:
                chosen = quoting_writer if "\r" in row["path"] else writer
                chosen.writerow([row.get(column, "") for column in columns])
        stream.flush()


def write_json(stream: TextIO, batches: Iterator[Item], columns: Sequence[str]) -> None:
    """Write all inputs as a JSON array, one element per line, as they come."""
    separator = "[\n"
    for rows in batches:
        for row in rows:
            stream.write(separator + json.dumps(row))
            separator = ",\n"
        stream.flush()
    stream.write("\n]\n" if separator == ",\n" else "[]\n")
    stream.flush()


WRITERS = {"csv": write_csv, "json": write_json}
