"""The exception for a user's mistake, and hints at the name that was probably meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can fix: one line that says what was expected, what was found and what to do.

    Every script's ``main`` prints it to stderr without a traceback and returns exit code 2.
    """


def closest(name: str, known: Iterable[str], similarity: float = 0.6) -> str:
    """Return "; did you mean X?" for the known name nearest to ``name``, or an empty string if none is near.

    A name is near from this ``similarity``, in [0, 1], as difflib computes it.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, 1, similarity)
    return f"; did you mean {by_lower[matches[0]]}?" if matches else ""


def closest_sibling(path: str) -> str:
    """Return "; did you mean X?" for the file nearest in name to a path that does not exist, or an empty string."""
    folder, name = os.path.split(path)
    try:
        found = closest(name, {*os.listdir(folder or ".")} - {name})  # itself if it is no folder, as wanted
    except OSError:
        return ""
    return found.replace("mean ", f"mean {os.path.join(folder, '')}", 1)
