"""The whole training set in device memory, where batches are cropped and flipped without the host.

140,000 images of 256 px take 27 GB as bytes and fit on a large GPU together with a model. An epoch then reads no file,
decodes nothing and transfers nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.decoding.images import UnreadableImage
from datasets.loading import Batch, EpochSampler, ImageDataset, Unreadable, make_loader
from datasets.transforms import TrainTransform

ROOM = 0.5  # share of the free device memory for images; the model needs the rest


class DeviceLoader:
    """Yields the batches of a DataLoader over the same dataset and sampler, pixel for pixel, from device memory.

    Images must have one size and need no rescaling, and the augmentation may only crop and flip, since no JPEG encoder
    on a GPU gives the same pixels as OpenCV. Holds ``(N, H, W, 3)`` uint8 on ``device``.

    Raises:
        ValueError: the dataset does not qualify; the message says why.
    """

    num_workers = 0

    def __init__(
        self, dataset: ImageDataset, batch_size: int, sampler: EpochSampler, drop_last: bool, device: torch.device
    ) -> None:
        transform = dataset.transform
        if not isinstance(transform, TrainTransform) or transform.steps or transform.needs_face:
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
        if self.transform.scale(first).shape != first.shape:
            raise ValueError("the images must be rescaled")
        if (need := first.nbytes * size) > (room := free_bytes(self.device) * ROOM):
            raise ValueError(f"{need / 2**30:.1f} GiB of images exceed {room / 2**30:.1f} GiB")
        images = torch.empty((size, *first.shape), dtype=torch.uint8, device=self.device)

        def decode(index: int) -> None:
            try:
                image = self.dataset.read(index)
            except UnreadableImage as error:
                self.reasons[index] = str(error)
                return
            if image.shape != first.shape:
                raise ValueError(
                    f"the images differ in size: {first.shape[1]} x {first.shape[0]} px and "
                    f"{image.shape[1]} x {image.shape[0]} px"
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
        torch.empty((), dtype=torch.int64).random_()  # DataLoader draws one too, which keeps dropout the same
        pairs = list(self.sampler)
        for number in range(len(self)):
            yield self._batch(pairs[number * self.batch_size : (number + 1) * self.batch_size])

    def _batch(self, pairs: list[tuple[int, int]]) -> Batch:
        """Gather the crops of one batch in a single indexing step; flipped ones read their columns backwards."""
        good = [(index, seed) for index, seed in pairs if index not in self.reasons]
        rows = torch.tensor([index for index, _ in good], dtype=torch.int64)
        shape, side = tuple(self.images.shape[1:3]), self.transform.size
        views = np.array([self.transform.view(shape, seed) for _, seed in good], np.int64).reshape(-1, 3)
        top, left, flip = (torch.from_numpy(column)[:, None] for column in views.T)
        across = torch.arange(side)
        down, along = top + across, left + torch.where(flip > 0, side - 1 - across, across)
        where = (rows[:, None, None], down[:, :, None], along[:, None, :])
        images = self.images[tuple(part.to(self.device, non_blocking=True) for part in where)]
        failed = [Unreadable(index, self.reasons[index]) for index, _ in pairs if index in self.reasons]
        return Batch(images, self.labels[rows], rows, failed)


def free_bytes(device: torch.device) -> float:
    """Free device memory; unlimited on the CPU, which is used only on request."""
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
    """Return a loader of training batches, and a line that says where the images are.

    ``place`` is ``host``, ``device`` (of any kind), or ``auto``: on a GPU if the images fit there.
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
