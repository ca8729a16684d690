"""Which records are taken, and the fingerprint of what was taken; both are the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from datasets.listing.records import Record, relative_path
from datasets.listing.storage import file_state


def balanced_subset(records: list[Record], limit: int, root: str) -> list[Record]:
    """Take ``limit`` records, as evenly over the classes as they allow; a smaller limit takes a subset."""
    if limit >= len(records):
        return records
    shuffled = sorted(records, key=lambda record: _digest(relative_path(record.path, root)))
    queues = [[r for r in reversed(shuffled) if r.label == label] for label in (0, 1, None)]
    taken: list[Record] = []
    while len(taken) < limit:
        taken += [queue.pop() for queue in queues if queue]
    return taken[:limit]


def fingerprint(records: Sequence[Record], root: str) -> str:
    """16 hex digits over relative path, label and size of every file."""
    lines = []
    for record in records:
        size, _ = file_state(record.path) or (-1, 0)  # a missing file is reported when it is read
        lines.append(f"{relative_path(record.path, root)}\0{record.label}\0{size}\n")
    lines.sort()
    return _digest("".join(lines))[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
