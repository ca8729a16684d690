"""Degradations of images between camera and viewer: single steps, ladders of severity, and tiers.

All functions take and return RGB images ``(H, W, 3)`` uint8 and never change their input. The random generator is
seeded by the pixels of the image and the kind of degradation (:func:`apply_tier`), so an image is degraded identically
in every run and for every checkpoint, wherever its file is.

Properties of each step, all tested:

    step        changes the size   random   identity at
    jpeg, webp  no                 no       never (lossy even at 100)
    resize      yes                no       scale 1
    blur        no                 no       sigma 0
    noise       no                 yes      std 0
    crop        yes                yes      fraction 1
    screenshot  yes                no       never

A degraded image may be smaller than the input of a model; the geometry of the checkpoint then enlarges it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from datasets.augmentation import recode
from datasets.faces.framing import Box
from datasets.transforms import Geometry
from utils.errors import UserError, closest

CLEAN = "clean"
MAX_SIDE = {".jpg": 65_500, ".webp": 16_383}  # px, the limit of the format
SEVERITIES: dict[str, tuple[float, ...]] = {
    "jpeg": (95, 85, 75, 60, 45, 30),  # quality
    "resize": (0.25, 0.5, 0.75, 1.5, 2),  # of each side
    "blur": (0.5, 1, 2, 3, 4),  # sigma in px
    "noise": (0.01, 0.02, 0.05, 0.1),  # standard deviation, fraction of the range
    "crop": (0.95, 0.9, 0.75, 0.5),  # of each side
}
COMMON_SIDE, COMMON_QUALITY = 256, 75  # of the 140k set: px of the shorter side, JPEG quality
NO_CHANGE = {"jpeg": 100.0, "resize": 1.0, "blur": 0.0, "noise": 0.0, "crop": 1.0}  # the position of clean on a ladder
# The degradations that each training preset applies.
OVERLAPS = {
    "forensic": ("web", "hard", "common", "jpeg", "resize", "blur", "noise"),
    "delivery": ("web", "hard", "common", "jpeg", "resize", "blur", "noise", "crop"),
    "graded": ("web", "hard", "common", "jpeg", "resize", "blur", "noise", "crop"),
    "wild": ("web", "hard", "common", "jpeg", "resize", "blur", "noise", "crop"),
}


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress as JPEG of quality 1..100 with halved chroma, as most services do, and decode."""
    return _recode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, int(quality)])


def webp(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress as lossy WebP of quality 1..100 and decode."""
    return _recode(image, ".webp", [cv2.IMWRITE_WEBP_QUALITY, int(quality)])


def _recode(image: np.ndarray, kind: str, settings: list[int]) -> np.ndarray:
    """Encode and decode; an image too long for the format is cropped to its middle."""
    top, left = (max(0, (side - MAX_SIDE[kind]) // 2) for side in image.shape[:2])
    return recode(image[top : top + MAX_SIDE[kind], left : left + MAX_SIDE[kind]], kind, settings)


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """Scale both sides, at least to 1 px: area averaging when shrinking (no aliasing), bicubic when enlarging.

    The image keeps its new size.
    """
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian of standard deviation ``sigma`` px; the border is mirrored."""
    return cv2.GaussianBlur(image, (0, 0), float(sigma)) if sigma > 0 else image


def noise(image: np.ndarray, std: float, generator: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise, independent per pixel and channel; ``std`` is a fraction of the range 0..255."""
    noisy = generator.standard_normal(image.shape, dtype=np.float32)
    noisy *= np.float32(255 * std)
    noisy += image
    return np.clip(np.rint(noisy, out=noisy), 0, 255).astype(np.uint8)


def crop(image: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """Keep ``fraction`` of each side at a random position, which also moves the JPEG grid."""
    top, left, height, width = crop_window(image.shape, fraction, generator)
    return image[top : top + height, left : left + width]


def crop_window(shape: tuple[int, ...], fraction: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of what :func:`crop` keeps of an image ``(H, W)``."""
    height, width = (max(1, round(side * fraction)) for side in shape[:2])
    down, along = generator.random(2)
    return int(down * (shape[0] - height + 1)), int(along * (shape[1] - width + 1)), height, width


def screenshot(image: np.ndarray, scale: float, quality: int) -> np.ndarray:
    """Show the image at a display scale, capture it and post the capture as JPEG.

    The capture is lossless: it freezes the scaled pixels, so the JPEG grid of the post differs from that of the
    original file.
    """
    return jpeg(resize(image, scale), quality)


# ------------------------------------------------------------------------------------------------------ tiers


def clean(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The image as it is."""
    return image


def web(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An upload to a website: scale 0.5..1, then JPEG or WebP (evenly) of quality 60..90."""
    image = resize(image, generator.uniform(0.5, 1.0))
    codec = jpeg if generator.random() < 0.5 else webp
    return codec(image, int(generator.integers(60, 91)))


def hard(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An image shared several times: small, soft, noisy and compressed twice.

    Scale 0.25..0.5, blur of sigma 0.3..1 px, noise of 0.5..2 % of the range, JPEG of quality 30..60, then a screenshot
    at display scale 1..1.25 with JPEG of quality 60..85. The sides end at 0.25..0.625 of what they were.
    """
    image = resize(image, generator.uniform(0.25, 0.5))
    image = blur(image, generator.uniform(0.3, 1.0))
    image = noise(image, generator.uniform(0.005, 0.02), generator)
    image = jpeg(image, int(generator.integers(30, 61)))
    return screenshot(image, generator.uniform(1.0, 1.25), int(generator.integers(60, 86)))


def common(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One recipe for datasets of different formats: shorter side 256 px, JPEG of quality 75, as in the 140k set.

    It removes size and format as clues to the label.
    """
    return jpeg(Geometry("crop", COMMON_SIDE, COMMON_SIDE).scale(image), COMMON_QUALITY)


Tier = Callable[[np.ndarray, np.random.Generator], np.ndarray]
TIERS: dict[str, Tier] = {CLEAN: clean, "web": web, "hard": hard, "common": common}
STEPS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "jpeg": lambda image, level, _: jpeg(image, int(level)),
    "resize": lambda image, level, _: resize(image, level),
    "blur": lambda image, level, _: blur(image, level),
    "noise": noise,
    "crop": crop,
}


def content_seed(image: np.ndarray) -> bytes:
    """A digest of the size and the pixels of an image, which seeds its degradations."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def apply_tier(image: np.ndarray, tier: str, seed: bytes | None = None) -> np.ndarray:
    """Degrade an image by a tier (``web``) or a step of a ladder (``jpeg-75``), deterministically.

    The levels of one ladder share their random numbers (noise of 0.1 is the noise of 0.01, ten times as strong), so a
    curve over the levels is not blurred by the draws. ``seed`` is the image's ``content_seed``, if known.
    """
    if tier == CLEAN:
        return image
    kind, level = parse_severity(tier) or (tier, 0.0)
    generator = _generator(kind, seed or content_seed(image))
    return TIERS[tier](image, generator) if tier in TIERS else STEPS[kind](image, level, generator)


def move_box(box: Box | None, tier: str, shape: tuple[int, ...], seed: bytes) -> Box | None:
    """Where a face is after :func:`apply_tier` on an image of this ``(H, W)``: only a crop moves its box."""
    kind, level = parse_severity(tier) or (tier, 0.0)
    if kind != "crop" or box is None:
        return box
    top, left, height, width = crop_window(shape, level, _generator(kind, seed))
    rows, columns = shape[0] / height, shape[1] / width
    return Box(box.left * columns - left / width, box.top * rows - top / height, box.width * columns, box.height * rows)


def _generator(kind: str, seed: bytes) -> np.random.Generator:
    digest = hashlib.blake2b(kind.encode(), key=seed, digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def severity_name(kind: str, level: float) -> str:
    """The name of a step in the column ``tier``: ``jpeg-75``, ``noise-0.01``."""
    return f"{kind}-{level:g}"


def parse_severity(tier: str) -> tuple[str, float] | None:
    """Kind and level of a step of a ladder; None for any other name."""
    kind, dash, level = tier.partition("-")
    try:
        return (kind, float(level)) if dash and kind in SEVERITIES else None
    except ValueError:
        return None


def ladder_place(kind: str, level: float) -> tuple[int, float]:
    """A sort key that follows the order of SEVERITIES."""
    falling = SEVERITIES[kind][0] > SEVERITIES[kind][-1]
    return list(SEVERITIES).index(kind), -level if falling else level


def is_trained_on(tier: str, augmentation: str | None) -> bool:
    """Whether a training preset (``--augmentation``) degrades images as this tier does."""
    kind = (parse_severity(tier) or (tier, 0.0))[0]
    return kind in OVERLAPS.get(augmentation or "", ())


def pick_tiers(tiers: Iterable[str], severities: Iterable[str] = ()) -> list[str]:
    """The names requested by --tiers and --severity, each once; ``all`` means every ladder. Raises UserError."""
    chosen = list(tiers)
    for name in chosen:
        if name not in TIERS:
            raise UserError(f"expected --tiers of {', '.join(TIERS)}, got {name!r}{closest(name, TIERS)}")
    known = (*SEVERITIES, "all")
    for kind in severities:
        if kind not in known:
            raise UserError(f"expected --severity of {', '.join(known)}, got {kind!r}{closest(kind, known)}")
        kinds = SEVERITIES if kind == "all" else (kind,)
        chosen += [severity_name(name, level) for name in kinds for level in SEVERITIES[name]]
    return list(dict.fromkeys(chosen))
