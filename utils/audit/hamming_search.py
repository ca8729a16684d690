"""Near neighbours among binary hashes without comparing all pairs.

Multi-index hashing (Norouzi, Punjani, Fleet, "Fast search in Hamming space with multi-index hashing", CVPR 2012,
arXiv 1307.2982): hashes are cut into bands of 16 bits; near hashes agree in at least one band, so only hashes that
share a band are compared. A query also tries the keys with its weakest bits flipped, which finds nearly all pairs far
beyond the distance that the bands alone guarantee. Implemented with sorted arrays and popcounts; the memory is bounded
by CHUNK pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

CHUNK = 1 << 20  # pairs compared at a time
MAX_BUCKET = 4096  # a key shared by more hashes is not informative


@dataclass
class HashIndex:
    """Hashes (N, W) uint64, sorted once per band.

    ``n_comparisons`` counts the Hamming distances computed so far, ``n_skipped`` the look-ups in overfull buckets.
    """

    words: np.ndarray
    n_comparisons: int = 0
    n_skipped: int = 0
    _order: list[np.ndarray] = field(default_factory=list, repr=False)
    _keys: list[np.ndarray] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        bands = _bands(self.words)
        for band in range(bands.shape[1]):
            order = np.argsort(bands[:, band], kind="stable").astype(np.int32)
            self._order.append(order)
            self._keys.append(bands[order, band])

    def search(
        self, words: np.ndarray, radius: int, weak: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield blocks (query, found, distance) with a distance of at most ``radius`` bits.

        ``words`` (M, W) are the queries; ``weak`` (M, n_bands, k) their k weakest bits per band: all 2**k
        combinations are tried. A pair is yielded once per band that it shares.
        """
        bands = _bands(words)
        for band in range(bands.shape[1]):
            for mask in _masks(weak, band):
                yield from self._probe(band, bands[:, band] ^ mask, words, radius)

    def _probe(
        self, band: int, keys: np.ndarray, words: np.ndarray, radius: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        first = np.searchsorted(self._keys[band], keys, side="left")
        count = np.searchsorted(self._keys[band], keys, side="right") - first
        overfull = count > MAX_BUCKET
        self.n_skipped += int(overfull.sum())
        count[overfull] = 0
        ends = np.cumsum(count)
        total = int(ends[-1]) if len(ends) else 0
        self.n_comparisons += total
        for start in range(0, total, CHUNK):
            place = np.arange(start, min(start + CHUNK, total))
            query = np.searchsorted(ends, place, side="right")
            found = self._order[band][first[query] + place - (ends[query] - count[query])]
            distance = np.bitwise_count(words[query] ^ self.words[found]).sum(axis=1, dtype=np.int32)
            near = distance <= radius
            yield query[near], found[near], distance[near]


def _bands(words: np.ndarray) -> np.ndarray:
    """The hashes as bands: (N, W * 4) uint16, lowest bits first."""
    return np.ascontiguousarray(words).astype("<u8", copy=False).view("<u2")


def _masks(weak: np.ndarray | None, band: int) -> Iterator[np.ndarray | np.uint16]:
    """Masks to flip bits of the keys of a band: none, then every combination of the weak bits."""
    if weak is None:
        yield np.uint16(0)
        return
    bits = np.left_shift(np.uint16(1), weak[:, band].astype(np.uint16))
    for combination in range(1 << bits.shape[1]):
        chosen = [bits[:, place] for place in range(bits.shape[1]) if combination >> place & 1]
        yield np.bitwise_or.reduce(chosen) if chosen else np.uint16(0)
