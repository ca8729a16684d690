"""The rows of the summaries that the timing studies write."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def summary_row(what: str, values: Sequence[float], unit: str) -> dict[str, Any]:
    """Print the median of repeated measurements with their range, and return them as a row."""
    row = {"what": what, "value": float(statistics.median(values)), "range": [min(values), max(values)], "unit": unit}
    print(f"{row['value']:.2f} [{min(values):.2f}, {max(values):.2f}] {unit}  {what}")
    return row
