"""A small decoder of CBOR (RFC 8949), enough for the claims in C2PA manifests; bounded in depth and items."""

from __future__ import annotations

import struct
from typing import Any

MAX_DEPTH = 16
MAX_ITEMS = 20_000


class _Break(Exception):  # noqa: N818
    """The end of an item of indefinite length."""


def decode_cbor(data: bytes) -> Any:
    """Decode the first item. Tags are dropped; floats of 16 bits and simple values become None. Raises ValueError."""
    try:
        return _Decoder(data).item(0)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, _Break):
        raise ValueError("damaged CBOR") from None


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.items = data, 0, 0

    def item(self, depth: int) -> Any:
        """Decode the item at the current place and move behind it."""
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise ValueError("CBOR that is too deep or too long")
        kind, short = self.data[self.at] >> 5, self.data[self.at] & 31
        self.at += 1
        if kind == 7:
            return self._simple(short)
        count = None if short == 31 else self._number(short)
        if kind in (2, 3):
            return self._string(kind, count, depth)
        if kind in (4, 5):
            return self._collection(kind, count, depth)
        if count is None:
            raise ValueError("damaged CBOR")
        if kind == 6:
            return self.item(depth + 1)
        return count if kind == 0 else -1 - count

    def _take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        if len(part) < size:
            raise ValueError("truncated CBOR")
        self.at += size
        return part

    def _number(self, short: int) -> int:
        if short < 24:
            return short
        if short > 27:
            raise ValueError("damaged CBOR")
        return int.from_bytes(self._take(1 << (short - 24)), "big")

    def _simple(self, short: int) -> Any:
        if short == 31:
            raise _Break
        if short in (20, 21):
            return short == 21
        content = self._take({24: 1, 25: 2, 26: 4, 27: 8}.get(short, 0))
        return struct.unpack(">f" if short == 26 else ">d", content)[0] if short in (26, 27) else None

    def _string(self, kind: int, count: int | None, depth: int) -> bytes | str:
        if count is not None:
            content = self._take(count)
            return content if kind == 2 else content.decode("utf-8", "replace")
        parts: Any = self._collection(4, None, depth)
        return (b"" if kind == 2 else "").join(parts)

    def _collection(self, kind: int, count: int | None, depth: int) -> list | dict:
        values: list[Any] = []
        size = None if count is None else count * (kind - 3)  # a map holds twice as many items
        while size is None or len(values) < size:
            try:
                values.append(self.item(depth + 1))
            except _Break:
                if size is not None:
                    raise
                break
        if kind == 4:
            return values
        keys = (key if isinstance(key, str | int | bytes) else repr(key) for key in values[::2])
        return dict(zip(keys, values[1::2], strict=False))
