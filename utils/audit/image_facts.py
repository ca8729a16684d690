"""Facts about an image file: container, simple statistics, digests and a thumbnail.

A detector may wrongly learn the container facts instead of forgery: format, size, compression, metadata.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.decoding.images import UnreadableImage, decode_image
from datasets.listing.storage import read_bytes
from utils.processes import in_processes

THUMBNAIL_SIDE = 48  # px; enough to tell two portraits apart, and 140,000 of them fit in 330 MB
SOFTWARE_TAGS = (0x0131, 0x010F, 0x0110)  # EXIF Software, Make, Model
TEXT_KEYS = ("Software", "software", "parameters", "prompt", "workflow", "Creator", "Comment", "comment")

# ITU-T T.81 (JPEG), table K.1: the luminance table that the IJG quality scale multiplies.
_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)


@dataclass(slots=True)
class ImageFacts:
    """Facts of one file. If it cannot be decoded, ``error`` is the reason and the rest is empty.

    ``quality`` and ``subsampling`` exist for JPEG only. ``brightness``, ``contrast`` and ``saturation`` are in
    [0, 1], from the thumbnail; ``sharpness`` is the standard deviation of the Laplacian, in grey levels.
    ``thumbnail`` holds THUMBNAIL_SIDE x THUMBNAIL_SIDE grey bytes, the whole image squeezed into a square.
    """

    error: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    file_bytes: int = 0
    quality: int | None = None
    subsampling: str = ""
    progressive: bool = False
    exif_tags: int = 0
    software: str = ""
    icc: bool = False
    alpha: bool = False
    provenance: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    sharpness: float = 0.0
    file_digest: bytes = b""
    pixel_digest: bytes = b""
    thumbnail: bytes = b""


def image_facts(path: str) -> ImageFacts:
    """Read one file; if it cannot be read, the facts have ``error`` set."""
    try:
        data = read_bytes(path)
    except UnreadableImage as error:
        return ImageFacts(error=str(error))
    facts = ImageFacts(file_bytes=len(data), file_digest=hashlib.sha256(data).digest())
    try:
        image = decode_image(data)
    except UnreadableImage as error:
        facts.error = str(error)
        return facts
    facts.height, facts.width = image.shape[:2]
    facts.pixel_digest = hashlib.sha256(b"%d %d " % image.shape[:2] + image.tobytes()).digest()
    _add_container(facts, data)
    _add_statistics(facts, image)
    return facts


def _add_container(facts: ImageFacts, data: bytes) -> None:
    """Read the header with Pillow, which knows every field; nothing is decoded."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            facts.format, facts.mode = header.format or "", header.mode
            facts.alpha = header.has_transparency_data
            facts.icc = bool(header.info.get("icc_profile"))
            facts.progressive = bool(header.info.get("progressive") or header.info.get("interlace"))
            if facts.format in ("JPEG", "MPO"):
                facts.quality = jpeg_quality(tuple(getattr(header, "quantization", {}).get(0, ())))
                facts.subsampling = _subsampling(getattr(header, "layer", []))
            texts = [str(header.info[key]) for key in TEXT_KEYS if header.info.get(key)]
            exif = header.getexif()
            facts.exif_tags = len(exif)
            texts += [str(exif[tag]) for tag in SOFTWARE_TAGS if exif.get(tag)]
            facts.software = " ".join(" ".join(texts).split()).strip("\0 ")[:60]
    except Exception:  # damaged metadata raises nearly anything; the pixels were good
        facts.software = facts.software or "damaged metadata"
    # Content Credentials (C2PA) are in a JUMBF box, whatever the container.
    facts.provenance = b"jumb" in data[:65536] and b"c2pa" in data[:65536]


@functools.lru_cache(maxsize=1)
def _scaled_tables() -> np.ndarray:
    """The luminance table at the IJG qualities 1 to 100, sorted: (100, 64)."""
    base = np.array(_LUMINANCE.split(), dtype=np.int64)
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.sort(np.clip((base[None] * scale[:, None] + 50) // 100, 1, 255), axis=1)


@functools.lru_cache(maxsize=4096)
def jpeg_quality(table: tuple[int, ...]) -> int | None:
    """Estimate the quality (1..100) with which a JPEG was last saved from its luminance quantisation table.

    The estimate is the IJG quality (libjpeg, Pillow, OpenCV) whose table is nearest in the sum of absolute
    differences, which is exact for these programs; for cameras and Photoshop it is the nearest equivalent. None
    without a full table.
    """
    if len(table) != 64:
        return None
    distance = np.abs(_scaled_tables() - np.sort(np.array(table, dtype=np.int64))).sum(axis=1)
    return 100 - int(np.argmin(distance[::-1]))


def _subsampling(layers: Sequence[tuple[int, int, int, int]]) -> str:
    """Chroma subsampling in the usual notation, from the sampling factors of the components."""
    if len(layers) < 3:
        return "grey"
    ratio = layers[0][1] / max(1, layers[1][1]), layers[0][2] / max(1, layers[1][2])
    names: dict[tuple[float, float], str] = {
        (1, 1): "4:4:4",
        (2, 1): "4:2:2",
        (2, 2): "4:2:0",
        (1, 2): "4:4:0",
        (4, 1): "4:1:1",
    }
    return names.get(ratio, "other")


def _add_statistics(facts: ImageFacts, image: np.ndarray) -> None:
    side = THUMBNAIL_SIDE
    method = cv2.INTER_AREA if min(image.shape[:2]) >= side else cv2.INTER_LINEAR
    small = cv2.resize(image, (side, side), interpolation=method)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    facts.thumbnail = grey.tobytes()
    facts.brightness, facts.contrast = float(grey.mean()) / 255, float(grey.std()) / 255
    facts.saturation = float(cv2.cvtColor(small, cv2.COLOR_RGB2HSV)[:, :, 1].mean()) / 255
    whole = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    facts.sharpness = float(cv2.meanStdDev(cv2.Laplacian(whole, cv2.CV_16S))[1][0, 0])


def read_facts(paths: Sequence[str], workers: int | None = None) -> list[ImageFacts]:
    """Facts of every path, read by a pool of processes (default: one per core)."""
    workers = min(workers or os.cpu_count() or 1, max(1, len(paths) // 64))
    found = in_processes(image_facts, paths, workers, chunk=32)
    return list(tqdm(found, "reading", len(paths), unit="img", disable=None, leave=False))
