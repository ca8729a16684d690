"""The faithfulness report: cells are measured once, tables and the figure are made from their files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.listing.records import Listing
from datasets.listing.storage import file_state
from utils.errors import UserError
from utils.evaluation.evaluate import Candidate
from utils.explanations.faithfulness.cells import CellMeter
from utils.explanations.faithfulness.table import UNFAITHFUL, cell_rows, read_raw, write_raw, write_tables
from utils.explanations.maps import Settings
from utils.explanations.registry import CONTROLS, all_methods, check_usable, table_options, title_of, usable_methods
from utils.figures import GREY, new_figure, save_figure, styled
from utils.files import read_json, write_json
from utils.runtime import git_commit, hardware, versions
from utils.scoring.cache import labelled_digest
from utils.source import code_digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAW = "raw"


def cell_methods(candidate: Candidate, wanted: Sequence[str], layer: str | None) -> tuple[str, ...]:
    """Methods to measure a detector with: the wanted ones, or all that work for it.

    Raises:
        UserError: a wanted method makes no maps, or does not work for this detector.
    """
    wanted = wanted or [name for name in usable_methods(candidate.detector, layer) if all_methods()[name].makes_maps]
    for name in wanted:
        if not all_methods()[name].makes_maps:
            raise UserError(f"expected --methods that make maps with --faithfulness, got {name}; leave it out")
    check_usable(candidate.detector, wanted, layer)
    return tuple(wanted)


def cell_key(candidate: Candidate, listing: Listing, settings: Settings) -> str:
    """Digest of everything that decides the numbers of a cell; a cell with the same key is not measured again."""
    facts = {**dataclasses.asdict(settings), "dtype": str(settings.dtype), "options": table_options(settings.methods)}
    facts |= {"code": code_digest("utils/explanations/**/*.py", "models/**/*.py"), "versions": versions()}
    facts["device"] = candidate.detector.mean.device.type
    facts["masks"] = [record.mask and file_state(record.mask) for record in listing.records]
    text = json.dumps([candidate.digest, labelled_digest(listing), listing.split, facts], sort_keys=True)
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
    """Measure a cell unless its files exist; returns the path of the raw numbers.

    Raises:
        UserError: files of another measurement exist, and ``overwrite`` is False; or no image can be read.
    """
    file = folder / RAW / f"{candidate.name}__{dataset}__{listing.split}.csv"
    facts_file, key = file.with_suffix(".json"), cell_key(candidate, listing, settings)
    if file.exists() and facts_file.exists():
        if read_json(facts_file).get("key") == key:
            print(f"{file.name}: taken from an earlier run", file=sys.stderr)
            return file
        if not overwrite:
            raise UserError(
                f"expected an --output-dir without results of other settings or code, found {file}; "
                "choose another folder or pass --overwrite"
            )
    meter = CellMeter(candidate.detector, settings)
    rows = meter.measure(listing.records, f"{candidate.name} on {dataset}")
    for item in meter.unreadable:
        print(f"unreadable: {item['path']}: {item['reason']}", file=sys.stderr)
    if not rows:
        raise UserError(f"expected images in {dataset}, but none of {len(listing.records)} could be read")
    write_raw(file, rows)
    facts = {"key": key, "checkpoint": candidate.name, "model": candidate.checkpoint["model"], "dataset": dataset}
    facts |= {"split": listing.split, "data_fingerprint": listing.fingerprint}
    facts |= {"n_images": len(listing.records) - len(meter.unreadable), "unreadable": meter.unreadable}
    facts |= {"target": settings.target, "layer": settings.layer, "seed": settings.seed}
    facts |= {"precision": str(settings.dtype).removeprefix("torch."), "options": table_options(settings.methods)}
    facts |= {"command": command, "hardware": hardware(), "git_commit": git_commit()}
    write_json(facts_file, facts)
    return file


def write_report(files: Sequence[Path], folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Write the tables and the figure of cells from their files alone; returns the rows. Raises UserError: no files."""
    if not files:
        raise UserError(f"expected cells measured by --faithfulness, found no {RAW}/*.csv; pass their --output-dir")
    rows = []
    for file in files:
        facts = read_json(file.with_suffix(".json"), "the facts of a cell")
        rows += cell_rows(read_raw(file), facts["checkpoint"], facts["dataset"], seed)
    write_tables(rows, folder)
    save_figure(effect_figure([row for row in rows if row["method"] not in CONTROLS]), folder / "faithfulness")
    return rows


@styled
def effect_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Methods against cells: ROAD above the best control, in standard deviations; a cross marks unfaithful methods."""
    cells = list(dict.fromkeys((row["checkpoint"], row["dataset"]) for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    values = np.full((len(methods), len(cells)), np.nan)
    figure, (axes,) = new_figure(2.6 + 0.95 * len(cells), 2.2 + 0.34 * len(methods))
    for row in rows:
        place = methods.index(row["method"]), cells.index((row["checkpoint"], row["dataset"]))
        values[place] = row["effect"]
        mark = f"{row['effect']:+.2f}" + (" \N{MULTIPLICATION SIGN}" if row["verdict"] == UNFAITHFUL else "")
        colour = "white" if abs(row["effect"]) > 0.75 else "black"
        axes.text(place[1], place[0], mark, ha="center", va="center", fontsize=8, color=colour)
    axes.set_facecolor(GREY)
    shown = axes.imshow(values, cmap="PuOr_r", vmin=-1.2, vmax=1.2, aspect="auto")
    axes.set(xticks=range(len(cells)), yticks=range(len(methods)), yticklabels=[title_of(name) for name in methods])
    axes.set_xticklabels([f"{checkpoint}\n{dataset}" for checkpoint, dataset in cells], rotation=35, ha="right")
    axes.grid(visible=False)
    figure.colorbar(shown, ax=axes, label="ROAD above the best control (sd)", extend="both")
    axes.set_title("Faithfulness; \N{MULTIPLICATION SIGN} not faithful here", fontsize=10)
    return figure
