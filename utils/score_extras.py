"""What evaluate.py makes of scores only when asked: a paired comparison, a failure gallery, subgroup tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.score_report import ScoredSet
from utils.scores import ScoreTable


def write_pair(sets: Sequence[ScoredSet], folder: Path, n_boot: int) -> str:
    """Compare the two checkpoints whose scores these are, on all images that both scored; returns the table as text.

    Raises:
        UserError: the scores are not of exactly two checkpoints, or not on the same images.
    """
    from utils.comparison import compare_scores
    from utils.comparison_report import comparison_markdown, write_comparison

    names = list(dict.fromkeys(scored.info["checkpoint"] for scored in sets))
    if len(names) != 2:
        raise UserError(f"expected scores of two checkpoints for --compare, got {len(names)}: {', '.join(names)}")
    sides = [[scored for scored in sets if scored.info["checkpoint"] == name] for name in names]
    thresholds = [{scored.threshold for scored in side} for side in sides]
    if any(len(values) > 1 for values in thresholds):
        raise UserError("expected one threshold per checkpoint for --compare, got several; score the sets again")
    a, b = (ScoreTable.join([scored.table for scored in side]) for side in sides)
    result = compare_scores(a, b, thresholds[0].pop(), thresholds[1].pop(), max(n_boot, 1))
    pair = (names[0], names[1])
    write_comparison(result, a, b, folder, pair)
    return comparison_markdown(result, pair)


def write_subgroup_table(sets: Sequence[ScoredSet], request: str, folder: Path, n_boot: int) -> None:
    """Write the table of ``LIST.csv:COLUMN``: metrics for each value of a metadata column, set by set.

    Raises:
        UserError: the request has another form, or the list has no such column.
    """
    from utils.subgroups import read_column, subgroup_rows, write_subgroups

    path, colon, column = request.rpartition(":")
    if not colon or not path or not column:
        raise UserError(f"expected --subgroup LIST.csv:COLUMN, got {request!r}")
    values = read_column(path, column)
    rows = []
    for scored in sets:
        identity = {key: scored.info[key] for key in ("checkpoint", "model", "dataset", "split")}
        rows += subgroup_rows(scored.table, values, scored.threshold, n_boot, tier=scored.tier, **identity)
    write_subgroups(rows, folder, column)


def write_failures(sets: Sequence[ScoredSet], folder: Path) -> Path:
    """Write gallery.html and failures.csv, the worst errors of each source; returns the page."""
    from utils.gallery import write_gallery

    return write_gallery([(scored.table, scored.info) for scored in sets], folder)[0]
