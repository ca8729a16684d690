"""Records to batches: the dataset, the sampler that makes every epoch repeatable, and the loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from datasets.balance import Groups, balanced
from datasets.decoding.images import UnreadableImage, read_record, read_size
from datasets.faces.framing import Box
from datasets.listing.records import FaceUser, Record
from utils.distributed import team

Item = tuple[Tensor, float, int]  # image, label, index


@dataclass
class Unreadable:
    """Replaces an item whose image could not be decoded."""

    index: int
    reason: str


@dataclass
class Batch:
    """The readable images of a batch, and the reasons why others are missing.

    ``images`` is ``(N, 3, H, W)`` float32 in [0, 1], or the stacked outputs of another transform, or cached tokens
    ``(N, R, D)``; ``labels`` is ``(N,)`` float32 with 0 real, 1 fake and NaN unknown; ``indices`` is ``(N,)`` int64
    into ``dataset.records``; ``answers`` are the cached logits ``(N,)`` of a teacher.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: list[Unreadable]
    answers: Tensor | None = None

    def pin_memory(self) -> Batch:
        self.images = self.images.pin_memory()
        self.labels = self.labels.pin_memory()
        return self


class Transform(FaceUser, Protocol):
    """Turns an image ``(H, W, 3)`` uint8, a seed and the box of a face, if any, into what a batch stacks."""

    def __call__(self, image: np.ndarray, seed: int = 0, box: Box | None = None) -> Tensor: ...


class ImageDataset(Dataset):
    """Images of a list of records; an item is ``(image, label, index)``.

    With an index ``(index, seed)``, the seed determines the augmentation of the item. Decoded images are kept in memory
    up to ``memory_limit`` bytes, so small sets are decoded once.

    A transform that needs the face of a picture gets its largest one. With ``every_face``, the item of an index is a
    list of items, one for each face, or one for the whole picture if it shows none. Both need records whose pictures
    were searched (datasets/faces/boxes.py).
    """

    def __init__(
        self, records: Sequence[Record], transform: Transform, memory_limit: int = 0, every_face: bool = False
    ) -> None:
        self.records = records
        self.transform = transform
        self.every_face = every_face
        self.memory_left = memory_limit
        self._decoded: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Item | list[Item] | Unreadable:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        try:
            image = self.read(index)
        except UnreadableImage as error:
            return Unreadable(index, str(error))
        record = self.records[index]
        label = record.label
        number = float("nan") if label is None else float(label)
        if self.every_face:
            return [(self.transform(image, seed, box), number, index) for box in record.faces or (None,)]
        return self.transform(image, seed, record.face_for(self.transform)), number, index

    def read(self, index: int) -> np.ndarray:
        """Return the decoded image ``(H, W, 3)`` uint8 RGB. Raises UnreadableImage."""
        image = self._decoded.get(index)
        if image is None:
            image = read_record(self.records[index])
            # The pixels of a mapped file are read-only; the operating system caches them already.
            if image.flags.writeable and image.nbytes <= self.memory_left:
                self.memory_left -= image.nbytes
                self._decoded[index] = image
        return image


def typical_side(records: Sequence[Record], sample: int = 64) -> int | None:
    """Median length in px of the shorter side over a sample of the images; None if none of them can be read."""
    sizes = [read_size(record.path) for record in records[:: max(1, len(records) // sample)]]
    sides = [min(size) for size in sizes if size]
    return int(np.median(sides)) if sides else None


class EpochSampler(Sampler):
    """Shuffled ``(index, seed)`` pairs that depend on the seed of the run and the epoch only.

    Each of several processes takes every ``size``-th pair, starting at its ``rank``, so that their batches together
    are those of one process with larger batches. All take equally many, so an epoch omits up to ``size`` - 1 images.

    With ``groups``, an epoch takes as many images of each group as its share says: it omits some of a large group and
    repeats those of a small one with other seeds.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, size: int = 1, groups: Groups | None = None) -> None:
        self.length = length
        self.groups = groups
        self.seed = seed
        self.rank = rank
        self.size = size
        self.epoch = 0

    def __len__(self) -> int:
        return self.length // self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.length if self.groups is None else balanced(self.groups, generator))
        seeds = generator.integers(0, 2**31, self.length)
        own = slice(self.rank, self.length // self.size * self.size, self.size)
        return iter(zip(order[own].tolist(), seeds[own].tolist(), strict=True))


def collate(items: Batch | Sequence[Item | list[Item] | Unreadable]) -> Batch:
    """Stack the readable items of a batch and list the others; an all-unreadable batch has N = 0.

    A dataset may also return whole batches (``__getitems__``), which stay as they are.
    """
    if isinstance(items, Batch):
        return items
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    lists = [item if isinstance(item, list) else [item] for item in items if not isinstance(item, Unreadable)]
    good = [item for parts in lists for item in parts]
    return Batch(
        images=_stack([image for image, _, _ in good]) if good else torch.empty(0, 3, 1, 1),
        labels=torch.tensor([label for _, label, _ in good], dtype=torch.float32),
        indices=torch.tensor([index for _, _, index in good], dtype=torch.int64),
        unreadable=unreadable,
    )


def _stack(images: Sequence[Tensor]) -> Tensor:
    """Stack images in their order of bytes, colours last, which is also the fastest one for convolutions.

    torch's own collate stacks straight into the memory that a worker shares with the main process.
    """
    if images[0].ndim != 3 or images[0].dtype == torch.uint8:
        return default_collate(list(images))
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


class Loader(DataLoader):
    """A loader that draws one number of torch's generator for each pass, however many workers it has.

    A DataLoader without workers does so; one whose workers persist draws for its first pass only. Dropout and attacks
    would then depend on the number of workers, and on where a run was resumed.
    """

    def __iter__(self) -> Any:
        if getattr(self, "_iterator", None) is not None:
            torch.empty((), dtype=torch.int64).random_()
        return super().__iter__()


def make_loader(
    dataset: Dataset,
    batch_size: int,
    sampler: Sampler | Sequence[tuple[int, int]] | None = None,
    workers: int = 0,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> DataLoader:
    """Build a loader of :class:`Batch`; without a sampler the records come in order."""
    return Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=drop_last,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread if workers else None,
    )


def _one_thread(_worker: int) -> None:
    """Keep OpenCV and torch from starting a thread per core inside every worker."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def stand_in(batch: Batch, side: int) -> int:
    """Let a process whose batch has fewer than two readable images take part in a joint step, with weight 0.

    Returns:
        1 for an ordinary batch; 0 if black images replaced it. A single process keeps its batch.
    """
    if team.size == 1 or len(batch.images) > 1:
        return 1
    shape = batch.images.shape[1:] if batch.images.ndim == 3 else (3, side, side)
    batch.images, batch.labels = torch.zeros(2, *shape), torch.zeros(2)
    batch.answers = None if batch.answers is None else torch.zeros(2)
    return 0
