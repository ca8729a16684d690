"""The timeline of a video: the score of each face over time, as a CSV file and a figure."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.operating_point import OperatingPoint
from utils.figures import GREY, legend_below, line_style, name_text, new_figure, save_figure, styled
from utils.files import atomic_write_text, shortened
from utils.scoring.tracks import ScoredVideo, Track
from utils.tables import unique_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("time_s", "track", "left", "top", "width", "height", "logit", "p_fake")
NAMED = 8  # tracks in the legend, as many as there are distinct styles


def write_timelines(
    videos: Iterable[ScoredVideo],
    paths: Sequence[str],
    folder: Path,
    point: OperatingPoint,
    threshold: str | float | None,
) -> Iterator[ScoredVideo]:
    """Pass videos on in the order of their paths; write NAME.csv, NAME.pdf and NAME.png for each that was scored."""
    names = unique_names([shortened(os.path.basename(path)) for path in paths])
    for name, (path, tracks) in zip(names, videos, strict=True):
        if tracks and not isinstance(tracks, str):
            atomic_write_text(folder / f"{name}.csv", timeline_csv(tracks, point))
            save_figure(timeline_figure(tracks, point, threshold, name), folder / name)
        yield path, tracks


def timeline_csv(tracks: Sequence[Track], point: OperatingPoint) -> str:
    """One row per frame and face, by time: boxes as fractions of the frame, empty for whole frames."""
    rows: list[tuple] = [
        (round(time, 3), number, *(box or [""] * 4), logit, p_fake)
        for number, track in enumerate(tracks, 1)
        for time, box, logit, p_fake in zip(
            track.times, track.boxes, track.logits.tolist(), point.p_fake(track.logits).tolist(), strict=True
        )
    ]
    rows.sort(key=lambda row: row[:2])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()


@styled
def timeline_figure(
    tracks: Sequence[Track], point: OperatingPoint, threshold: str | float | None, title: str
) -> Figure:
    """p_fake of each track over time; above the dashed line a frame alone would be called fake, in the band unsure."""
    figure, (axes,) = new_figure(7.0, 3.2)
    low, high = point.limits(threshold)
    axes.axhline(high, color="black", linewidth=1, linestyle=(0, (4, 2)), label="fake above")
    if low < high:
        axes.axhspan(low, high, color=GREY, alpha=0.15, linewidth=0, label="unsure")
    for number, track in enumerate(tracks, 1):
        name = f"face {number}" if track.is_face else "whole frames"
        style = line_style(number - 1)
        axes.plot(track.times, point.p_fake(track.logits), label=name if number <= NAMED else None, **style)
    axes.set(xlabel="Time (s)", ylabel="p_fake", ylim=(-0.03, 1.03))
    axes.set_title(name_text(title))
    legend_below(figure, axes, n_columns=4)
    return figure
