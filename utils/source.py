"""Source code as an input of results: a digest of all files of the project that a computation depends on."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from utils.files import ROOT


def imported_files(file: Path) -> Iterator[Path]:
    """Yield the files of the project that a file imports, including imports inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            found = ROOT / f"{name.replace('.', '/')}.py"
            if found.is_file():
                yield found


@functools.cache
def code_files(*patterns: str) -> list[Path]:
    """Return the files that match ``patterns``, relative to the project, and all that they import, sorted.

    Name modules that are found at run time, such as ``models/**/*.py``, by a separate pattern.
    """
    found: set[Path] = set()
    waiting = [file for pattern in patterns for file in ROOT.glob(pattern)]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imported_files(file)
    return sorted(found)


@functools.cache
def code_digest(*patterns: str) -> str:
    """SHA-256 over the bytes of :func:`code_files`: results of other code have another digest."""
    digest = hashlib.sha256()
    for file in code_files(*patterns):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
