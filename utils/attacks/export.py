"""Adversarial images as a data set that every script reads, with a picture of what was done to them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from datasets.images import read_image
from datasets.spec import LABEL_NAMES, Listing
from utils.attacks.cells import Cell
from utils.attacks.names import size_name
from utils.attacks.report import example_figure
from utils.attacks.runs import Target
from utils.attacks.survival import to_pixels
from utils.figures import save_figure
from utils.files import atomic_write_bytes

EXAMPLES = 3  # rows of the figure


class Exporter:
    """Writes each adversarial image as ``folder/{real,fake}/<number>.png``, lossless, in the geometry of the attack.

    The images are those after rounding to 8 bits, whose scores a cell holds as ``rounded_p_fake``. The number is the
    position of the original in the listing.
    """

    def __init__(self, folder: Path, listing: Listing, source: Target) -> None:
        self.folder = folder
        self.listing = listing
        self.geometry = source.candidate.detector.geometry

    def __call__(self, indices: Tensor, adversarial: Tensor) -> None:
        for index, image in zip(indices.tolist(), to_pixels(adversarial), strict=True):
            data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
            atomic_write_bytes(self.file(index), data)

    def file(self, index: int) -> Path:
        """Where the adversarial version of an image goes."""
        return self.folder / LABEL_NAMES[self.listing.records[index].label or 0] / f"{index:05}.png"

    def draw_example(self, cell: Cell) -> None:
        """Write example.pdf and .png: images that the attack turned, with both scores, fakes first.

        It shows photographs of the data set: mind their terms before it is published.
        """
        won = cell.right("clean") & ~cell.right() & cell.attacked
        order = np.argsort(-cell.table.label, kind="stable")  # fakes that pass as real are the usual aim
        chosen = [row for row in order if won[row]][:EXAMPLES] or [int(np.flatnonzero(cell.attacked)[0])]
        index_of = {record.path: index for index, record in enumerate(self.listing.records)}
        paths = [cell.table.path[row] for row in chosen]
        clean = np.stack([self.geometry(read_image(path)) for path in paths])
        changed = np.stack([read_image(self.file(index_of[path])) for path in paths])
        scores = [(float(cell.extra["clean_p_fake"][row]), float(cell.table.p_fake[row])) for row in chosen]
        names = [LABEL_NAMES[cell.table.label[row]] for row in chosen]
        plan = cell.info["plan"]
        title = f"{cell.info['checkpoint']}, {plan['attack']} {plan['norm']} {size_name(plan['eps'])}"
        save_figure(example_figure(clean, changed, scores, names, title), self.folder / "example")
