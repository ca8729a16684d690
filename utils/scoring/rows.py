"""The rows that predict.py reports, as CSV and JSON: one for each picture, one for each face in a video."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, TextIO

from datasets.records import Record

if TYPE_CHECKING:
    from models.operating_point import OperatingPoint
    from utils.distributed import ScoredBatch
    from utils.scoring.tracks import ScoredVideo

COLUMNS = ("path", "p_fake", "verdict", "logit")
TRACK_COLUMNS = ("track", "start_s", "end_s", "frames")

Row = dict[str, Any]  # the columns that apply to it; or path and error
Item = list[Row]  # the rows of an input; the first one tells the verdict on it


def columns_of(faces: bool, framed: bool, tracks: bool, metadata: bool) -> tuple[str, ...]:
    """The columns of a CSV file, which has those that apply to some of its rows."""
    return (
        *COLUMNS,
        *(("faces",) if faces else ()),
        *(("framed", "finder") if framed else ()),
        *(TRACK_COLUMNS if tracks else ()),
        *(("metadata",) if metadata else ()),
    )


def picture_rows(
    batches: Iterator[ScoredBatch],
    records: Sequence[Record],
    point: OperatingPoint,
    threshold: str | float,
    finder: str | None,
    with_faces: bool,
) -> Iterator[list[Item]]:
    """Turn each batch of ``predict_records`` into items of one row, in the order of the records."""
    for indices, (logits, faces), unreadable in batches:
        rows: dict[int, Row] = {index: {"path": records[index].path, "error": reason} for index, reason in unreadable}
        p_fake = point.p_fake(logits)
        columns = indices.tolist(), p_fake.tolist(), point.verdicts(p_fake, threshold), logits.tolist(), faces.tolist()
        for index, *values, n_faces in zip(*columns, strict=True):
            rows[index] = dict(zip(COLUMNS, (records[index].path, *values), strict=True))
            if with_faces:
                rows[index]["faces"] = int(n_faces)
            if finder:
                rows[index] |= {"framed": "face" if n_faces else "whole", "finder": finder}
        yield [[rows[index]] for index in sorted(rows)]


def video_rows(
    videos: Iterable[ScoredVideo], point: OperatingPoint, threshold: str | float, finder: str, with_faces: bool
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
        logits = np.array([float(track.logit) for track in tracks])
        p_fake = point.p_fake(logits)
        values = zip(
            [path] * len(tracks), p_fake.tolist(), point.verdicts(p_fake, threshold), logits.tolist(), strict=True
        )
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in values]
        for number, (row, track) in enumerate(zip(rows, tracks, strict=True), 1):
            if with_faces:
                row["faces"] = int(track.is_face)
            row |= {"framed": "face" if track.is_face else "whole", "finder": finder}
            interval = round(track.times[0], 3), round(track.times[-1], 3)
            row |= zip(TRACK_COLUMNS, (number, *interval, len(track.times)), strict=True)
        yield [[rows[at] for at in ranked(tracks)]]


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
