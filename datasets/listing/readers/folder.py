"""Folders of images, recognised by their layout.

Levels may come in any order and may be absent: split (`train`, `valid|val|validation`, `test|testing`), class
(`real`, `fake` and their synonyms, in any case) and generator (any other name). For example:

    {train,valid,test}/{real,fake}                             the usual layout
    {train,valid,test}/{real,fake/<generator>}                 generators below the class
    real_vs_fake/real-vs-fake/{train,valid,test}/{real,fake}   the 140k set, its outer or any inner folder
    <generator>[/<category>]/{0_real,1_fake}                   ForenSynths, CNNDetection (Wang et al., 2020)
    <generator>/{train,val}/{nature,ai}                        GenImage (Zhu et al., 2023)
    {training_real,training_fake}                              "Real and Fake Face Detection"

Files are recognised as images by their suffix or, without a usual one, by their first bytes; the others are counted
and named in a warning. Hidden files, those that systems leave in every folder, and folders named `masks` are skipped;
`masks/<split>/<stem>.png` is the mask of a fake.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from datasets.decoding.containers import VIDEO_SUFFIXES
from datasets.listing.records import (
    FAKE_NAMES,
    LABEL_NAMES,
    REAL_NAMES,
    SPLIT_NAMES,
    Record,
    Source,
    class_label,
    is_system_file,
)
from datasets.listing.storage import IMAGE_SUFFIXES, is_image_file
from utils.errors import UserError, closest_sibling

_SKIPPED = {"masks", "mask", "__macosx"}
_WRAPPERS = {"real_vs_fake", "real-vs-fake"}  # the nesting of the 140k set

log = logging.getLogger(__name__)


class Files(NamedTuple):
    """The kind of files that a set consists of: its name, examples of suffixes, and whether a path is one."""

    name: str
    suffixes: Sequence[str]
    accepts: Callable[[str], bool]


IMAGES = Files("images", IMAGE_SUFFIXES[:5], is_image_file)


@dataclass(slots=True)
class Folder:
    """A folder with its image files, the subfolders that hold images at any depth, and all other files below it."""

    path: str
    name: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    labels_below: set[int | None] = field(default_factory=set)  # of class names among its subfolders, at any depth


@dataclass(frozen=True, slots=True)
class _Place:
    """What the names of the folders above have told so far."""

    split: str = ""
    label: int | None = None
    generator: str | None = None


def list_images(location: str | os.PathLike[str], wanted: Files = IMAGES) -> tuple[list[str], list[str]]:
    """Return the paths of all accepted files below a folder, and those of the others, each sorted. Raises UserError."""
    folders = [tree := _scan_location(os.fspath(location), wanted)]
    for folder in folders:
        folders += folder.folders
    images = [f"{folder.path}/{image}" for folder in folders for image in folder.images]
    return sorted(images), sorted(f"{tree.path}/{other}" for other in tree.others)


def read_folder(location: str | os.PathLike[str], name: str | None = None, wanted: Files = IMAGES) -> Source:
    """Read a folder of real and fake images; ``name`` is the name of the dataset (default: that of the folder).

    A folder that is itself one split or one class (`data/x/test`) belongs to the dataset above it. Categories
    without a generator above them count as generators; fakes without either carry the name of the dataset.
    Raises UserError for a folder that is absent or empty and for class folders with unknown names.
    """
    tree = _scan_location(os.fspath(location), wanted)
    if others := tree.others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        log.warning("%s: ignored files that are not %s (%d): %s", location, wanted.name, len(others), shown)
    root, place = _climb(tree)
    for _ in range(3):
        if tree.images or len(tree.folders) != 1 or place != _Place() or _has_role(tree.folders[0].name):
            break
        tree = tree.folders[0]
        root = tree.path
    reader = _Reader(name or _dataset_name(os.fspath(location), tree))
    reader.walk(tree, place)
    if reader.unmapped:
        raise UserError(_unmapped_message(os.fspath(location), tree, reader.unmapped))
    if reader.ignored:
        log.warning("%s: ignored images outside splits and classes: %s", location, ", ".join(reader.ignored))
    _add_masks(reader.by_split, root)
    return Source(reader.name, root, reader.by_split)


class _Reader:
    """Turns a tree of folders into records."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.by_split: dict[str, list[Record]] = {}
        self.unmapped: list[str] = []
        self.ignored: list[str] = []

    def walk(self, folder: Folder, place: _Place) -> None:
        if folder.images:
            self._add(folder, place)
        splits = {} if place.split else _split_level(folder)
        for child in folder.folders:
            if splits and child.path not in splits:
                self.ignored.append(child.path)
            elif splits:
                self.walk(child, replace(place, split=splits[child.path]))
            else:
                self.walk(child, _enter(child, place))

    def _add(self, folder: Folder, place: _Place) -> None:
        if place.label is None:
            (self.ignored if folder.labels_below else self.unmapped).append(folder.path)
            return
        generator = (place.generator or self.name) if place.label else "real"
        records = self.by_split.setdefault(place.split, [])
        records += [Record(f"{folder.path}/{image}", place.label, generator) for image in folder.images]


def _split_level(folder: Folder) -> dict[str, str]:
    """Return split by path of the subfolders, or nothing where their names do not mean splits.

    ForenSynths has an object category called `train` among twenty, so a single split name next to folders that hold
    classes does not count.
    """
    splits = {f.path: SPLIT_NAMES[f.name.lower()] for f in folder.folders if f.name.lower() in SPLIT_NAMES}
    others = [child for child in folder.folders if child.path not in splits]
    has_classes = any(child.labels_below or class_label(child.name) is not None for child in others)
    return {} if len(splits) == 1 and has_classes else splits


def _holds_splits(folder: Folder) -> bool:
    return bool(_split_level(folder)) or any(_holds_splits(child) for child in folder.folders)


def _enter(child: Folder, place: _Place) -> _Place:
    label = class_label(child.name) if place.label is None else None
    # A folder `gan` or `ai` that holds both classes is a generator whose name happens to be that of a class.
    if label is not None and child.labels_below != {0, 1}:
        if child.labels_below - {label}:
            raise UserError(
                f"expected one class in {child.path} (its name says {LABEL_NAMES[label]}), got a folder of "
                "the other class inside it; rename one of them or list the images with csv:"
            )
        return replace(place, label=label)
    is_generator = not place.generator and child.name.lower() not in _WRAPPERS
    return replace(place, generator=child.name) if is_generator else place


def _has_role(name: str) -> bool:
    return name.lower() in SPLIT_NAMES or class_label(name) is not None


def _climb(tree: Folder) -> tuple[str, _Place]:
    """Return the root of the dataset, and the place of a folder that is itself one of its splits or classes."""
    root, place = tree.path, _Place()
    above, name = os.path.split(os.path.abspath(tree.path))
    while name:
        label = class_label(name)
        if name.lower() in SPLIT_NAMES and not place.split and not _holds_splits(tree):
            place = replace(place, split=SPLIT_NAMES[name.lower()])
        elif label is not None and place.label is None and not tree.labels_below:
            place = replace(place, label=label)
        else:
            break
        root = root[: -len(name) - 1] if root.endswith("/" + name) else "" if root == name else root
        above, name = os.path.split(above)
    return root, place


def _dataset_name(location: str, tree: Folder) -> str:
    above, name = os.path.split(os.path.abspath(os.path.expanduser(location)))
    below = next((child.name.lower() for child in tree.folders), "")
    while above != os.path.dirname(above) and (_has_role(name) or name.lower() in _WRAPPERS):
        # A folder that holds splits or classes and only sounds like a class (`generated_photos`) is the dataset.
        is_dataset = below in SPLIT_NAMES or class_label(below) is not None
        if name.lower() not in {*SPLIT_NAMES, *_WRAPPERS, *REAL_NAMES, *FAKE_NAMES} and is_dataset:
            break
        below = name.lower()
        above, name = os.path.split(above)
    return name or "dataset"


def _scan_location(location: str, wanted: Files) -> Folder:
    path = os.path.expanduser(location).replace(os.sep, "/").rstrip("/") or "/"
    if os.path.isfile(path):
        hint = f"; write csv:{location}" if path.lower().endswith((".csv", ".tsv", ".txt")) else ""
        raise UserError(f"expected a folder of {wanted.name}, got the file {location}{hint}")
    if not os.path.isdir(path):
        raise UserError(f"expected a folder of {wanted.name}, no such folder: {location}{closest_sibling(path)}")
    tree = _scan(path, frozenset(), wanted)
    if not tree.images and not tree.folders:
        hint = f"; write clips:{location}" if any(name.lower().endswith(VIDEO_SUFFIXES) for name in tree.others) else ""
        raise UserError(f"expected {wanted.name} ({', '.join(wanted.suffixes)}, ...) in {location}, got none{hint}")
    return tree


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is one, or a link to one; ``is_dir`` would raise for a link to itself."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_pipe(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a pipe, socket or device, which reading could block."""
    return not (entry.is_symlink() or entry.is_dir() or entry.is_file())


def _scan(path: str, ancestors: frozenset[tuple[int, int]], wanted: Files) -> Folder:
    folder = Folder(path, os.path.basename(path))
    try:
        status = os.stat(path)
        with os.scandir(path) as entries:
            found = sorted((e.name, leads_to_folder(e), is_pipe(e)) for e in entries if not is_system_file(e.name))
    except OSError as error:
        raise UserError(f"expected a readable folder, got {path}: {error.strerror}") from None
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:  # a symbolic link to a folder above
        return folder
    for name, is_folder, blocks in found:
        if not is_folder:
            is_wanted = not blocks and wanted.accepts(f"{path.rstrip('/')}/{name}")
            (folder.images if is_wanted else folder.others).append(name)
        elif name.lower() not in _SKIPPED:
            child = _scan(f"{path.rstrip('/')}/{name}", ancestors | {identity}, wanted)
            folder.others += [f"{name}/{other}" for other in child.others]
            if child.images or child.folders:
                folder.folders.append(child)
                folder.labels_below |= child.labels_below | ({class_label(name)} - {None})
    return folder


def _unmapped_message(location: str, tree: Folder, unmapped: list[str]) -> str:
    names = [path[len(tree.path) :].strip("/") for path in unmapped]
    found = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    wanted = f"class folders in {location} (real, original, 0_real, ...; fake, manipulated, 1_fake, ai, ...)"
    return f"expected {wanted}, got {found or 'images without any'}; rename them or list the images with csv:"


def _add_masks(by_split: dict[str, list[Record]], root: str) -> None:
    for split, records in by_split.items():
        folder = "/".join(part for part in (root, "masks", split) if part)
        masks = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        for at, record in enumerate(records if masks else ()):
            name = os.path.splitext(os.path.basename(record.path))[0] + ".png"
            if record.label == 1 and name in masks:
                records[at] = replace(record, mask=f"{folder}/{name}")
