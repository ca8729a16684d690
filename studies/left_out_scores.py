"""The scores behind the table of sources left out in turn, written once per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.listing.records import Listing
from datasets.listing.spec import balanced_subset
from utils.files import read_json, write_json

if TYPE_CHECKING:
    from utils.evaluation.evaluate import Candidate
    from utils.scoring.table import ScoreTable


@dataclass(frozen=True)
class Scoring:
    """How to score: the tiers, at most how many images of a listing, and the --cache of the training runs."""

    tiers: list[str]
    limit: int | None
    cache: str | None

    def limited(self, listing: Listing) -> Listing:
        """Return a listing with at most ``limit`` records, balanced over the classes."""
        limit = len(listing.records) if self.limit is None else self.limit
        return replace(listing, records=balanced_subset(listing.records, limit, listing.root))


def score_once(
    checkpoint: Path,
    left_out: str,
    names: set[str],
    parts: Mapping[str, Sequence[Listing]],
    scoring: Scoring,
    folder: Path,
) -> list[Path]:
    """Write the scores of each part, what was left out and what was not, unless they are there; returns the files.

    Args:
        checkpoint: best.pt of a run, whose folder has the name of the group that was left out.
        left_out: the group as the user wrote it.
        names: of the data sets in the group.
        parts: the listings under ``left-out`` and ``valid``.
    """
    from studies.runs import PLAN, digests

    run = checkpoint.parent
    parts = {name: [scoring.limited(listing) for listing in part] for name, part in parts.items()}
    inputs = digests([checkpoint], [listing for part in parts.values() for listing in part])
    plan, wanted = run / f"scores-{PLAN}", {"tiers": scoring.tiers, "inputs": inputs}
    files = {name: folder / f"{run.name}__{name}.csv.gz" for name in parts}
    if not plan.exists() or read_json(plan) != wanted or not all(file.exists() for file in files.values()):
        for name, part in parts.items():
            write_part(files[name], checkpoint, left_out, names, name, part, scoring)
        write_json(plan, wanted)
    return list(files.values())


def write_part(
    file: Path,
    checkpoint: Path,
    left_out: str,
    names: set[str],
    part: str,
    listings: Sequence[Listing],
    scoring: Scoring,
) -> None:
    """Score some data sets and write their scores, with what the table needs, into one file."""
    from datasets.faces.boxes import with_faces
    from datasets.faces.finder import open_finder
    from utils.checkpoints.slimming import without_paths
    from utils.evaluation.evaluate import load_candidates
    from utils.runtime import set_up
    from utils.scoring.table import ScoreTable, write_scores, write_sidecar

    machine = set_up("auto")
    (candidate,) = load_candidates([checkpoint], machine.device)
    recipe = recipe_behind(candidate.checkpoint)
    if finder := open_finder(recipe.get("face_detector"), candidate.detector.geometry.needs_face):
        listings = [with_faces(listing, finder) for listing in listings]
    tables, unreadable = score_listings(candidate, listings, scoring, machine.workers)
    point = candidate.detector.operating_point
    trained_on = {entry["dataset"] for entry in candidate.checkpoint["data"] if entry["split"] == "train"}
    write_scores(file, ScoreTable.join(tables))
    write_sidecar(
        file,
        checkpoint=checkpoint.parent.name,
        model=candidate.checkpoint["model"],
        thresholds=dict(point.thresholds),
        threshold=point.threshold(),
        calibration=point.calibration,
        split=part,
        left_out=left_out,
        trained_on=sorted(trained_on - names if part == "left-out" else trained_on),
        n_images=sum(len(listing.records) for listing in listings),
        unreadable=unreadable,
        train_command=without_paths(candidate.checkpoint["train_args"].get("command")),
    )


def recipe_behind(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of train.py behind a checkpoint; of a mean of weights, those of its first run."""
    from utils.checkpoints.file import load_checkpoint

    recipe = checkpoint["train_args"]
    while recipe.get("method") == "soup":
        recipe = load_checkpoint(recipe["checkpoint"][0])["train_args"]
    return recipe


def score_listings(
    candidate: Candidate, listings: Sequence[Listing], scoring: Scoring, workers: int
) -> tuple[list[ScoreTable], list[dict[str, str]]]:
    """Score listings, from cached tokens if the run was trained on its own.

    Returns:
        One table per listing and tier, paths relative to the listing, and ``{dataset, path, reason}`` of the
        unreadable images.
    """
    from utils.runtime import pick_precision
    from utils.scoring.scorer import Job, Settings, score_table, score_together
    from utils.training.token_scores import score_by_tokens
    from utils.training.tokens import TOKEN_CACHE

    detector, recipe = candidate.detector, recipe_behind(candidate.checkpoint)
    dtype = pick_precision(recipe["precision"], detector.mean.device, training=True)  # fast, and that of cached tokens
    settings = Settings(recipe["batch_size"], workers, dtype)
    if recipe.get("token_views") and detector.caches_tokens:
        root = Path(scoring.cache or TOKEN_CACHE)
        found = score_by_tokens(detector, dtype, listings, scoring.tiers, root, settings)
    else:
        jobs = [Job(detector, tier) for tier in scoring.tiers]
        found = score_together(jobs, listings, settings, candidate.detector.name)
    tables, unreadable = [], []
    for listing, by_tier in zip(listings, found, strict=True):
        for tier, scores in zip(scoring.tiers, by_tier, strict=True):
            table = score_table(listing.records, scores, detector.operating_point, listing.name, tier)
            tables.append(table.relative_to(listing.root))
        failed = [(listing.records[index].path, reason) for index, reason in by_tier[0].unreadable]
        unreadable += [{"dataset": listing.name, "path": path, "reason": reason} for path, reason in failed]
    return tables, unreadable
