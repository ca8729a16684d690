"""Where a forgery is made: an estimate of the position of the face, and masks of the face and its features.

Training images are crops around one face, so the face is expected upright in the middle, and only its width is
estimated, from the extent of the skin colour to both sides. No landmark model is needed. Where the estimate is wrong,
the seam runs through hair or background and is still a seam.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

THUMBNAIL = 32  # px, side of the picture from which the width of the face is estimated
SKIN_DISTANCE = 22.0  # grey levels of chroma, plus a quarter of those of luma, between one skin and another
WIDTHS = (0.12, 0.36)  # half the width of a face as a fraction of the picture: from loose to tight crops
GRID = 64  # px, side of face masks before they are enlarged; they are soft anyway
FAINT = 1 / 255  # smaller weights change no pixel
OUTLINE = 24  # corners of the outline of a face

# Centre and half axes of each feature in units of half the width of the face, from the middle of the face.
FEATURES: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "eyes": ((-0.45, -0.42, 0.30, 0.18), (0.45, -0.42, 0.30, 0.18)),
    "left eye": ((-0.45, -0.42, 0.30, 0.18),),
    "right eye": ((0.45, -0.42, 0.30, 0.18),),
    "nose": ((0.0, 0.05, 0.27, 0.36),),
    "mouth": ((0.0, 0.52, 0.46, 0.24),),
}


@dataclass(frozen=True)
class FaceFrame:
    """The middle of a face, and half its width and height, as fractions of the sides of the picture."""

    x: float
    y: float
    half_width: float
    half_height: float


def find_face(image: np.ndarray, rng: np.random.Generator) -> FaceFrame:
    """Estimate the face in ``(H, W, 3)`` uint8 RGB, with jitter; an invisible width is drawn at random."""
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    luma_chroma = cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    rows, middle = slice(13, 21), THUMBNAIL // 2
    skin = np.median(luma_chroma[rows, middle - 3 : middle + 3], axis=(0, 1))
    distance = np.abs(luma_chroma[rows] - skin) @ np.array([0.25, 1, 1], np.float32)
    other = distance.mean(0) > SKIN_DISTANCE
    reach = [int(np.argmax(side)) if side.any() else middle for side in (other[:middle][::-1], other[middle:])]
    half = sum(reach) / 2 / THUMBNAIL
    if not WIDTHS[0] / 1.5 <= half < 0.45:  # no border is visible, or only one within the face
        half = rng.uniform(0.2, WIDTHS[1])
    half = float(np.clip(half, *WIDTHS)) * rng.uniform(0.88, 1.12)
    down = 0.55 - max(0.0, half - 0.25) * 0.6  # tight crops exclude the hair, so the face is higher
    shift = float(np.clip((reach[1] - reach[0]) / 2 / THUMBNAIL, -0.06, 0.06))
    height, width = image.shape[:2]
    tall = 1.25 * half * float(np.clip(width / height, 0.7, 1.4))  # portrait crops show taller faces
    return FaceFrame(0.5 + shift + rng.uniform(-0.02, 0.02), down + rng.uniform(-0.04, 0.04), half, tall)


def face_mask(shape: tuple[int, ...], face: FaceFrame, rng: np.random.Generator) -> np.ndarray:
    """A soft mask ``(H, W)`` float32 in [0, 1] of a face: a random outline, bent and blurred at random.

    It ends between brows and hairline; Shiohara and Yamasaki draw one of four hulls of landmarks.
    """
    angles = np.linspace(0, 2 * np.pi, OUTLINE, endpoint=False)
    radius = 1 + 0.12 * smooth_noise(rng, OUTLINE // 4, OUTLINE)
    across = face.x + face.half_width * radius * np.sin(angles) * (1 + 0.12 * np.cos(angles))  # narrow at the chin
    down = np.maximum(-np.cos(angles) * radius, -rng.uniform(0.55, 1.05))
    corners = np.stack([across, face.y + face.half_height * down], axis=1) * GRID
    mask = np.zeros((GRID, GRID), np.float32)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.round(corners * 16).astype(np.int32)), 1.0, cv2.LINE_8, 4)
    mask = bend(mask, rng, rng.uniform(0.3, 1.5))
    sigma = 16 * face.half_width * np.exp(rng.uniform(np.log(0.15), np.log(1.0)))
    return enlarge(cv2.GaussianBlur(mask, (0, 0), sigma), shape)


def feature_mask(shape: tuple[int, ...], face: FaceFrame, rng: np.random.Generator) -> np.ndarray:
    """A mask ``(H, W)`` float32 in [0, 1] of the eyes, one eye, the nose or the mouth, with a hard or soft edge."""
    height, width = shape[:2]
    name = list(FEATURES)[rng.integers(len(FEATURES))]
    grow, sharp = rng.uniform(0.9, 1.5), rng.random() < 0.3
    unit = np.array([face.half_width * width, face.half_height * height / 1.25])
    middle = np.array([face.x * width, face.y * height]) + 0.06 * unit * rng.standard_normal(2)
    mask = np.zeros((height, width), np.float32)
    for x, y, half_x, half_y in FEATURES[name]:
        centre = middle + unit * (x, y)
        axes = np.maximum(2, unit * (half_x, half_y) * grow)
        cv2.ellipse(mask, (centre.tolist(), (2 * axes).tolist(), float(rng.uniform(-10, 10))), 1.0, -1)
    sigma = 0.5 if sharp else max(0.5, unit[0] * rng.uniform(0.04, 0.12))
    return drop_faint(cv2.GaussianBlur(mask, (0, 0), sigma))


def bend(mask: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Move the pixels of a square mask by smooth random steps of about ``amount`` px."""
    side = len(mask)
    steps = cv2.resize(rng.standard_normal((5, 5, 2), np.float32) * np.float32(amount), (side, side))
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    return cv2.remap(mask, columns + steps[..., 0], rows + steps[..., 1], cv2.INTER_LINEAR)


def enlarge(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scale a mask to ``(H, W)`` of an image."""
    return drop_faint(cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR))


def drop_faint(mask: np.ndarray) -> np.ndarray:
    """Set weights too small to change a pixel to 0, so that the mask ends where the change ends."""
    return np.where(mask < FAINT, np.float32(0), np.minimum(mask, np.float32(1)))


def smooth_noise(rng: np.random.Generator, knots: int, length: int) -> np.ndarray:
    """A closed random curve through ``knots`` normal numbers, ``(length,)``."""
    values = rng.standard_normal(knots)
    return np.interp(np.arange(length) * knots / length, np.arange(knots + 1), [*values, values[0]])
