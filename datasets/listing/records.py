"""What a dataset consists of: records, listings, and the names of classes and splits."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np

    from datasets.faces.framing import Box

LABEL_NAMES = ("real", "fake")
SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("valid", "val", "validation", "dev"), "valid")
REAL_NAMES = frozenset("real original authentic genuine nature natural pristine human training_real".split())
FAKE_NAMES = frozenset(
    "fake ai ai_generated artificial manipulated synthetic synthesized synthesised generated gan deepfake "
    "forged tampered altered training_fake".split()
)
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "demo.json"}  # by systems, or by the demo set
_DECORATION = re.compile(r"^\d+_|_?(images?|imgs?|faces?|photos?|pictures?|sequences?)$")


class PixelStore(Protocol):
    """Decoded images by path, such as datasets.image_cache.ImageCache."""

    def read(self, path: str) -> np.ndarray:
        """Return ``(H, W, 3)`` uint8 RGB. Raises UnreadableImage."""


class FaceUser(Protocol):
    """A geometry or transform; ``needs_face`` tells whether its result depends on the face in a picture."""

    @property
    def needs_face(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a dataset, read by ``datasets.decoding.images.read_record``.

    ``label`` is 0 for real, 1 for fake, None for unknown; ``generator`` is "real" for real images. Images of one
    ``group``, such as the frames of a video, belong in the same split. ``pixels`` is the cache that holds the decoded
    image, if any. ``faces`` are the faces in the picture, the largest first; None before ``with_faces`` of
    datasets/faces/boxes.py searched it.
    """

    path: str
    label: int | None
    generator: str
    mask: str | None = None
    meta: dict[str, str] | None = None
    group: str = ""
    pixels: PixelStore | None = field(default=None, compare=False, repr=False)
    faces: tuple[Box, ...] | None = None

    def face_for(self, user: FaceUser) -> Box | None:
        """The largest face, for a geometry or transform that needs one; None if there is none."""
        if user.needs_face and self.faces is None:  # a mistake of ours, which would pass unnoticed
            raise ValueError("expected a record whose faces are known; call with_faces first")
        return self.faces[0] if user.needs_face and self.faces else None


class Sampling(NamedTuple):
    """Which frames of a video count: one every so many seconds, or fewer, so that ``max_frames`` cover all of it."""

    every: float = 0.5
    max_frames: int = 64


@dataclass(frozen=True)
class Source:
    """What a reader found: records by split ("" for no split) and the folder that their paths start from.

    ``sampling`` chooses the frames of videos; None stands for a set of pictures.
    """

    name: str
    root: str
    by_split: dict[str, list[Record]]
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Listing:
    """The records that a spec selects; ``splits`` are those of the whole dataset, ``sampling`` that of the source."""

    name: str
    split: str
    records: list[Record] = field(repr=False)
    fingerprint: str
    root: str
    splits: tuple[str, ...]
    sampling: Sampling | None = None


def relative_path(path: str, root: str) -> str:
    """The path below the root of its dataset, the same on every machine."""
    return path[len(root) + 1 :] if path.startswith(root + "/") else path


@functools.lru_cache(maxsize=1024)
def class_label(name: str) -> int | None:
    """Return 0 for a name of the class real, 1 for fake, None for any other name.

    Case, a leading index (`0_real`), a trailing noun (`fake_images`) and a plural are ignored.
    """
    core = re.sub(r"[\s\-]+", "_", name.strip().lower())
    for candidate in (core, _DECORATION.sub("", core)):
        for word in (candidate, candidate.removesuffix("s")):
            if word in REAL_NAMES or word in FAKE_NAMES:
                return int(word in FAKE_NAMES)
    return None


def is_system_file(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that operating systems leave behind."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES
