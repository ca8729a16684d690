"""A folder with the tokens of one listing: the output of a detector's frozen part for every view of its images.

    rows.bin      one row per view: the label, the teacher's logit, and the tokens (R, D) float16
    about.json    the facts behind the digest in the folder's name: weights, geometry, augmentation, files...

Rows are appended to ``rows.part``, which takes its final name when it is whole, so a killed build continues after its
last whole row. Before an existing folder is used, a few of its rows are computed again and compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.decoding.images import UnreadableImage
from datasets.loading import Batch, ImageDataset, Unreadable, make_loader
from models.detector import Detector
from utils.errors import UserError
from utils.files import locked, write_json
from utils.runtime import autocast
from utils.scoring.scorer import Scores, Settings
from utils.training.log import log

BATCH_SIZE = 32
CHECKED = 2  # rows of an existing cache that are computed again, the first and the last
LEAST_COSINE = 0.98  # between tokens then and now: bfloat16 and another library stay above

# From images as the dataset yields them to tokens (N, R, D) and, with a teacher, its logits (N,).
Compute = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass
class TokenCache:
    """The rows of a listing, ``views`` for each of its images, those of an image next to each other.

    Attributes:
        folder: named after the digest of ``facts``.
        dataset: the images of the listing, augmented by the seed of a row.
        seeds: of the views, ``(N, views)``.
        shape: of the tokens of a view, (R, D).
    """

    folder: Path
    facts: dict[str, Any]
    dataset: ImageDataset
    seeds: np.ndarray
    shape: tuple[int, int]

    @property
    def views(self) -> int:
        return self.seeds.shape[1]

    @property
    def row(self) -> np.dtype:
        """One row: the label is NaN if the image is unreadable, the answer without a teacher."""
        return np.dtype([("label", "<f4"), ("answer", "<f4"), ("tokens", "<f2", self.shape)])

    @property
    def missing(self) -> int:
        """The number of rows that are yet to be computed, by the size of the file."""
        return self.seeds.size - self._rows_on_disk()

    @property
    def _whole(self) -> Path:
        return self.folder / "rows.bin"

    @property
    def _part(self) -> Path:
        return self.folder / "rows.part"

    @cached_property
    def rows(self) -> np.ndarray:
        """All rows, ``(N * views,)``, mapped from the file."""
        return np.memmap(self._whole, self.row, "r")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the map: loader processes open it again."""
        return {key: value for key, value in self.__dict__.items() if key != "rows"}

    def reason(self, index: int) -> str:
        """The reason why the image has no tokens."""
        try:
            self.dataset.read(index)
        except UnreadableImage as error:
            return str(error)
        return f"unreadable when its tokens were cached; delete {self.folder} to try again"

    def build(self, compute: Compute, workers: int) -> int:
        """Compute the rows that are missing, all of them if some no longer match; return their number.

        Raises:
            UserError: the file cannot be written, or the tokens do not fit into it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "about.json", self.facts)
        with locked(self.folder, f"waiting for another process that computes tokens in {self.folder}"):
            if self._whole.exists() and self._whole.stat().st_size != self.seeds.size * self.row.itemsize:
                os.replace(self._whole, self._part)  # damaged: the rows before the damage count
            done = self._rows_on_disk()
            if done and not self._matches(done, compute):
                log(f"note: {self.folder} does not hold the tokens of these images; they are computed again")
                self._whole.unlink(missing_ok=True)
                self._part.unlink(missing_ok=True)
                done = 0
            if done == self.seeds.size and self._whole.exists():
                return 0
            try:
                self._append(done, compute, workers)
            except OSError as error:
                raise UserError(
                    f"expected to write tokens to {self._part}, got: {error.strerror or error}; "
                    "free some space and start again, which continues, or pass another --cache"
                ) from None
            os.replace(self._part, self._whole)
            return self.seeds.size - done

    def _rows_on_disk(self) -> int:
        """Count the whole rows."""
        file = self._whole if self._whole.exists() else self._part
        return min(self.seeds.size, file.stat().st_size // self.row.itemsize) if file.exists() else 0

    def _matches(self, done: int, compute: Compute) -> bool:
        """Compute a few of the first ``done`` rows again, and compare."""
        numbers = np.unique(np.linspace(0, done - 1, CHECKED).round().astype(int))
        file = self._whole if self._whole.exists() else self._part
        found = np.memmap(file, self.row, "r", shape=(done,))[numbers]
        wanted = np.concatenate(list(self._compute(numbers, compute, 0)))
        if not np.array_equal(found["label"], wanted["label"], equal_nan=True):
            return False
        a, b = (rows["tokens"].reshape(len(rows), -1).astype(np.float64) for rows in (found, wanted))
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return bool(((a * b).sum(1) >= LEAST_COSINE * lengths).all())

    def _append(self, done: int, compute: Compute, workers: int) -> None:
        count = self.seeds.size
        bar = tqdm(total=count, initial=done, desc=self.facts["listing"], unit=" images", disable=None, leave=False)
        with open(self._part, "ab") as file, bar:
            file.truncate(done * self.row.itemsize)
            for rows in self._compute(np.arange(done, count), compute, workers):
                file.write(rows.tobytes())
                bar.update(len(rows))
            os.fsync(file.fileno())

    def _compute(self, numbers: np.ndarray, compute: Compute, workers: int) -> Iterator[np.ndarray]:
        """Yield the rows with these numbers, in batches."""
        keys = [(number // self.views, int(self.seeds.flat[number])) for number in numbers.tolist()]
        loader = make_loader(self.dataset, BATCH_SIZE, keys, workers)
        for start, batch in zip(range(0, len(keys), BATCH_SIZE), loader, strict=True):
            failed = {item.index for item in batch.unreadable}
            good = [index not in failed for index, _ in keys[start : start + BATCH_SIZE]]
            rows = np.zeros(len(good), self.row)
            rows["label"] = rows["answer"] = np.nan
            if any(good):
                tokens, answers = compute(batch.images)
                rows["label"][good] = batch.labels
                rows["tokens"][good] = halved(tokens)
                if answers is not None:
                    rows["answer"][good] = answers.cpu()
            yield rows


def halved(tokens: Tensor) -> np.ndarray:
    """Round tokens to float16. Raises UserError if they are too large for it."""
    half = tokens.half()
    if not half.isfinite().all():
        raise UserError(
            f"expected tokens below 65,504 in size, got {tokens.abs().max().item():.3g}, which does not fit into the "
            "cache; drop --token-views"
        )
    return half.cpu().numpy()


class TokenDataset(Dataset):
    """The cached views of the training images of all listings; yields whole batches.

    The seed of an item, which would determine its augmentation, chooses one of its views.
    """

    def __init__(self, caches: Sequence[TokenCache]) -> None:
        self.caches = caches
        self.records = [record for cache in caches for record in cache.dataset.records]
        self.starts = np.cumsum([0, *(len(cache.seeds) for cache in caches)])  # the first index of each listing

    def __len__(self) -> int:
        return len(self.records)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """Return the batch of these ``(index, seed)`` pairs, in the order of the files."""
        indices, seeds = np.array(sorted(keys), dtype=np.int64).T
        numbers = np.searchsorted(self.starts, indices, side="right") - 1
        parts = []
        for number in np.unique(numbers):
            cache, own = self.caches[number], numbers == number
            parts.append(cache.rows[(indices[own] - self.starts[number]) * cache.views + seeds[own] % cache.views])
        rows = np.concatenate(parts)
        good = ~np.isnan(rows["label"])
        failed = [
            Unreadable(int(index), self.caches[number].reason(index - self.starts[number]))
            for index, number in zip(indices[~good], numbers[~good], strict=True)
        ]
        return Batch(
            images=torch.from_numpy(rows["tokens"][good]),
            labels=torch.from_numpy(rows["label"][good]),
            indices=torch.from_numpy(indices[good]),
            unreadable=failed,
            answers=torch.from_numpy(rows["answer"][good]) if self.caches[0].facts["teacher"] else None,
        )


def valid_scorer(caches: Sequence[TokenCache] | None, settings: Settings) -> Callable[[Detector], list[Scores]] | None:
    """Return a function that scores the cached validation images of each listing; None without caches."""
    return (lambda detector: [score_tokens(detector, cache, settings) for cache in caches]) if caches else None


@torch.inference_mode()
def score_tokens(detector: Detector, cache: TokenCache, settings: Settings) -> Scores:
    """Score the cached rows of a listing; the indices are those of rows, so of images if each has one view."""
    device = detector.mean.device
    missing = np.isnan(cache.rows["label"])
    good = np.flatnonzero(~missing)
    logits = [np.empty(0)]
    detector.eval()
    for start in range(0, len(good), settings.batch_size):
        tokens = torch.from_numpy(cache.rows["tokens"][good[start : start + settings.batch_size]])
        with autocast(device, settings.dtype):
            logits.append(detector.from_tokens(tokens.to(device).float()).double().cpu().numpy())
    failed = [(index, cache.reason(index // cache.views)) for index in np.flatnonzero(missing).tolist()]
    return Scores(good, np.concatenate(logits), failed)
