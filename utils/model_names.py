"""The valid --model names, read from source text so that misspelt ones are reported before torch is imported."""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

from utils.errors import UserError

MODELS_DIR = Path(__file__).resolve().parents[1] / "models"
_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)", re.MULTILINE)
_RENAMED = re.compile(r"^    '([\w.]+)': *'[\w.]*'", re.MULTILINE)


@cache
def own_names() -> frozenset[str]:
    """Return the names of the detectors registered in models/."""
    return frozenset(name for file in MODELS_DIR.glob("*.py") for name in _REGISTERED.findall(file.read_text()))


@cache
def timm_names() -> frozenset[str]:
    """Return the names of timm's backbones, including deprecated ones; empty if timm is not installed."""
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return frozenset()
    names: set[str] = set()
    for file in Path(found.submodule_search_locations[0], "models").glob("*.py"):
        source = file.read_text(encoding="utf-8")
        names.update(_REGISTERED.findall(source))
        _, _, renamed = source.partition("register_model_deprecations(__name__")
        names.update(_RENAMED.findall(renamed))
    return frozenset(names)


def check_model_name(name: str) -> None:
    """Raise UserError, with close matches, unless ``name`` is a registered detector or a timm backbone.

    A ``.tag`` of pretrained weights may follow the name of a backbone.
    """
    if name in own_names() or name in timm_names() or name.partition(".")[0] in timm_names():
        return
    close = difflib.get_close_matches(name, sorted(own_names() | timm_names()), n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "`train.py --list-models` shows them all"
    raise UserError(f"expected --model {', '.join(sorted(own_names()))} or a timm backbone, got {name!r}; {hint}")
