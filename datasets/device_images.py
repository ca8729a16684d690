"""The whole training set in the memory of the device, where batches are cropped and flipped without the host.

140,000 images of 256 px are 27 GB as bytes: they fit beside a model on a large GPU, and an epoch then reads no file,
decodes nothing and sends nothing over the bus.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.images import UnreadableImage
from datasets.loading import Batch, EpochSampler, ImageDataset, Unreadable, make_loader
from datasets.transforms import TrainTransform

ROOM = 0.5  # of the free memory of the device may go to images; the model wants the rest


class DeviceLoader:
    """Yields the batches that a DataLoader over the same dataset and sampler would, pixel for pixel, from the device.

    It takes images of one size that need no rescaling, and the presets of augmentation that only crop and flip: JPEG
    compression has no counterpart on a GPU that gives the same pixels. Holds ``(N, H, W, 3)`` uint8 on ``device``.

    Raises:
        ValueError: the set cannot be kept so; the message says why.
    """

    num_workers = 0

    def __init__(
        self, dataset: ImageDataset, batch_size: int, sampler: EpochSampler, drop_last: bool, device: torch.device
    ) -> None:
        transform = dataset.transform
        if not isinstance(transform, TrainTransform) or transform.steps or dataset.forger:
            raise ValueError("only crops and flips are made on the device")
        dataset.memory_left = 0  # one copy is enough
        self.dataset, self.batch_size, self.sampler, self.drop_last = dataset, batch_size, sampler, drop_last
        self.transform, self.device = transform, device
        self.reasons: dict[int, str] = {}
        labels = [float("nan") if record.label is None else float(record.label) for record in dataset.records]
        self.labels = torch.tensor(labels)
        self.images = self._load()

    def _load(self) -> Tensor:
        """Decode every image once, with as many threads as there are cores."""
        first, size = self._first_image(), len(self.dataset)
        if self.transform.geometry.scale(first, at_least=self.transform.size).shape != first.shape:
            raise ValueError("the images are to be rescaled")
        if (need := first.nbytes * size) > (room := free_bytes(self.device) * ROOM):
            raise ValueError(f"{need / 2**30:.1f} GiB of images are too much for {room / 2**30:.1f} GiB")
        images = torch.empty((size, *first.shape), dtype=torch.uint8, device=self.device)

        def decode(index: int) -> None:
            try:
                image = self.dataset.read(index)
            except UnreadableImage as error:
                self.reasons[index] = str(error)
                return
            if image.shape != first.shape:
                raise ValueError(
                    f"the images have several sizes, {first.shape[1]} x {first.shape[0]} px and "
                    f"{image.shape[1]} x {image.shape[0]} px among them"
                )
            images[index] = torch.from_numpy(np.array(image))

        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, range(size)))
        return images

    def _first_image(self) -> np.ndarray:
        for index in range(len(self.dataset)):
            try:
                return self.dataset.read(index)
            except UnreadableImage:
                continue
        raise ValueError("no image can be read")

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size if self.drop_last else -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        torch.empty((), dtype=torch.int64).random_()  # as DataLoader draws one, so that dropout is the same after it
        pairs = list(self.sampler)
        for number in range(len(self)):
            yield self._batch(pairs[number * self.batch_size : (number + 1) * self.batch_size])

    def _batch(self, pairs: list[tuple[int, int]]) -> Batch:
        """Gather the crops of one batch in a single indexing step; flipped ones read their columns backwards."""
        good = [(index, seed) for index, seed in pairs if index not in self.reasons]
        rows = torch.tensor([index for index, _ in good], dtype=torch.int64)
        shape, side = tuple(self.images.shape[1:3]), self.transform.size
        views = np.array([self.transform.view(shape, seed) for _, seed in good]).reshape(-1, 3)
        top, left, flip = (torch.from_numpy(column)[:, None] for column in views.T)
        across = torch.arange(side)
        down, along = top + across, left + torch.where(flip > 0, side - 1 - across, across)
        where = (rows[:, None, None], down[:, :, None], along[:, None, :])
        images = self.images[tuple(part.to(self.device, non_blocking=True) for part in where)]
        failed = [Unreadable(index, self.reasons[index]) for index, _ in pairs if index in self.reasons]
        return Batch(images, self.labels[rows], rows, failed)


def free_bytes(device: torch.device) -> float:
    """Memory of the device that is free; that of the host has no limit here, for it is the caller's own choice."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def make_training_loader(
    dataset: ImageDataset,
    batch_size: int,
    sampler: EpochSampler,
    workers: int,
    drop_last: bool,
    device: torch.device,
    place: str = "auto",
) -> tuple[DataLoader | DeviceLoader, str]:
    """A loader of training batches, and a line that says where the images are.

    ``place`` is ``host``, ``device`` (of any kind), or ``auto``: on a GPU if the set fits there.
    """
    why = ""
    if place == "device" or (place == "auto" and device.type == "cuda"):
        try:
            loader = DeviceLoader(dataset, batch_size, sampler, drop_last, device)
            return loader, f"{len(dataset)} images are in the memory of {device}"
        except ValueError as error:
            why = f"images stay on the host: {error}"
    host = make_loader(
        dataset, batch_size, sampler=sampler, workers=workers, drop_last=drop_last, pin_memory=device.type == "cuda"
    )
    return host, why
