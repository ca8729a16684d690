"""Put the current tables of results/ into the pages that show them.

  python -m studies.page_tables
  python -m studies.page_tables README.md docs/results.md

A page names the file of a table in a comment in front of it: <!-- table: results/summary.md -->. The default is every
page: README.md, docs/ and the model cards of the releases. Prints the pages that changed. Figures in sentences are not
touched: `python -m tests.sources README.md` lists those that no longer equal their source.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.args import make_parser, run_script
from utils.checkpoint_files import RELEASES
from utils.files import ROOT, atomic_write_text, read_text
from utils.tables import with_current_tables


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of page_tables.py."""
    parser = make_parser(__doc__, "python -m studies.page_tables")
    parser.add_argument("pages", nargs="*", metavar="PAGE.md", help="default: all")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Renew the tables; returns ``{"changed": pages}``."""
    args = get_args_parser().parse_args(argv)
    cards = [ROOT / "checkpoints" / f"{name}.md" for name in RELEASES]
    every_page = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *cards]
    changed = []
    for page in [Path(name) for name in args.pages] or every_page:
        text = read_text(page, "a page")
        renewed = with_current_tables(text, ROOT)
        if renewed != text:
            atomic_write_text(page, renewed)
            print(page)
            changed.append(str(page))
    return {"changed": changed}


if __name__ == "__main__":
    run_script(main)
