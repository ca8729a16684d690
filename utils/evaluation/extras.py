"""What evaluate.py makes of scores only when asked: paired comparison, one-class sets, failure gallery, subgroups."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.errors import UserError
from utils.evaluation.report import COLUMNS, ScoredSet
from utils.files import write_json
from utils.scoring.table import ScoreTable
from utils.tables import write_table

ONE_CLASS_COLUMNS = [column for column in COLUMNS if column[0] not in ("ece", "brier", "unreadable")]


def write_one_class(sets: Sequence[ScoredSet], reals: Sequence[str], folder: Path, n_boot: int) -> str:
    """Measure sets of fakes only against the real images of the data sets ``reals``; returns the table as text.

    Checkpoint by checkpoint and tier by tier. All should have been through one recipe, the tier ``common``, or the
    format of a file tells them apart.

    Raises:
        UserError: the scores have no real image of such a data set, or no set of fakes only.
    """
    rows = []
    for name, tier in dict.fromkeys((scored.info["checkpoint"], scored.tier) for scored in sets):
        own = [scored for scored in sets if (scored.info["checkpoint"], scored.tier) == (name, tier)]
        known = {scored.info["dataset"]: scored.table.select(scored.table.label == 0) for scored in own}
        for other in reals:
            if not len(known.get(other, ())):
                raise UserError(f"expected --pair of data sets with real images, {', '.join(known)}, got {other!r}")
        others = [known[other] for other in reals]
        for scored in own:
            if scored.table.label.all():
                row = scored.row(ScoreTable.join([scored.table, *others]), n_boot)
                rows.append({**row, "dataset": f"{row['dataset']} / {' + '.join(reals)}"})
    if not rows:
        raise UserError("expected a set of fakes only for --pair, got none; the other sets need no pairing")
    caption = "Sets of fakes only, against the real images of other sets; 95 % bootstrap intervals."
    write_json(folder / "one_class.json", rows)
    return write_table(rows, ONE_CLASS_COLUMNS, folder / "one_class", caption)[1].read_text(encoding="utf-8")


def write_subgroup_table(sets: Sequence[ScoredSet], request: str, folder: Path, n_boot: int) -> None:
    """Write the table of ``LIST.csv:COLUMN``: metrics for each value of a metadata column, set by set.

    Raises:
        UserError: the request has another form, or the list has no such column.
    """
    from utils.evaluation.subgroups import read_column, subgroup_rows, write_subgroups

    path, colon, column = request.rpartition(":")
    if not colon or not path or not column:
        raise UserError(f"expected --subgroup LIST.csv:COLUMN, got {request!r}")
    values = read_column(path, column)
    rows = []
    for scored in sets:
        identity = {key: scored.info[key] for key in ("checkpoint", "model", "dataset", "split")}
        rows += subgroup_rows(with_root(scored), values, scored.threshold, n_boot, tier=scored.tier, **identity)
    write_subgroups(rows, folder, column)


def write_failures(sets: Sequence[ScoredSet], folder: Path) -> Path:
    """Write gallery.html and failures.csv, the worst errors of each source; returns the page."""
    from utils.evaluation.gallery import write_gallery

    return write_gallery([(with_root(scored), scored.info) for scored in sets], folder)[0]


def with_root(scored: ScoredSet) -> ScoreTable:
    """The scores with paths that lead to the images, from where evaluate.py ran."""
    root = scored.info["root"]
    return replace(scored.table, path=[os.path.join(root, path) if root else path for path in scored.table.path])
