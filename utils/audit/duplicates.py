"""Duplicates among images: the same file, the same pixels, or the same picture saved, scaled, mirrored or cropped.

Hashes nominate pairs (perceptual_hash.py, hamming_search.py), aligned thumbnails decide (registration.py). The time
grows almost linearly with the number of images.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.audit.hamming_search import HashIndex
from utils.audit.image_facts import THUMBNAIL_SIDE, ImageFacts
from utils.audit.perceptual_hash import WHOLE, Box, views
from utils.audit.registration import compare

RADIUS = 30  # of 128 bits; copies cropped by 2 to 8 % on every side stay within it
# The closest pair of different people among 10,340 portraits, studio-style GAN images, has 0.96 and 0.69; copies at
# JPEG quality 50, half the size, mirrored or cropped by 5 % have at least 0.99 and 0.9.
MIN_CORRELATION = 0.975
MIN_WORST_PART = 0.75
MIN_CONTRAST = 4.0  # grey levels; a flatter picture has no structure to compare
BLOCK = 20_000  # hashes searched for at a time
# In a large set of aligned portraits many hashes are near each other. At most this many of the nearest are compared:
MIN_CANDIDATES, CANDIDATES_PER_IMAGE = 100_000, 2


@dataclass(frozen=True)
class Pair:
    """Two copies: indices first < second, ``kind`` "same file", "same pixels" or "near", and their similarity."""

    first: int
    second: int
    kind: str
    mirrored: bool = False
    correlation: float = 1.0
    worst_part: float = 1.0
    crop: float = 0.0


@dataclass
class Duplicates:
    """The pairs, sorted, and the cost of the search. Of n equal images the first is paired with each of the others.

    ``radius`` is the Hamming distance up to which candidates were compared.
    """

    pairs: list[Pair] = field(default_factory=list)
    n_comparisons: int = 0
    n_candidates: int = 0
    n_skipped: int = 0
    n_flat: int = 0
    radius: int = RADIUS


@dataclass(frozen=True)
class Candidates:
    """Pairs that hashes nominate, each (M,): ``first`` seen as (mirrored, box) is near the whole of ``second``."""

    first: np.ndarray
    second: np.ndarray
    view: np.ndarray
    kinds: list[tuple[bool, Box]]


def find_duplicates(facts: Sequence[ImageFacts]) -> Duplicates:
    """Find all duplicates; facts with an error are omitted."""
    result = Duplicates()
    readable = [at for at, fact in enumerate(facts) if not fact.error]
    by_pixels = _star((facts[at].pixel_digest, at) for at in readable)
    for first, second in by_pixels:
        same_file = facts[first].file_digest == facts[second].file_digest
        result.pairs.append(Pair(first, second, "same file" if same_file else "same pixels"))
    copies = {second for _, second in by_pixels}
    distinct = np.array([at for at in readable if at not in copies], dtype=np.int64)
    if len(distinct) > 1:
        _add_near(result, facts, distinct)
    result.pairs.sort(key=lambda pair: (pair.first, pair.second))
    return result


def _star(items: Iterable[tuple[Hashable, int]]) -> list[tuple[int, int]]:
    """Pair the first item of each key with every other item of that key."""
    first: dict[Hashable, int] = {}
    return [(first[key], at) for key, at in items if first.setdefault(key, at) != at]


def _add_near(result: Duplicates, facts: Sequence[ImageFacts], distinct: np.ndarray) -> None:
    shape = (-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnails = np.frombuffer(b"".join(facts[at].thumbnail for at in distinct), np.uint8).reshape(shape)
    structured = np.array([facts[at].contrast * 255 >= MIN_CONTRAST for at in distinct])
    result.n_flat = int((~structured).sum())
    distinct, thumbnails = distinct[structured], thumbnails[structured]
    if len(distinct) < 2:
        return
    candidates = nominate(thumbnails, result)
    result.n_candidates = len(candidates.first)
    best: dict[tuple[int, int], Pair] = {}
    for pair in _confirm(thumbnails, candidates):
        ends = int(distinct[pair.first]), int(distinct[pair.second])
        key = min(ends), max(ends)
        if key not in best or pair.correlation > best[key].correlation:
            best[key] = Pair(*key, "near", pair.mirrored, pair.correlation, pair.worst_part, pair.crop)
    result.pairs += best.values()


def nominate(thumbnails: np.ndarray, cost: Duplicates | None = None) -> Candidates:
    """Nominate pairs of thumbnails (N, side, side) uint8 that may be copies; ``cost`` counts the comparisons.

    A pair is nominated at most once unmirrored and once mirrored, by its nearest view.
    """
    cost = cost or Duplicates()
    index: HashIndex | None = None
    kinds: list[tuple[bool, Box]] = []
    table = np.zeros((5, 0), dtype=np.int32)
    limit = max(MIN_CANDIDATES, CANDIDATES_PER_IMAGE * len(thumbnails))
    for mirrored, box, hashes in views(thumbnails):
        index = index or HashIndex(hashes.words)  # the first view is the whole image
        for start in range(0, len(thumbnails), BLOCK):
            block = slice(start, start + BLOCK)
            found = [table]
            for query, other, distance in index.search(hashes.words[block], cost.radius, hashes.weak[block]):
                query = query + start
                # Whole against whole is symmetric, mirrored or not; a crop of one is not a crop of the other.
                new = query < other if box == WHOLE else query != other
                view = np.full(int(new.sum()), len(kinds))
                found.append(np.stack([query[new], other[new], distance[new], view % 2, view]).astype(np.int32))
            table = _nearest_views(np.concatenate(found, axis=1))
            while table.shape[1] > limit and cost.radius > 0:
                cost.radius -= 1
                table = table[:, table[2] <= cost.radius]
        kinds.append((mirrored, box))
    if index is not None:
        cost.n_comparisons, cost.n_skipped = index.n_comparisons, index.n_skipped
    return Candidates(table[0], table[1], table[4], kinds)


def _nearest_views(table: np.ndarray) -> np.ndarray:
    """Keep the nearest view of each pair and way of mirroring; rows: query, other, distance, mirrored, view."""
    low, high = np.minimum(table[0], table[1]), np.maximum(table[0], table[1])
    order = np.lexsort((table[4], table[2], table[3], high, low))
    keys = np.stack([low, high, table[3]])[:, order]
    leads = np.ones(len(order), dtype=bool)
    leads[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    return table[:, order[leads]]


def _confirm(thumbnails: np.ndarray, candidates: Candidates) -> Iterable[Pair]:
    """Yield the candidates whose aligned thumbnails agree, block by block."""
    boxes = np.array([box for _, box in candidates.kinds], dtype=np.float32).reshape(-1, 4)
    flipped = np.array([mirrored for mirrored, _ in candidates.kinds], dtype=bool)
    for start in range(0, len(candidates.first), BLOCK):
        block = slice(start, start + BLOCK)
        first, second, view = candidates.first[block], candidates.second[block], candidates.view[block]
        mirrored, box = flipped[view], boxes[view]
        source = thumbnails[first].copy()
        source[mirrored] = source[mirrored][:, :, ::-1]
        box[mirrored, :2] = 1 - box[mirrored, 1::-1]
        likeness = compare(source, thumbnails[second], box)
        good = (likeness.correlation >= MIN_CORRELATION) & (likeness.worst_part >= MIN_WORST_PART)
        for at in np.flatnonzero(good):
            values = likeness.correlation[at], likeness.worst_part[at], likeness.crop[at]
            yield Pair(int(first[at]), int(second[at]), "near", bool(mirrored[at]), *map(float, values))


def components(n: int, links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The connected groups of more than one among n items, each sorted, in order of their first."""
    parent = list(range(n))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    for first, second in links:
        a, b = root(first), root(second)
        parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for at in range(n):
        groups.setdefault(root(at), []).append(at)
    return [group for group in groups.values() if len(group) > 1]
