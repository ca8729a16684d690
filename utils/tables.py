"""Result tables, from rows of plain values to CSV, Markdown and LaTeX.

A column is (key, title). If a row has a value under ``<key>_ci``, the interval [low, high] follows the figure. The CSV
is for programs: full precision, keys as headers, the interval in two separate columns.
"""

import csv
import io
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import atomic_write_text, read_text

Row = Mapping[str, Any]
Columns = Sequence[tuple[str, str]]
Formats = str | Mapping[str, str]

DEFAULT_FORMAT = ".3f"
# A table of a page, with its source.
MARKED = re.compile(r"^<!-- table: (\S+) -->\n(?:\n(?=\|))?(?:\|.*\n)*", re.MULTILINE)
MISSING = "\N{EN DASH}"
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\N{EN DASH}": "--",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
}


def columns(**titles: str) -> Columns:
    """Columns from keyword arguments: ``columns(auc="AUC", n="Images")``."""
    return list(titles.items())


def format_value(value: Any, fmt: str = DEFAULT_FORMAT, interval: Sequence[float] | None = None) -> str:
    """The text of one cell: ``0.968 [0.951, 0.983]``; an en dash for None and NaN.

    ``fmt`` is a format specification for floats, such as ".3f" or ".1%".
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = format(value, fmt) if isinstance(value, float) else str(value)
    if interval is None:
        return text
    low, high = interval
    return f"{text} [{format(float(low), fmt)}, {format(float(high), fmt)}]"


def _cells(rows: Sequence[Row], columns: Columns, fmt: Formats) -> list[list[str]]:
    """The texts of all cells, (rows, columns)."""
    formats = {key: fmt if isinstance(fmt, str) else fmt.get(key, DEFAULT_FORMAT) for key, _ in columns}
    return [[format_value(row.get(key), formats[key], row.get(f"{key}_ci")) for key, _ in columns] for row in rows]


def _is_numeric(rows: Sequence[Row], key: str) -> bool:
    """Whether a column holds only numbers (or nothing) and is aligned to the right."""
    values = [row.get(key) for row in rows if row.get(key) is not None]
    return bool(values) and all(isinstance(value, int | float | np.number) for value in values)


def markdown_table(rows: Sequence[Row], columns: Columns, fmt: Formats = DEFAULT_FORMAT) -> str:
    """The table as GitHub Markdown, padded to be readable as plain text; ends with a line feed."""
    titles = [_markdown(title) for _, title in columns]
    body = [[_markdown(cell) for cell in line] for line in _cells(rows, columns, fmt)]
    right = [_is_numeric(rows, key) for key, _ in columns]
    widths = [max(3, *(len(line[i]) for line in [titles, *body])) for i in range(len(columns))]
    rule = ["-" * (width - 1) + ":" if flush else "-" * width for width, flush in zip(widths, right, strict=True)]
    sides = [">" if flush else "<" for flush in right]

    def padded(line: Sequence[str]) -> list[str]:
        return [f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)]

    return "".join(f"| {' | '.join(line)} |\n" for line in [padded(titles), rule, *map(padded, body)])


def _markdown(text: str) -> str:
    """Escape characters that would end a cell."""
    return text.replace("|", r"\|").replace("\r", " ").replace("\n", " ")


def latex_table(
    rows: Sequence[Row], columns: Columns, caption: str = "", label: str = "", fmt: Formats = DEFAULT_FORMAT
) -> str:
    """The table as LaTeX for the booktabs package, inside a table environment if it has a caption."""
    align = "".join("r" if _is_numeric(rows, key) else "l" for key, _ in columns)
    lines = [" & ".join(_latex(title) for _, title in columns) + r" \\", r"\midrule"]
    lines += [" & ".join(_latex(cell) for cell in line) + r" \\" for line in _cells(rows, columns, fmt)]
    # LaTeX reads a bracket after a line break as its optional argument.
    lines = [f"{{}}{line}" if line.startswith("[") else line for line in lines]
    tabular = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"]
    if caption:
        head = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption)}}}"]
        tabular = [*head, *([rf"\label{{{label}}}"] if label else []), *tabular, r"\end{table}"]
    return "\n".join([r"% needs \usepackage{booktabs}", *tabular]) + "\n"


def _latex(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in " ".join(text.split()))


def csv_table(rows: Sequence[Row], columns: Columns) -> str:
    """The table as CSV with full precision; ``<key>_low,<key>_high`` follow a key with intervals.

    None and NaN are empty fields.
    """
    with_interval = {key for key, _ in columns if any(row.get(f"{key}_ci") is not None for row in rows)}
    header = []
    for key, _ in columns:
        header += [key, f"{key}_low", f"{key}_high"] if key in with_interval else [key]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        line: list[Any] = []
        for key, _ in columns:
            low_high = row.get(f"{key}_ci") or (None, None)
            line += [row.get(key), *low_high] if key in with_interval else [row.get(key)]
        writer.writerow([_raw(value) for value in line])
    return text.getvalue()


def _raw(value: Any) -> Any:
    """A plain value for the csv module, empty for None and NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def write_table(
    rows: Sequence[Row],
    columns: Columns,
    stem: str | os.PathLike[str],
    caption: str = "",
    fmt: Formats = DEFAULT_FORMAT,
) -> list[Path]:
    """Write ``stem``.csv, .md and .tex, each atomically, and return their paths.

    ``fmt`` is one format specification for all floats, or a mapping from column key to one.

    Raises:
        UserError: a file cannot be written.
    """
    markdown = (f"{caption}\n\n" if caption else "") + markdown_table(rows, columns, fmt)
    label = f"tab:{Path(stem).name.replace('_', '-')}"
    texts = {".csv": csv_table(rows, columns), ".md": markdown, ".tex": latex_table(rows, columns, caption, label, fmt)}
    paths = []
    for ending, text in texts.items():
        # Not with_suffix: a stem such as "eps_0.5" contains a dot.
        path = Path(f"{os.fspath(stem)}{ending}")
        atomic_write_text(path, text)
        paths.append(path)
    return paths


def with_current_tables(page: str, root: Path) -> str:
    """Put the tables of their files into a page: each behind its comment ``<!-- table: results/x/metrics.md -->``.

    Raises:
        UserError: such a file, a path below ``root``, cannot be read.
    """

    def renewed(match: re.Match[str]) -> str:
        lines = read_text(root / match[1], "a table of results").splitlines(keepends=True)
        return f"<!-- table: {match[1]} -->\n" + "".join(line for line in lines if line.startswith("|"))

    return MARKED.sub(renewed, page)


def unique_names(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once, ``cnn-1, cnn-2``, so that no two in the result are the same."""
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(1))
        repeated = names.count(name) > 1
        unique.append(next(new for new in numbered if new not in (*names, *unique)) if repeated else name)
    return unique
