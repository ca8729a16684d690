"""Where the bytes of an image are: in a file, or in a tar shard as ``faces/train-00000.tar/000042.jpg``.

Everything that reads bytes, sizes or times of change of an image goes through this module, so that no caller needs to
know about shards.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets.records import class_label
from utils.errors import UserError

IMAGE_SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .gif .tif .tiff .avif .jp2 .ppm .pgm".split())
INDEX_SUFFIX = ".index.json"

log = logging.getLogger(__name__)


class UnreadableImage(Exception):  # noqa: N818
    """A file that cannot be decoded into an image; the text is a short reason without the path."""


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a shard: where its bytes are, its label (0, 1 or None) and its generator."""

    offset: int
    size: int
    label: int | None
    generator: str


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of an image file or of an image in a shard. Raises UnreadableImage."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return _read_member(os.fspath(path))
    except IsADirectoryError:
        raise UnreadableImage("a folder, not a file") from None
    except PermissionError:
        raise UnreadableImage("permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise UnreadableImage(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


def stat_image(path: str) -> os.stat_result:
    """``os.stat`` of an image file, or of the shard that holds the image. Raises OSError and ValueError."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        shard, _ = split_shard_path(path)
        if not shard:
            raise
        return os.stat(shard)


def split_shard_path(path: str) -> tuple[str, str]:
    """Split ``faces/train-0.tar/42.jpg`` into shard and member; both are empty for any other path."""
    before, separator, name = path.partition(".tar/")
    return (before + ".tar", name) if separator else ("", "")


def _read_member(path: str) -> bytes:
    file, name = split_shard_path(path)
    if not os.path.isfile(file):
        raise UnreadableImage("file not found")
    try:
        member = shard_index(file).get(name)
        if member is None:
            raise UnreadableImage("not in its shard")
        with open(file, "rb") as shard:
            shard.seek(member.offset)
            data = shard.read(member.size)
    except (OSError, UserError) as error:
        raise UnreadableImage(f"its shard cannot be read ({error})") from None
    if len(data) < member.size:
        raise UnreadableImage("its shard is truncated before it")
    return data


def shard_index(file: str, labels: tuple[tuple[str, int], ...] = ()) -> dict[str, Member]:
    """The images of a shard by name, from the index next to it or, without one, from the headers of the shard.

    ``labels`` maps the text of `.cls` members to labels where it is not the name of a class.
    """
    state = os.stat(file)
    return _shard_index(file, labels, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _shard_index(file: str, labels: tuple[tuple[str, int], ...], _size: int, _changed: int) -> dict[str, Member]:
    """Size and time of change are part of the key: a shard that was overwritten is read again."""
    index = Path(file.removesuffix(".tar") + INDEX_SUFFIX)
    if not index.exists():
        return _scan(file, dict(labels))
    try:
        rows = json.loads(index.read_text(encoding="utf-8"))
        return {name: Member(offset, size, label, generator) for name, offset, size, label, generator in rows}
    except (OSError, ValueError, TypeError):
        raise UserError(f"expected the index of {file} at {index}, got something else; delete {index.name}") from None


def _scan(file: str, labels: Mapping[str, int]) -> dict[str, Member]:
    """Read the headers of a shard; of a truncated one, the images before the damage count."""
    images: dict[str, tarfile.TarInfo] = {}
    facts: dict[str, dict] = {}
    is_whole = _has_end(file)
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                key, _, suffix = member.name.rpartition(".")
                if not member.isfile():
                    continue
                if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    images[member.name] = member
                elif suffix in ("json", "cls"):
                    stream = shard.extractfile(member)
                    text = stream.read().decode("utf-8", "replace").strip() if stream else ""
                    facts.setdefault(key, {}).update({"label": text} if suffix == "cls" else _parse_object(text))
    except (tarfile.TarError, EOFError, OSError) as error:
        if not images:
            raise UserError(f"expected a tar shard, got {file}: {error}; delete it or fetch it again") from None
        is_whole = False
    if not is_whole:
        log.warning("%s: truncated; the %d images before the damage are used", file, len(images))
    found = {}
    for name, member in images.items():
        own = facts.get(name.rpartition(".")[0], {})
        text = str(own.get("label", "")).lower()
        label = labels.get(text, class_label(text))
        if not text:
            label = next((word for word in map(class_label, name.split("/")[-2::-1]) if word is not None), None)
        if label is None and not is_whole:  # the member that names its class is lost
            continue
        found[name] = Member(member.offset_data, member.size, label, str(own.get("generator", "")))
    return found


def _has_end(file: str) -> bool:
    """Whether a tar file ends with the two empty blocks of a complete one."""
    with open(file, "rb") as stream:
        stream.seek(max(0, os.path.getsize(file) - 2 * tarfile.BLOCKSIZE))
        return not any(stream.read())


def _parse_object(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
