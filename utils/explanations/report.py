"""The faithfulness table from start to end: cells that are measured once, then tables and a figure of their files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets.spec import Listing
from utils.errors import UserError
from utils.evaluation.evaluate import Candidate
from utils.explanations.cells import COLUMNS, METRICS, Settings, measure_cell
from utils.explanations.figures import effect_figure
from utils.explanations.images import says_fake
from utils.explanations.methods import check_usable, usable_methods
from utils.explanations.names import FEATURES, METHODS
from utils.explanations.table import UNFAITHFUL, cell_rows, read_raw, write_raw, write_tables
from utils.figures import save_figure
from utils.files import read_json, write_json
from utils.runtime import git_commit, hardware

RAW = "raw"
N_BOOT = 1000


def cell_methods(candidate: Candidate, wanted: Sequence[str], layer: str | None) -> tuple[str, ...]:
    """The methods to measure a detector with: those asked for, else all that work for it.

    Raises:
        UserError: one that was asked for does not work.
    """
    names = [name for name in wanted if name != FEATURES] or [
        name for name in usable_methods(candidate.detector, layer) if name in METHODS
    ]
    check_usable(candidate.detector, names, layer)
    return tuple(names)


def cell_key(candidate: Candidate, listing: Listing, settings: Settings) -> str:
    """Digest of everything that decides the numbers of a cell; where it agrees, the cell is not measured again."""
    facts = {**dataclasses.asdict(settings), "dtype": str(settings.dtype)}
    facts.pop("batch_size")
    text = json.dumps([candidate.digest, listing.fingerprint, listing.split, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ensure_cell(
    folder: Path,
    candidate: Candidate,
    dataset: str,
    listing: Listing,
    settings: Settings,
    command: str,
    overwrite: bool,
) -> Path:
    """Measure a cell unless its files are there; returns the path of the raw numbers.

    Raises:
        UserError: files of another measurement are in the place, and ``overwrite`` is False.
    """
    file = folder / RAW / f"{candidate.name}__{dataset}__{listing.split}.csv"
    facts_file, key = file.with_suffix(".json"), cell_key(candidate, listing, settings)
    if file.exists() and facts_file.exists():
        if read_json(facts_file).get("key") == key:
            print(f"{file.name}: taken from an earlier run", file=sys.stderr)
            return file
        if not overwrite:
            raise UserError(
                f"expected an --output-dir without other results, found {file} of other settings; "
                "choose another folder or pass --overwrite"
            )
    is_fake = partial(says_fake, candidate.detector.operating_point)
    rows, unreadable = measure_cell(
        candidate.detector, is_fake, listing.records, settings, f"{candidate.name} on {dataset}"
    )
    for item in unreadable:
        print(f"unreadable: {item['path']}: {item['reason']}", file=sys.stderr)
    if not rows:
        raise UserError(f"expected images in {dataset}, but none of {len(listing.records)} could be read")
    write_raw(file, rows, COLUMNS)
    write_json(
        facts_file,
        {
            "key": key,
            "checkpoint": candidate.name,
            "model": candidate.checkpoint["model"],
            "dataset": dataset,
            "split": listing.split,
            "n_images": len(listing.records) - len(unreadable),
            "unreadable": unreadable,
            "data_fingerprint": listing.fingerprint,
            "target": settings.target,
            "layer": settings.layer,
            "seed": settings.seed,
            "precision": str(settings.dtype).removeprefix("torch."),
            "budget": dataclasses.asdict(settings.budget),
            "command": command,
            "hardware": hardware(),
            "git_commit": git_commit(),
        },
    )
    return file


def write_report(files: Sequence[Path], folder: Path, seed: int) -> list[dict[str, Any]]:
    """Make the tables and the figure of cells from their files alone; returns the rows."""
    rows = []
    for file in files:
        facts = read_json(file.with_suffix(".json"), "the facts of a cell")
        raw = read_raw(file, METRICS)
        rows += cell_rows(raw, facts["checkpoint"], facts["dataset"], METRICS, N_BOOT, seed)
    write_tables(rows, folder)
    save_figure(effect_figure(rows, UNFAITHFUL), folder / "faithfulness")
    return rows
