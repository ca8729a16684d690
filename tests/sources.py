"""Every figure of a page names its source, and equals it.

A comment in front of a paragraph, list or table names the source of each figure in it, in the order of the text:

    <!-- figures: results/deepfake-v2/metrics.json dataset=faces140k tier=clean: auc auc_ci;
         dataset=dfdc tier=clean: auc; setting: 95 -->
    AUC is 0.967 [0.946, 0.984] on faces140k and 0.823 on dfdc; 95 % of ...

- An entry is ``FILE KEY=VALUE ...: FIGURE FIGURE ...``; entries are separated by ``;``. Without FILE the entry takes
  that of the entry before. ``KEY=VALUE`` picks the row; in an aggregated or overall metrics.json, ``generator=all`` is
  understood. Quote a value that holds spaces.
- FILE is a .json (a list of rows, or ``file.json#rows`` for the list under a key of an object) or a .csv. Of an object,
  a FIGURE is a path such as ``thresholds.balanced``.
- FIGURE is a key of the row or arithmetic on keys, without spaces: ``1-real_acc``, ``seconds/60``. An interval such as
  ``auc_ci`` stands for two figures. If the entry picks several rows, the figure is one of ``mean(auc)``, ``min(auc)``,
  ``max(auc)``, ``sum(auc)``, ``len(auc)``.
- The text shows the value rounded to the digits that it has; ``%`` multiplies the value by 100.
- ``setting: 95 0.5`` is for numbers that are no results: definitions, flags, thresholds of a rule.

A figure is a number with decimals, or one with a unit: %, x (ratio), images/s, logits, s, ms, minutes, hours, kB, MB,
GB. Numbers in code, links, comments and after ``<!-- table: FILE -->`` (the whole table is compared) are none, nor are
the PHRASES below. ``python -m tests.sources README.md`` lists the problems of a page and, for each figure without a
source, rows that hold it.
"""

import ast
import csv
import functools
import json
import operator
import re
import shlex
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.pages import FENCE, INLINE_CODE, MARKER
from utils.files import ROOT

DIGITS = r"\d+(?:,\d{3})*(?:\.\d+)?"
NUMBER = rf"(?<![\w.,/-])[+-]?{DIGITS}"
UNIT = r"(?:x\b| ?(?:%|×|times\b|images/s|logits?\b|s\b|ms\b|seconds?\b|minutes?\b|min\b|hours?\b|[kMG]B\b))"
RANGE = rf"(?=(?: to |–){DIGITS}({UNIT}))|(?=(?:, \d+)*,? (?:and|or) \d+({UNIT}))"  # "57 to 79 s", "3, 5 and 8 %"
FIGURE = re.compile(rf"({NUMBER})(?:({UNIT})|{RANGE})?(?!\w|\.\d|/\d)")
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
PHRASES = re.compile(
    r"95 % (?:bootstrap |percentile |Wilson |confidence )?intervals?|\b0\.5 if none|(?:TPR|recall) at 1 % FPR|"
    r"(?:at most )?(?:1|0\.1) % (?:FPR|false (?:alarms|positives))|\bAUC (?:of )?0\.5\b"
)
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
AGGREGATES = {"mean": statistics.fmean, "min": min, "max": max, "sum": sum, "len": len}


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield each block of a page with the text of the figures comment in front of it; code and links are blanked."""
    text = INLINE_CODE.sub(" ` ", FENCE.sub("\n", text))
    source, table = "", False
    for block in re.split(r"\n[ \t]*\n", text):
        for comment in COMMENT.findall(block):
            if comment.strip().startswith("figures:"):
                source += ";" + comment.strip().removeprefix("figures:")
        table = table or any(MARKER.match(line.strip()) for line in block.splitlines())
        body = re.sub(r"\]\([^)]*\)|<[^>]*>|https?://\S+", " ", COMMENT.sub("", block)).strip()
        if body:
            if table:
                body = "\n".join(line for line in body.splitlines() if not line.lstrip().startswith("|"))
            yield body, source
            source, table = "", False
    if source:
        yield "", source


def figures(body: str) -> list[tuple[str, str]]:
    """Return the figures of a block as (number, unit), in order."""
    found = []
    for match in FIGURE.finditer(PHRASES.sub(" ", " ".join(body.split()))):
        number, unit = match[1], (match[2] or match[3] or ("" if "." in match[1] else match[4]) or "").strip()
        if unit or "." in number:
            found.append((number, unit))
    return found


@functools.cache
def rows_of(name: str) -> list[dict[str, Any]]:
    """Return the rows of a results file."""
    path, _, key = name.partition("#")
    if path.endswith(".csv"):
        with open(ROOT / path, newline="", encoding="utf-8") as file:
            return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]
    content = json.loads((ROOT / path).read_text(encoding="utf-8"))
    for part in filter(None, key.split(".")):
        content = content[part]
    return content if isinstance(content, list) else [content]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def wanted(source: str) -> Iterator[tuple[str, Any]]:
    """Yield (description, value) of every figure that a comment names. Raises ValueError with what is wrong."""
    file = ""
    for entry in filter(None, (" ".join(part.split()) for part in source.split(";"))):
        head, colon, keys = entry.rpartition(":")
        words = shlex.split(head)
        if not colon or not keys.split():
            raise ValueError(f"expected 'FILE KEY=VALUE ...: FIGURE ...', got {entry!r}")
        if head.strip() == "setting":
            yield from ((entry, key) for key in keys.split())
            continue
        if words and "=" not in words[0]:
            file = words.pop(0)
        choice = dict(word.split("=", 1) for word in words)
        if not (ROOT / file.partition("#")[0]).is_file() or not file.startswith("results/"):
            raise ValueError(f"no results file {file!r} in {entry!r}")
        rows = [row for row in rows_of(file) if all(str(row.get(key)) == value for key, value in choice.items())]
        if len(rows) > 1 and "generator" not in choice:
            rows = [row for row in rows if row.get("generator", "all") == "all"]
        if not rows:
            raise ValueError(f"no row for {entry!r}")
        for key in keys.split():
            value = evaluate(ast.parse(key, mode="eval").body, rows)
            yield from ((f"{entry} [{key}]", item) for item in (value if isinstance(value, list) else [value]))


def evaluate(node: ast.AST, rows: list[dict[str, Any]]) -> Any:
    """Compute a figure from the rows that an entry picks. Raises ValueError."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](evaluate(node.left, rows), evaluate(node.right, rows))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return AGGREGATES[node.func.id]([evaluate(node.args[0], [row]) for row in rows])
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows, expected one; add KEY=VALUE or use mean(), min(), max(), sum(), len()")
    if isinstance(node, ast.Subscript):
        return evaluate(node.value, rows)[ast.literal_eval(node.slice)]
    value = evaluate(node.value, rows) if isinstance(node, ast.Attribute) else rows[0]
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    if value.get(name) is None:
        raise ValueError(f"no figure {name!r} in the row")
    return value[name]


def shows(number: str, unit: str, value: Any) -> bool:
    """Whether a figure of the text is the value, rounded to the digits of the text."""
    if isinstance(value, str):  # a setting
        return number == value
    digits = len(number.partition(".")[2])
    text = f"{value * 100 if unit == '%' else value:.{digits}f}"
    return number.replace(",", "").lstrip("+") == text


def figure_problems(text: str) -> list[str]:
    """Return the figures of a page that have no source or differ from it."""
    return [problem for body, source in blocks(text) for problem in block_problems(body, source)]


@functools.cache  # of a page with one figure changed, all other blocks are known
def block_problems(body: str, source: str) -> tuple[str, ...]:
    """Return the problems of one block and the comment in front of it."""
    found = figures(body)
    where = f"near {' '.join(body.split())[:60]!r}"
    try:
        values = list(wanted(source))
    except (ValueError, KeyError, SyntaxError, TypeError) as error:
        return (f"{where}: {error}",)
    problems = [
        f"{where}: {number} {unit} is not {value} of {description}"
        for (number, unit), (description, value) in zip(found, values, strict=False)
        if not shows(number, unit, value)
    ]
    if len(found) > len(values):
        problems += [f"{where}: {number} {unit} has no source" for number, unit in found[len(values) :]]
    elif len(found) < len(values):
        problems.append(f"{where}: {len(values)} figures in the comment, {len(found)} in the text")
    return tuple(problems)


def mutations(text: str) -> Iterator[tuple[str, str]]:
    """Yield (what, text) with one digit of one figure changed, for every figure and every number of a results table."""
    plain = text
    for pattern in (FENCE, INLINE_CODE, COMMENT, re.compile(r"\]\([^)]*\)|<[^>]*>|https?://\S+")):
        plain = pattern.sub(lambda match: "\0" * len(match[0]), plain)
    spots = [match.span(1) for match in FIGURE.finditer(plain) if any(match.groups()[1:]) or "." in match[1]]
    position = 0
    marked = False
    for line in text.splitlines(keepends=True):
        if MARKER.match(line.strip()):
            marked = True
        elif marked and line.lstrip().startswith("|"):
            spots += [(position + m.start(), position + m.end()) for m in re.finditer(r"\d+(?:\.\d+)?", line)]
        elif line.strip():
            marked = False
        position += len(line)
    for start, end in sorted(set(spots)):
        digit = max(place for place in range(start, end) if text[place].isdigit())
        other = str((int(text[digit]) + 1) % 10)
        yield f"{text[start:end]} in {text[max(0, start - 30) : end + 20]!r}", text[:digit] + other + text[digit + 1 :]


def suggestions(number: str, unit: str, limit: int = 8) -> list[str]:
    """Return entries of results files that show this figure."""
    keys = ("checkpoint", "dataset", "tier", "generator", "attack", "eps", "what", "model", "method", "run")
    found = {}
    for file in sorted(ROOT.glob("results/**/*.json")):
        if {"scores", "cells", "raw", "checks"} & set(file.parts):
            continue
        name, content = str(file.relative_to(ROOT)), json.loads(file.read_text(encoding="utf-8"))
        parts = {f"{name}#{key}": value for key, value in content.items()} if isinstance(content, dict) else {}
        for source, rows in {name: content, **parts}.items():
            for row in rows if isinstance(rows, list) else [rows]:
                for key, value in row.items() if isinstance(row, dict) else ():
                    if isinstance(value, float | int) and shows(number, unit, value):
                        choice = [shlex.quote(f"{k}={row[k]}") for k in keys if row.get(k) not in (None, "all")]
                        found[f"{' '.join([source, *choice])}: {key}"] = None
    return list(found)[:limit]


if __name__ == "__main__":
    for page in sys.argv[1:]:
        for problem in figure_problems(Path(page).read_text(encoding="utf-8")):
            print(f"{page}: {problem}")
            if match := re.search(r": (\S+) (\S*) ?has no source$", problem):
                print("".join(f"    {entry}\n" for entry in suggestions(match[1], match[2])), end="")
