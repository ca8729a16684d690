"""Loading: unreadable images are told, epochs are repeatable, workers change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.decoding.images import read_image
from datasets.listing.spec import Record, open_records
from datasets.loading import EpochSampler, ImageDataset, Unreadable, collate, make_loader
from datasets.transforms import EvalTransform, Geometry, TrainTransform

GEOMETRY = Geometry("crop", 32)
IMAGE_BYTES = 40 * 40 * 3


@pytest.fixture
def records(image_folder) -> list[Record]:
    return open_records(str(image_folder), "train").records  # 8 real, 8 fake


def break_image(record: Record) -> None:
    Path(record.path).write_bytes(b"no image")


def epoch_of(records, seed: int, epochs: int, workers: int, augmentation: str = "forensic") -> list[torch.Tensor]:
    """Images of each epoch in the order of the records, (N, 3, 32, 32)."""
    dataset = ImageDataset(records, TrainTransform(GEOMETRY, augmentation))
    sampler = EpochSampler(len(records), seed)
    loader = make_loader(dataset, 3, sampler=sampler, workers=workers)
    result = []
    for epoch in range(epochs):
        sampler.epoch = epoch
        batches = list(loader)
        order = torch.cat([batch.indices for batch in batches]).argsort()
        result.append(torch.cat([batch.images for batch in batches])[order])
    return result


# ------------------------------------------------------------------------------------------------- batches


def test_batches_follow_the_records(records):
    dataset = ImageDataset(records, EvalTransform(GEOMETRY))
    batches = list(make_loader(dataset, 5))
    assert [len(batch.images) for batch in batches] == [5, 5, 5, 1]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(16))
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.dtype == torch.float32
    assert labels.tolist() == [float(record.label) for record in records]
    images = torch.cat([batch.images for batch in batches])
    assert images.dtype == torch.float32
    assert torch.equal(images[7], EvalTransform(GEOMETRY)(read_image(records[7].path)))


def test_drop_last_leaves_no_small_batch(records):
    loader = make_loader(ImageDataset(records, EvalTransform(GEOMETRY)), 5, drop_last=True)
    assert [len(batch.images) for batch in loader] == [5, 5, 5]


def test_an_unknown_label_is_nan(records):
    dataset = ImageDataset([Record(records[0].path, None, "")], EvalTransform(GEOMETRY))
    batch = next(iter(make_loader(dataset, 1)))
    assert torch.isnan(batch.labels).tolist() == [True]


def test_unreadable_images_are_listed_with_a_reason_and_take_no_place(records):
    broken, missing, empty = records[1], records[4], records[5]
    break_image(broken)
    Path(missing.path).unlink()
    Path(empty.path).write_bytes(b"")
    batches = list(make_loader(ImageDataset(records, EvalTransform(GEOMETRY)), 8))
    assert [item.index for batch in batches for item in batch.unreadable] == [1, 4, 5]
    assert all(item.reason for batch in batches for item in batch.unreadable)
    assert torch.cat([batch.indices for batch in batches]).tolist() == [0, 2, 3, *range(6, 16)]
    assert sum(len(batch.images) for batch in batches) == sum(len(batch.labels) for batch in batches) == 13


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_may_be_unreadable_as_a_whole(records, workers):
    for record in records[:4]:
        break_image(record)
    first, second = make_loader(ImageDataset(records[:6], EvalTransform(GEOMETRY)), 4, workers=workers)
    assert len(first.images) == len(first.labels) == len(first.indices) == 0
    assert first.indices.dtype == torch.int64
    assert [item.index for item in first.unreadable] == [0, 1, 2, 3]
    assert second.indices.tolist() == [4, 5]


def test_collate_keeps_the_order():
    items = [(torch.zeros(3, 2, 2), 1.0, 7), Unreadable(3, "why"), (torch.ones(3, 2, 2), 0.0, 5)]
    batch = collate(items)
    assert batch.indices.tolist() == [7, 5]
    assert batch.labels.tolist() == [1.0, 0.0]
    assert batch.images[1].min() == 1
    assert batch.unreadable == [Unreadable(3, "why")]


# -------------------------------------------------------------------------------------------------- epochs


def test_an_epoch_is_a_permutation_that_the_seed_repeats():
    sampler = EpochSampler(50, seed=3)
    epochs = []
    for epoch in (0, 1, 2):
        sampler.epoch = epoch
        epochs.append(list(sampler))
        assert sorted(index for index, _ in epochs[-1]) == list(range(50))
        assert list(sampler) == epochs[-1]
    assert len({tuple(index for index, _ in epoch) for epoch in epochs}) == 3
    seeds = [dict(epoch) for epoch in epochs]
    assert all(seeds[0][index] != seeds[1][index] for index in range(50))
    assert len(set(seeds[0].values())) == 50  # no two images share a draw
    again = EpochSampler(50, seed=3)
    again.epoch = 2
    assert list(again) == epochs[2]
    assert list(EpochSampler(50, seed=4)) != epochs[0]
    assert len(sampler) == 50


def test_workers_and_epochs_differ_but_repeat(records):
    """albumentations 2 repeats its random stream in every worker and every epoch; ours may not."""
    # All records are one image, so that only augmentation can tell them apart.
    same = [records[0]] * 12
    first, second = epoch_of(same, seed=1, epochs=2, workers=2)
    within = {image.numpy().tobytes() for image in first}
    assert len(within) >= 6
    assert sum(torch.equal(a, b) for a, b in zip(first, second, strict=True)) <= 6
    alone = epoch_of(same, seed=1, epochs=2, workers=0)
    assert torch.equal(alone[0], first)
    assert torch.equal(alone[1], second)
    assert not torch.equal(epoch_of(same, seed=2, epochs=1, workers=0)[0], first)


# --------------------------------------------------------------------------------------------------- cache


def test_the_memory_cache_changes_no_image(records):
    for augmentation in ("none", "forensic"):
        transform = TrainTransform(GEOMETRY, augmentation)
        plain, cached = ImageDataset(records, transform), ImageDataset(records, transform, memory_limit=10**9)
        for _ in range(2):
            for key in [(index, 5 + index) for index in range(len(records))]:
                assert torch.equal(plain[key][0], cached[key][0])


def test_cached_images_are_not_decoded_again(records):
    dataset = ImageDataset(records, EvalTransform(GEOMETRY), memory_limit=10**9)
    before = [dataset[index][0] for index in range(len(records))]
    for record in records:
        break_image(record)
    assert all(torch.equal(dataset[index][0], image) for index, image in enumerate(before))


def test_the_cache_respects_its_limit(records):
    dataset = ImageDataset(records, EvalTransform(GEOMETRY), memory_limit=3 * IMAGE_BYTES + 1)
    for index in range(len(records)):
        dataset[index]
    for record in records:
        break_image(record)
    readable = [index for index in range(len(records)) if not isinstance(dataset[index], Unreadable)]
    assert readable == [0, 1, 2]


def test_without_a_limit_nothing_is_kept(records):
    dataset = ImageDataset(records, EvalTransform(GEOMETRY))
    assert isinstance(dataset[0], tuple)
    break_image(records[0])
    assert isinstance(dataset[0], Unreadable)


def test_an_unreadable_image_may_become_readable(records):
    dataset = ImageDataset(records, EvalTransform(GEOMETRY), memory_limit=10**9)
    good = Path(records[0].path).read_bytes()
    break_image(records[0])
    assert isinstance(dataset[0], Unreadable)
    Path(records[0].path).write_bytes(good)
    assert np.isfinite(dataset[0][0]).all()


def test_passes_draw_alike_from_the_generator_with_any_number_of_workers(records):
    """Else dropout would depend on the number of workers, and on the epoch from which a run was resumed."""
    draws = []
    for workers in (0, 2):
        loader = make_loader(ImageDataset(records, EvalTransform(GEOMETRY)), 8, workers=workers)
        torch.manual_seed(0)
        for _ in range(3):
            list(loader)
        draws.append(torch.rand(4).tolist())
    assert draws[0] == draws[1]
