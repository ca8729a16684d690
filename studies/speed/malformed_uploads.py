"""Uploads that no client should send, for studies/speed/serve_load.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

HOSTILE = (
    b"",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"<!doctype html>",
    b"PK\x03\x04",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"BM" + b"\xff" * 60,
    b"\0\0\0 ftypavif" + b"\xff" * 40,
    b"%PDF-1.7",
    b"\0" * 5000,
)


def mutations(images: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Malformed uploads: real images cut, overwritten, spliced or with another header, and hostile files."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(images[int(rng.integers(len(images)))])
        kind = number % 5
        if kind == 0:
            data = data[: int(rng.integers(1, len(data)))]
        elif kind == 1:
            for place in rng.integers(0, len(data), int(rng.integers(1, 50))):
                data[place] = int(rng.integers(256))
        elif kind == 2:
            start = int(rng.integers(len(data)))
            data[start : start + 64] = rng.integers(0, 256, int(rng.integers(128)), np.uint8).tobytes()
        elif kind == 3:
            data[: int(rng.integers(2, 200))] = HOSTILE[int(rng.integers(len(HOSTILE)))]
        else:
            data = bytearray(HOSTILE[int(rng.integers(len(HOSTILE)))] + bytes(data[: int(rng.integers(64))]))
        yield bytes(data)
