"""Balanced epochs: the shares of sources with one class or both, and the draws that they lead to."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from datasets.balance import MAX_REPEATS, Groups, balanced, label_groups, shares
from datasets.listing.spec import Listing, open_records
from datasets.loading import EpochSampler

SIZES = [70, 3, 20, 8]
GROUPS = Groups(np.repeat(np.arange(4), SIZES), np.full(4, 0.25))


def epoch(seed: int = 0, number: int = 0, **ranks) -> list[tuple[int, int]]:
    sampler = EpochSampler(len(GROUPS.of_image), seed, **ranks, groups=GROUPS)
    sampler.epoch = number
    return list(sampler)


def test_each_group_is_taken_by_its_share_and_no_image_twice_before_all_are():
    for number in range(5):
        pairs = epoch(number=number)
        assert len(pairs) == len(GROUPS.of_image)
        sizes = Counter(GROUPS.of_image[index] for index, _ in pairs)
        assert sorted(sizes.values()) == [25, 25, 25, 26]
        times = Counter(index for index, _ in pairs)
        for group in range(4):
            counts = [times[index] for index in np.flatnonzero(GROUPS.of_image == group)]
            assert max(counts) - min(counts) <= 1
        assert len({seed for _, seed in pairs}) == len(pairs)  # an image that comes again is augmented differently
        assert pairs != sorted(pairs)
    assert len({index for number in range(20) for index, _ in epoch(number=number)}) == len(GROUPS.of_image)


def test_balanced_epochs_repeat_with_their_seed():
    assert epoch(3, 2) == epoch(3, 2)
    assert len({tuple(epoch(seed, number)) for seed in (1, 2) for number in (0, 1)}) == 4


def test_ranks_share_a_balanced_epoch():
    parts = [epoch(rank=rank, size=3) for rank in range(3)]
    assert {len(part) for part in parts} == {len(GROUPS.of_image) // 3}
    joined = [pair for together in zip(*parts, strict=True) for pair in together]
    assert joined == epoch()[: len(joined)]


def test_without_groups_an_epoch_is_what_it_always_was():
    generator = np.random.default_rng([7, 0])
    order, seeds = generator.permutation(30), generator.integers(0, 2**31, 30)
    assert list(EpochSampler(30, 7)) == list(zip(order.tolist(), seeds.tolist(), strict=True))


def test_groups_are_data_sets_and_labels(image_folder):
    listing = open_records(str(image_folder), "train")
    other = replace(listing, root="/elsewhere", records=listing.records[:9])
    groups = label_groups([listing, other, listing]).of_image.tolist()
    expected = [record.label for record in listing.records]
    assert groups[:16] == groups[25:]
    keys = [("faces", label) for label in expected] + [("other", label) for label in expected[:9]]
    assert len(set(zip(groups, keys, strict=False))) == len(set(keys)) == len(set(groups)) == 4
    assert len(label_groups([Listing("a", "train", [], "", "", ())]).share) == 0


# ------------------------------------------------------------------------------------------------------ shares


def share_of(sources: dict[str, tuple[int, int]]) -> dict[tuple[str, int], float]:
    """The share of each (source, label) of sources with so many reals and fakes."""
    keys = [(name, label) for name, sizes in sources.items() for label in (0, 1) if sizes[label]]
    found = shares([sources[name][label] for name, label in keys], [label for _, label in keys])
    return dict(zip(keys, found.tolist(), strict=True))


MIX = {"both": (500, 480), "large": (2200, 2200), "fakes": (0, 330), "few": (0, 48), "reals": (230, 0)}


def test_classes_are_halves_and_sources_equal_until_images_repeat_too_often():
    share, total = share_of(MIX), sum(map(sum, MIX.values()))
    for label in (0, 1):
        assert sum(value for (_, own), value in share.items() if own == label) == pytest.approx(0.5)
    repeats = {key: value * total / MIX[key[0]][key[1]] for key, value in share.items()}
    assert max(repeats.values()) == pytest.approx(MAX_REPEATS)
    assert repeats["few", 1] == pytest.approx(repeats["reals", 0]) == pytest.approx(MAX_REPEATS)
    assert share["both", 0] == pytest.approx(share["large", 0]) and share["large", 0] > share["reals", 0]
    assert share["both", 1] == pytest.approx(share["large", 1]) == pytest.approx(share["fakes", 1])
    assert share["large", 1] > share["few", 1]


@pytest.mark.parametrize("seed", range(20))
def test_shares_of_any_mix(seed):
    """Halves; a larger source has no less; one that has less than another repeats its images MAX_REPEATS times."""
    rng = np.random.default_rng(seed)
    sizes, labels = rng.integers(1, 3000, 9), np.append(rng.integers(0, 2, 7), [0, 1])
    found = shares(sizes, labels.tolist())
    for label in (0, 1):
        own, n = found[labels == label], sizes[labels == label]
        assert own.sum() == pytest.approx(0.5) and np.all(own > 0)
        assert np.all(np.diff(own[np.argsort(n)]) >= -1e-12)
        repeats = own * sizes.sum() / n
        below_equal = own < own.max() - 1e-12
        assert np.all(repeats[below_equal] >= MAX_REPEATS - 1e-9)
    assert shares(sizes * 10, labels.tolist()) == pytest.approx(found)


def test_a_class_too_small_for_its_half_repeats_all_images_equally():
    share = share_of({"a": (10, 1000), "b": (30, 1000)})
    assert share == pytest.approx({("a", 0): 0.125, ("a", 1): 0.25, ("b", 0): 0.375, ("b", 1): 0.25})


@pytest.mark.parametrize("sizes", [(514, 483, 2200, 2200, 900, 900), (250,) * 6, (40, 900), (7, 11, 13, 10)])
def test_sets_with_both_classes_are_sampled_as_before(sizes):
    """The published detectors were trained on such epochs: the same draws to the last bit."""

    def equal_groups(numbers, generator):
        names = generator.permutation(np.unique(numbers))
        taken = []
        for place, name in enumerate(names):
            members = np.flatnonzero(numbers == name)
            wanted = (len(numbers) + len(names) - 1 - place) // len(names)
            rest = generator.choice(members, wanted % len(members), replace=False)
            taken += [np.tile(members, wanted // len(members)), rest]
        return np.concatenate(taken)

    numbers = np.repeat(np.arange(len(sizes)), sizes)
    groups = Groups(numbers, shares(sizes, [0, 1] * (len(sizes) // 2)))
    for seed in range(20):
        found, wanted = (np.random.default_rng(seed) for _ in range(2))
        np.testing.assert_array_equal(balanced(groups, found), equal_groups(numbers, wanted))
        assert found.random() == wanted.random()
