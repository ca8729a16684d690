"""What the timing studies share: the rows of a summary, and the results file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from utils.args import command_line
from utils.files import write_json


def summary_row(what: str, values: Sequence[float], unit: str) -> dict[str, Any]:
    """Print the median of repeated measurements with their range, and return them as a row."""
    row = {"what": what, "value": float(statistics.median(values)), "range": [min(values), max(values)], "unit": unit}
    print(f"{row['value']:.2f} [{min(values):.2f}, {max(values):.2f}] {unit}  {what}")
    return row


def write_results(file: str, study: str, argv: Sequence[str] | None, **results: Any) -> dict[str, Any]:
    """Write the results of ``studies.speed.<study>`` as JSON, after the facts of the run, which are returned."""
    from utils.runtime import run_facts  # here, so that --help needs no torch

    facts = run_facts(command_line(f"-m studies.speed.{study}", argv))
    write_json(file, {**facts, **results})
    return facts
