"""Layers: each module imports only what lies below it, and no imports go in a circle."""

import ast
from pathlib import Path

from utils.files import ROOT

PACKAGES = ("datasets", "models", "utils", "studies")
FILES = [*ROOT.glob("*.py"), *(file for package in PACKAGES for file in ROOT.glob(f"{package}/**/*.py"))]
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
SCRIPTS = {name for name in MODULES if "." not in name and name not in PACKAGES}


def imports(file: Path) -> set[str]:
    """Return the project's modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found & set(MODULES) if MODULES[name].stem != "__init__"}


GRAPH = {name: imports(file) for name, file in MODULES.items()}


def layer(name: str) -> str:
    """Return ground (files in utils/), datasets, models, subjects (folders of utils/), studies or scripts."""
    top = name.split(".")[0]
    if top == "utils":
        return "ground" if name.count(".") < 2 and MODULES[name].stem != "__init__" else "subjects"
    return top if top in PACKAGES else "scripts"


ALLOWED = {
    "ground": {"ground"},
    "datasets": {"ground", "datasets"},
    "models": {"ground", "models"},
    "subjects": {"ground", "datasets", "models", "subjects"},
    "scripts": {"ground", "datasets", "models", "subjects"},
    "studies": {"ground", "datasets", "models", "subjects", "studies", "scripts"},
}


def test_modules_import_only_what_lies_below():
    above = {name: {o for o in found if layer(o) not in ALLOWED[layer(name)]} for name, found in GRAPH.items()}
    for name, found in above.items():
        if layer(name) == "models":
            found.discard("datasets.transforms")
    above["tune"].discard("train")  # a search trains
    assert {name: found for name, found in above.items() if found} == {}


def test_no_import_circles():
    rest = {name: set(found) for name, found in GRAPH.items()}
    while True:  # peel off what imports nothing that is left, and what nothing that is left imports
        needed = set().union(*rest.values())
        free = [name for name, found in rest.items() if not found & set(rest) or name not in needed]
        if not free:
            break
        for name in free:
            del rest[name]
    assert sorted(rest) == []
