"""Scoring faces instead of whole pictures: from a listing to its faces, and back to one score per picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.faces import face_records, open_finder
from datasets.spec import Listing
from utils.scoring.table import ScoreTable


def with_faces(listing: Listing, finder: str | None) -> Listing:
    """Replace the record of each picture by one record per face; without a finder the listing stays as it is."""
    if finder is None:
        return listing
    return replace(listing, records=[record for _, record in face_records(listing.records, open_finder(finder))])


def highest_faces(table: ScoreTable) -> ScoreTable:
    """Keep the row with the highest logit of each picture and tier."""
    best: dict[tuple[str, str], int] = {}
    for row, key in enumerate(zip(table.path, table.tier, strict=True)):
        if table.logit[row] > table.logit[best.setdefault(key, row)]:
            best[key] = row
    chosen = np.zeros(len(table.path), bool)
    chosen[list(best.values())] = True
    return table.select(chosen)
