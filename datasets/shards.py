"""WebDataset shards: tar files of images, for sets of more files than a file system likes.

`wds:FOLDER` or `wds:'faces/train-*.tar'` reads shards as `python -m datasets.pack` writes them, and others: an image
member `KEY.jpg` belongs with `KEY.json` (`label`, `generator`) or `KEY.cls` (a class name, or a number with
`@labels=0:real+1:fake`); without either its folder in the shard names the class. The split is the beginning of the
name of a shard (`train-00012.tar`) or its folder.

An image's path is that of its shard and its name in it, `faces/train-00000.tar/000042.jpg`, and is read by that name:
scripts need not know about shards, and samplers divide them over processes and workers image by image. A shard that was
cut off gives the images before the damage; those after it are unreadable, and counted where an index lists them.
"""

from __future__ import annotations

import functools
import glob
import json
import logging
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets.folder import class_label, sibling_hint
from datasets.images import IMAGE_SUFFIXES, UnreadableImage
from datasets.spec import SPLIT_NAMES, Record, Source
from utils.errors import UserError

INDEX_SUFFIX = ".index.json"
SEPARATOR = ".tar/"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a shard: where its bytes are, its label (0, 1 or None) and its generator."""

    offset: int
    size: int
    label: int | None
    generator: str


def read_shards(location: str, labels: Mapping[str, int] | None = None) -> Source:
    """Read the listing of shards; ``labels`` maps the text of `.cls` members where it is no class name.

    Raises:
        UserError: there are no shards, one cannot be read at all, or an image has no class.
    """
    pattern = os.path.expanduser(location)
    files = [f for f in sorted(glob.glob(pattern)) if f.endswith(".tar")]
    if os.path.isdir(pattern):
        files = sorted(str(file).replace(os.sep, "/") for file in Path(pattern).rglob("*.tar"))
    if not files:
        raise UserError(f"expected .tar shards at {location}, found none{sibling_hint(pattern)}")
    root = pattern if os.path.isdir(pattern) else os.path.dirname(pattern)
    name = os.path.basename(os.path.abspath(root))
    by_split: dict[str, list[Record]] = {}
    unlabelled: list[str] = []
    for file in files:
        records = by_split.setdefault(shard_split(file, root), [])
        for key, member in shard_index(file, tuple(sorted((labels or {}).items()))).items():
            if member.label is None:
                unlabelled.append(f"{file}/{key}")
            generator = "real" if member.label == 0 else member.generator or name
            records.append(Record(f"{file}/{key}", member.label, generator))
    if unlabelled:
        raise UserError(
            f"expected a class for every image of {location} (KEY.json with a label, KEY.cls with a class name, or "
            f"class folders), got none for {len(unlabelled)}, such as {unlabelled[0]}; numbers need "
            "@labels=0:real+1:fake"
        )
    return Source(name, root.rstrip("/"), by_split)


def shard_split(file: str, root: str) -> str:
    """The split that a shard's name or folder begins with, "" if neither does."""
    parts = os.path.relpath(file, root or ".").split(os.sep)
    for part in reversed(parts):
        word = part.lower().removesuffix(".tar").partition("-")[0].partition("_")[0]
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return ""


@functools.cache
def shard_index(file: str, labels: tuple[tuple[str, int], ...] = ()) -> dict[str, Member]:
    """The images of a shard by name, from the index beside it or, without one, by a walk over its headers."""
    beside = Path(file.removesuffix(".tar") + INDEX_SUFFIX)
    if not beside.exists():
        return _scan(file, dict(labels))
    try:
        rows = json.loads(beside.read_text(encoding="utf-8"))
        return {name: Member(offset, size, label, generator) for name, offset, size, label, generator in rows}
    except (OSError, ValueError, TypeError):
        raise UserError(f"expected an index of {file} at {beside}, found something else; delete it") from None


def _scan(file: str, labels: Mapping[str, int]) -> dict[str, Member]:
    """Walk over the headers of a shard; after damage, what was found before it counts."""
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
                    facts.setdefault(key, {}).update(_facts(text, suffix))
    except (tarfile.TarError, EOFError, OSError) as error:
        if not images:
            raise UserError(f"expected a tar shard, got {file}: {error}; delete it or fetch it again") from None
        is_whole = False
    if not is_whole:
        log.warning("%s: cut off; the %d images before the damage are used", file, len(images))
    found = {}
    for name, member in images.items():
        own = facts.get(name.rpartition(".")[0], {})
        text = str(own.get("label", "")).lower()
        label = labels.get(text, class_label(text))
        if not text:
            label = next((word for word in map(class_label, name.split("/")[-2::-1]) if word is not None), None)
        if label is None and not is_whole:  # what says its class is lost
            continue
        found[name] = Member(member.offset_data, member.size, label, str(own.get("generator", "")))
    return found


def _has_end(file: str) -> bool:
    """Whether a tar file ends with the two empty blocks that a complete one has."""
    with open(file, "rb") as stream:
        stream.seek(max(0, os.path.getsize(file) - 2 * tarfile.BLOCKSIZE))
        return not any(stream.read())


def _facts(text: str, suffix: str) -> dict:
    if suffix == "cls":
        return {"label": text}
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_member(path: str) -> bytes:
    """The bytes of an image in a shard.

    Raises:
        UnreadableImage: there is no such shard or member, or the shard ends before it.
    """
    before, separator, name = path.partition(SEPARATOR)
    file = before + ".tar"
    if not separator or not os.path.isfile(file):
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
        raise UnreadableImage("its shard is cut off before it")
    return data


def stat_image(path: str) -> os.stat_result:
    """``os.stat`` of an image file or of the shard that holds it. Raises OSError and ValueError."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        before, separator, _ = path.partition(SEPARATOR)
        if not separator:
            raise
        return os.stat(before + ".tar")
