"""Draw the forgeries of train.py --forgeries: a row per photograph, with the mask below every forgery.

  python -m studies.forgery_examples

The default photographs are generated (demo set), so that the figure shows no real person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Rectangle

from datasets.forgeries.forger import FORGERIES
from datasets.images import read_record
from datasets.spec import open_records
from datasets.transforms import resize_to
from utils.args import add_seed, command_line, int_in, make_parser, run_script
from utils.errors import UserError
from utils.figures import new_figure, save_figure, styled
from utils.files import write_json
from utils.runtime import run_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def examples_figure(images: Sequence[np.ndarray], seed: int) -> Figure:
    """Photographs ``(H, W, 3)`` uint8 and their forgeries, each above its mask (white: replaced)."""
    figure, axes = new_figure(
        1.15 * (1 + len(FORGERIES)),
        1.7 * len(images),
        1 + len(FORGERIES),
        nrows=2 * len(images),
        height_ratios=[1, 0.45] * len(images),
    )
    grid = axes.reshape(2 * len(images), -1)
    for panel in axes:
        panel.set_axis_off()
    for row, image in enumerate(images):
        grid[2 * row, 0].imshow(image)
        for column, forge in enumerate(FORGERIES.values(), start=1):
            forged, mask = forge(image, np.random.default_rng([seed, row, column]))
            grid[2 * row, column].imshow(forged)
            grid[2 * row + 1, column].imshow(mask, cmap="gray", vmin=0, vmax=1)
            grid[2 * row + 1, column].add_patch(_border(mask.shape))
    for panel, name in zip(grid[0], ["real", *FORGERIES], strict=True):
        panel.set_title(name)
    return figure


def _border(shape: tuple[int, ...]) -> Rectangle:
    """A thin frame that makes a white mask visible on a white page."""
    return Rectangle((-0.5, -0.5), shape[1], shape[0], fill=False, edgecolor="#777777", linewidth=0.8)


def main(argv: Sequence[str] | None = None) -> dict:
    """Draw the figure and write its facts next to it."""
    parser = make_parser(__doc__, "python -m studies.forgery_examples")
    parser.add_argument("--data", default="demo", metavar="SPEC", help="default: demo, whose people do not exist")
    parser.add_argument("--n", type=int_in(1, 20), default=4, help="photographs (default: 4)")
    parser.add_argument("--size", type=int_in(32, 1024), default=192, help="px (default: 192)")
    parser.add_argument("--output", default="results/forgeries/examples", help="files without their extension")
    add_seed(parser)
    args = parser.parse_args(argv)
    reals = [record for record in open_records(args.data).records if record.label == 0]
    if len(reals) < args.n:
        raise UserError(f"expected {args.n} real images in {args.data}, got {len(reals)}")
    chosen = np.random.default_rng(args.seed).choice(len(reals), args.n, replace=False)
    images = [resize_to(read_record(reals[index]), args.size, args.size) for index in chosen]
    paths = save_figure(examples_figure(images, args.seed), args.output)
    facts = run_facts(command_line("-m studies.forgery_examples", argv))
    write_json(f"{args.output}.json", {**facts, "n": args.n, "seed": args.seed, "size": args.size})
    print("\n".join(map(str, paths)))
    return {"figures": [str(path) for path in paths]}


if __name__ == "__main__":
    run_script(main)
