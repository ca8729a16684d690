"""Scoring faces in the place of whole pictures: from a listing to its faces, and back to one score for each picture."""

from __future__ import annotations

from dataclasses import replace

from datasets.faces import face_paths, highest_of_each, open_finder
from datasets.spec import Listing
from utils.scoring.table import ScoreTable


def with_faces(listing: Listing, finder: str | None) -> Listing:
    """Put a record for each face in the place of each picture; the listing itself without a finder."""
    if finder is None:
        return listing
    paths = list(face_paths([record.path for record in listing.records], open_finder(finder)))
    return replace(listing, records=[replace(listing.records[path.number], path=path) for path in paths])


def highest_faces(table: ScoreTable) -> ScoreTable:
    """Of the rows of a picture, one for each face, keep the one with the highest score, in every tier."""
    return table.select(highest_of_each(table.path, table.tier, table.logit))  # type: ignore[arg-type]
