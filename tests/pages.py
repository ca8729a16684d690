"""Checks of the README and the other pages: commands parse, links lead somewhere, tables are those of results/.

Conventions that the checks rely on:

- a line in a fenced block, or a piece of inline code, that starts with ``python SCRIPT.py`` or ``make`` is a command;
- ``<!-- table: results/x/metrics.md -->`` stands in front of each table of results, and the table is the one in that
  file, whatever its spacing; a table with intervals (``0.968 [0.951, 0.983]``) must have such a comment.

Figures in the text: tests/sources.py.
"""

import contextlib
import functools
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from utils.checkpoint_files import RELEASES
from utils.files import ROOT

CHECKPOINT_PAGES = [ROOT / "checkpoints" / f"{name}.md" for name in ("README", *RELEASES)]
SHELL = ("", "bash", "sh", "shell", "console")
FENCE = re.compile(r"^ *(`{3,}|~{3,})([\w-]*)[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)>\s]+)>?[^)]*\)|<(?:img|a)\b[^>]*(?:src|href)=\"([^\"]+)\"")
MARKER = re.compile(r"^<!-- table: (\S+) -->$")
INTERVAL = re.compile(r"\d \[\d*\.?\d+, *\d*\.?\d+\]")


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", text)


def command_lines(text: str) -> Iterator[list[str]]:
    """Words of every shell command in fenced blocks and inline code, assignments in front of it left out."""
    blocks = [body for _, language, body in FENCE.findall(text) if language in SHELL]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for _, code in INLINE_CODE.findall(prose(text))]
    for line in lines:
        line = re.sub(r"^\s*\$ ", "", line)
        if not re.match(r"\s*(\w+=\S* +)*([\w./]*python3?|make) ", line):
            continue  # output of a command, or no command at all
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("();<>|&"):
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []


def command_problems(text: str, root: Path) -> list[str]:
    """Commands whose script, flag or make target does not exist."""
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    problems = []
    for words in command_lines(text):
        if words[0] == "make":
            asked = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
            problems += [f"make {word}: no such target" for word in asked if word not in targets]
        elif re.fullmatch(r"[\w./]*python3?", words[0]) and (words[1].endswith(".py") or words[1] == "-m"):
            problems += script_problems(words[1:], root)
    return problems


def script_problems(words: list[str], root: Path) -> list[str]:
    """What the parser of a script has against these flags; nothing is run."""
    line = shlex.join(words)
    module, flags = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    if not (root / module.replace(".", "/")).with_suffix(".py").is_file():
        return [f"{line}: no such script"]
    script = importlib.import_module(module)
    if not hasattr(script, "get_args_parser"):  # it takes no flags
        return [] if not flags else [f"{line}: takes no flags"]
    parser = script.get_args_parser()
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            parser.parse_args(flags)
        except SystemExit as exit_:
            if exit_.code:
                return [f"{line}: {stderr.getvalue().strip()}"]
    return []


def link_problems(text: str, root: Path) -> list[str]:
    """Relative links and figures without a file, and anchors without a heading."""
    body = INLINE_CODE.sub("", prose(text))
    headings = re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    problems = []
    for target in (first or second for first, second in LINK.findall(body)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        if path and not (root / path).exists():
            problems.append(f"{target}: no such file")
        if not path and anchor not in anchors:
            problems.append(f"#{anchor}: no such heading")
    return problems


Table = list[list[str]]


@functools.cache  # pages with one figure changed have all other lines in common
def cells(line: str) -> list[str]:
    """The normalised cells of a line of a table."""
    return [re.sub(r"-+", "-", " ".join(cell.split())) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def tables(text: str) -> Iterator[tuple[str | None, Table]]:
    """Every Markdown table as normalised cells, with the file that the comment in front of it names."""
    source, table = None, []
    for line in [*prose(text).splitlines(), ""]:
        if line.lstrip().startswith("|"):
            table.append(cells(line))
            continue
        if table:
            yield source, table
            source, table = None, []
        if marker := MARKER.match(line.strip()):
            source = marker[1]
        elif line.strip():
            if source:
                yield source, []
            source = None
    if source:
        yield source, []


@functools.cache
def tables_of(file: Path) -> list[Table]:
    """The tables of a results file."""
    return [rows for _, rows in tables(file.read_text(encoding="utf-8"))]


def table_problems(text: str, root: Path) -> list[str]:
    """Tables of results that are not those of their file, or that name no file."""
    problems = []
    for source, table in tables(text):
        head = " | ".join(table[0]) if table else ""
        if source is None:
            if any(INTERVAL.search(cell) for row in table for cell in row):
                problems.append(f"table {head}: has intervals, but no <!-- table: results/... --> in front of it")
        elif not table:
            problems.append(f"{source}: no table after its comment")
        elif not (root / source).is_file():
            problems.append(f"{source}: no such file")
        else:
            wanted = tables_of(root / source)
            if table not in wanted:
                known = [row for rows in wanted for row in rows]
                strange = next(
                    (" | ".join(row) for row in table if row not in known), "rows are missing or in disorder"
                )
                problems.append(f"{source}: not its table: {strange}")
    return problems
