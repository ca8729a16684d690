"""Where the bytes of an image are stored: in a file, or in a tar shard as ``faces/train-00000.tar/000042.jpg``.

All code that reads bytes, sizes or modification times of an image goes through this module, so that no caller needs
to know about shards.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from datasets.listing.records import class_label
from utils.errors import UserError

IMAGE_SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .bmp .gif .tif .tiff .avif .heic .heif .hif .jp2 .ppm .pgm".split()
)
# The first bytes of image files, of those that are not supported as well: these are reported as unreadable.
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM....\0\0\0\0|RIFF....WEBP|II[*+]\0|MM\0[*+]|P[1-6]\s"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftyp(?:avi[fs]|hei[cfmsx]|hev[cmsx]|mif[12]|msf1)",
    re.DOTALL,
)
MAX_FILE_BYTES = 1 << 29  # more than 64 million pixels of 16-bit RGBA take
INDEX_SUFFIX, MASK_SUFFIX = ".index.json", ".mask.png"
PLAN_FILE = "pack.json"  # of datasets.pack: which shards a folder must hold

log = logging.getLogger(__name__)


class UnreadableImage(Exception):  # noqa: N818
    """A file that cannot be decoded into an image; the text is a short reason without the path."""


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a shard: its label (0, 1 or None), generator, group, the name of its mask, and other facts."""

    label: int | None
    generator: str = ""
    group: str = ""
    mask: str = ""
    meta: dict[str, str] | None = None


@dataclass(frozen=True)
class Shard:
    """The contents of a tar file: its images by name, and offset and size of each file in it.

    ``plan`` identifies the run of datasets.pack that wrote it, "" for shards from elsewhere.
    """

    images: dict[str, Member] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    plan: str = ""


def looks_like_image(file: IO[bytes]) -> bool:
    """Whether a file starts like an image, whatever its name."""
    return _SIGNATURE.match(file.read(16)) is not None


def is_image_file(path: str) -> bool:
    """Whether a file is an image by its suffix or its first bytes."""
    if path.lower().endswith(IMAGE_SUFFIXES) or not os.path.isfile(path):  # to open a pipe would block
        return path.lower().endswith(IMAGE_SUFFIXES)
    try:
        with open(path, "rb") as file:
            return looks_like_image(file)
    except OSError:
        return False


def image_exists(path: str) -> bool:
    """Whether there is a file at this path, or a shard with such a member."""
    if os.path.exists(path):
        return True
    shard, name = split_shard_path(path)
    return os.path.isfile(shard) and name in open_shard(shard).places


def same_image_key(path: str) -> tuple:
    """Equal for all spellings of a path, for links, and for both names of a hard link."""
    try:
        found = stat_image(path)
    except (OSError, ValueError):
        return (os.path.abspath(path),)
    return found.st_dev, found.st_ino, split_shard_path(path)[1]


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of an image file or of an image in a shard; of a file that grows, those at its opening.

    Raises UnreadableImage.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise UnreadableImage(f"too large: {size >> 20:,} MiB, the limit is {MAX_FILE_BYTES >> 20}")
            return file.read(size or MAX_FILE_BYTES)  # the size of a pipe is 0
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


def file_state(path: str) -> tuple[int, int] | None:
    """Size and modification time (ns) of an image file, or of the shard that holds the image; None if it is missing."""
    try:
        found = stat_image(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def split_shard_path(path: str) -> tuple[str, str]:
    """Split ``faces/train-0.tar/42.jpg`` into shard and member; both are empty for any other path."""
    before, separator, name = path.partition(".tar/")
    return (before + ".tar", name) if separator else ("", "")


def _read_member(path: str) -> bytes:
    file, name = split_shard_path(path)
    if not os.path.isfile(file):
        raise UnreadableImage("file not found")
    try:
        if name not in (places := open_shard(file).places):
            raise UnreadableImage("not in its shard")
        offset, size = places[name]
        with open(file, "rb") as shard:
            shard.seek(offset)
            data = shard.read(size)
    except (OSError, UserError) as error:
        raise UnreadableImage(f"its shard cannot be read ({error})") from None
    if len(data) < size:
        raise UnreadableImage("its shard ends before this image")
    return data


def open_shard(file: str, labels: tuple[tuple[str, int], ...] = ()) -> Shard:
    """The contents of a shard, from the index next to it or, without one, from the headers in the shard.

    ``labels`` maps the text of `.cls` members to labels where it is not the name of a class.
    """
    state = os.stat(file)
    return _open_shard(file, labels, state.st_size, state.st_mtime_ns)


def index_of(shard: str | os.PathLike[str]) -> Path:
    """The file next to a shard that lists its contents."""
    return Path(os.fspath(shard).removesuffix(".tar") + INDEX_SUFFIX)


@functools.lru_cache(maxsize=4096)
def _open_shard(file: str, labels: tuple[tuple[str, int], ...], _size: int, _changed: int) -> Shard:
    """Size and modification time are part of the key: a shard that was overwritten is read again."""
    index = index_of(file)
    if not index.exists():
        return _scan(file, dict(labels))
    try:
        return parse_index(json.loads(index.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"expected the index of {file} at {index}, got something else; delete {index.name}") from None


def parse_index(content: list | dict) -> Shard:
    """Read the JSON of an index. Raises ValueError, TypeError, KeyError and AttributeError."""
    if isinstance(content, list):  # as written by version 1.1 and older
        images = {name: Member(label, generator) for name, _, _, label, generator in content}
        return Shard(images, {name: (offset, size) for name, offset, size, _, _ in content})
    images = {name: Member(**facts) for name, facts in content["images"].items()}
    places = {name: (int(offset), int(size)) for name, (offset, size) in content["places"].items()}
    return Shard(images, places, content["plan"])


def _scan(file: str, labels: Mapping[str, int]) -> Shard:
    """Read the headers of a shard; of a truncated one, the images before the damage count."""
    facts: dict[str, dict] = {}
    found, ignored = Shard(), 0
    is_whole = _has_end(file)
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                key, _, suffix = member.name.rpartition(".")
                stream = shard.extractfile(member)
                if stream is None:  # a folder or a link
                    continue
                if suffix in ("json", "cls"):
                    text = stream.read().decode("utf-8", "replace").strip()
                    facts.setdefault(key, {}).update({"label": text} if suffix == "cls" else _parse_object(text))
                elif f".{suffix.lower()}" in IMAGE_SUFFIXES or looks_like_image(stream):
                    found.places[member.name] = member.offset_data, member.size
                else:
                    ignored += 1
    except (tarfile.TarError, EOFError, OSError) as error:
        if not found.places:
            raise UserError(f"expected a tar shard, got {file}: {error}; delete it or fetch it again") from None
        is_whole = False
    if not is_whole:
        log.warning("%s: truncated; the %d images before the damage are used", file, len(found.places))
    if ignored:
        log.warning("%s: ignored files that are not images (%d)", file, ignored)
    masks = {name.removesuffix(MASK_SUFFIX): name for name in found.places if name.endswith(MASK_SUFFIX)}
    for name in found.places:
        key = name.rpartition(".")[0]
        own = facts.get(key, {})
        text = str(own.get("label", "")).lower()
        label = labels.get(text, class_label(text))
        if not text:
            label = next((word for word in map(class_label, name.split("/")[-2::-1]) if word is not None), None)
        if name.endswith(MASK_SUFFIX) or (label is None and not is_whole):  # the member that names its class is lost
            continue
        meta = own.get("meta") if isinstance(own.get("meta"), dict) else None
        generator, group = str(own.get("generator", "")), str(own.get("group", ""))
        found.images[name] = Member(label, generator, group, masks.get(key, ""), meta)
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
