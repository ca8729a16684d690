"""What ``--balance`` samples: the share of an epoch that each data set and label gets.

Sources have equal weight, whatever their size: 300 images by one generator say as much about it as 3,000. A set may
have only one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.listing.records import Listing

MAX_REPEATS = 3  # of an image in an epoch, as long as its class has images that come less often


@dataclass(frozen=True)
class Groups:
    """The images of each data set and label: the group of each image ``(N,)``, the share of each group ``(G,)``."""

    of_image: np.ndarray
    share: np.ndarray


def label_groups(listings: Sequence[Listing]) -> Groups:
    """Group the records of the concatenated listings by data set and label."""
    keys = [(listing.name, listing.root, record.label) for listing in listings for record in listing.records]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    of_image = np.array([numbers[key] for key in keys], dtype=np.int64)
    sizes = np.bincount(of_image, minlength=len(numbers))
    return Groups(of_image, shares(sizes, [label for _, _, label in numbers]))


def shares(sizes: Sequence[int] | np.ndarray, labels: Sequence[int | None]) -> np.ndarray:
    """Divide an epoch equally over the classes, and the share of a class equally over its sources.

    A source that would have to repeat its images more than MAX_REPEATS times in an epoch (as many draws as there are
    images) gets no more than that, and the other sources of its class divide the rest: equal shares would show each of
    50 images a hundred times while thousands are omitted, and the detector would memorise these. ``repeat=`` in
    a spec multiplies the limit. Where a whole class is too small, all of its images come equally often. Sets of both
    classes and of similar size thus get equal shares.
    """
    sizes, share = np.asarray(sizes, dtype=np.float64), np.zeros(len(sizes))
    limits = MAX_REPEATS * sizes / max(1.0, sizes.sum())
    classes = list(dict.fromkeys(labels))
    for label in classes:
        own = sorted((group for group, other in enumerate(labels) if other == label), key=lambda group: limits[group])
        room = 1 / len(classes)
        stretch = max(1.0, room / limits[own].sum())
        for place, group in enumerate(own):
            share[group] = min(stretch * limits[group], room / (len(own) - place))
            room -= share[group]
    return share


def balanced(groups: Groups, generator: np.random.Generator) -> np.ndarray:
    """Draw as many indices as there are images, by the shares; a group is used up before any of its images repeats."""
    n = len(groups.of_image)
    names = generator.permutation(len(groups.share))  # so that what cannot be divided goes to other groups each time
    exact = np.round(n * groups.share[names], 6)  # equal shares stay equal
    wanted = np.floor(exact).astype(np.int64)
    wanted[np.argsort(wanted - exact, kind="stable")[: n - wanted.sum()]] += 1
    taken = []
    for name, number in zip(names, wanted.tolist(), strict=True):
        members = np.flatnonzero(groups.of_image == name)
        rest = generator.choice(members, number % len(members), replace=False)
        taken += [np.tile(members, number // len(members)), rest]
    return np.concatenate(taken)
