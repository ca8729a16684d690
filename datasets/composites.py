"""Composites: a part of one face pasted into another photograph, as retouchers and face swaps do.

The faces are aligned by their landmarks, the colours of the part are matched to its surroundings, and it is blended
with a soft edge or by solving Poisson's equation (P. Pérez, M. Gangnet, A. Blake, "Poisson Image Editing", SIGGRAPH
2003). Some parts come from an altered copy of the photograph itself. After L. Li et al., "Face X-ray for More General
Face Forgery Detection", CVPR 2020 (arXiv 1912.13458), and K. Shiohara, T. Yamasaki, "Detecting Deepfakes with
Self-Blended Images", CVPR 2022 (arXiv 2204.08376), who paste whole faces only.

Images are ``(H, W, 3)`` RGB uint8. Landmarks are ``(5, 2)`` in px: the eyes, the nose, the corners of the mouth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SELF_SHARE = 0.25  # of composites that get a part of an altered copy of themselves
POISSON_SHARE = 0.55
UNMATCHED_SHARE = 0.15  # whose colours are not matched
MIN_EYES = 22.0  # px between the eyes; in smaller faces a part is a few pixels
SCALES = (0.5, 1.6)  # of a donor: beyond, resampling alone would give the part away

# Ellipses of each part: the landmark below, centre and half axes in distances of the eyes, along and across their line.
ELLIPSES = {
    "eye": (0.0, -0.08, 0.42, 0.32),
    "nose": (0.0, -0.22, 0.36, 0.55),
    "mouth": (0.0, 0.0, 0.62, 0.33),
    "inner": (0.0, 0.0, 0.86, 0.92),
    "face": (0.0, -0.02, 1.0, 1.15),
}
# (landmark, ellipse) of each part; a part that occurs twice is drawn twice as often.
EYES = (("left", "eye"), ("right", "eye"))
NOSE, MOUTH = ("nose", "nose"), ("mouth", "mouth")
PARTS = (
    EYES,
    EYES,
    EYES[:1],
    EYES[1:],
    (NOSE,),
    (MOUTH,),
    (MOUTH,),
    (NOSE, MOUTH),
    (*EYES, NOSE),
    (("middle", "inner"),),
    (("middle", "face"),),
    (("middle", "face"),),
)


@dataclass(frozen=True)
class Portrait:
    """What choosing a donor needs to know of a photograph: the landmarks of its face, its mean colour in CIELAB."""

    landmarks: np.ndarray
    tone: np.ndarray


def describe(image: np.ndarray, landmarks: np.ndarray | None) -> Portrait | None:
    """Describe a photograph; None if it has no face, or one that is too small."""
    if landmarks is None or eye_distance(landmarks) < MIN_EYES:
        return None
    return Portrait(landmarks, to_lab(image).mean((0, 1)))


def choose_donor(portrait: Portrait, others: Sequence[Portrait]) -> int | None:
    """Return the index of the portrait whose pose and colours are closest; None if no face has a similar size."""
    costs: list[float] = []
    for other in others:
        _, scale, error = align(other.landmarks, portrait.landmarks)
        colour = float(np.linalg.norm((portrait.tone - other.tone) * (0.3, 1, 1))) / 100
        is_near = SCALES[0] < scale < SCALES[1]
        costs.append(error / eye_distance(portrait.landmarks) + colour if is_near else np.inf)
    return int(np.argmin(costs)) if min(costs, default=np.inf) < np.inf else None


def composite(
    image: np.ndarray, landmarks: np.ndarray, donor: tuple[np.ndarray, np.ndarray] | None, rng: np.random.Generator
) -> np.ndarray | None:
    """Paste a random part of a donor (image, landmarks), or of an altered copy, into an image.

    Returns None if the result is hardly different.
    """
    height, width = image.shape[:2]
    unit = eye_distance(landmarks)
    if donor is None:
        source, matrix = alter(image, rng), small_move(landmarks, rng)
    else:
        source, matrix = donor[0], align(donor[1], landmarks)[0]
    moved = cv2.warpAffine(source, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    inside = cv2.warpAffine(np.ones(source.shape[:2], np.float32), matrix, (width, height)) > 0.99
    mask: np.ndarray = part_mask((height, width), landmarks, rng) * inside
    mask[[0, 1, -2, -1]] = mask[:, [0, 1, -2, -1]] = 0  # Poisson's equation needs a border
    if mask.sum() < 0.05 * unit**2:
        return None
    if rng.random() >= UNMATCHED_SHARE:
        moved = match_colours(moved, image, grow(mask, 0.15 * unit), rng.uniform(0.5, 1))
    pasted = blend(image, moved, mask, unit, rng)
    change = np.abs(pasted.astype(np.float32) - image).sum() / (255 * unit**2)
    return pasted if change >= 0.01 else None


# ------------------------------------------------------------------------------------------------------- geometry


def eye_distance(landmarks: np.ndarray) -> float:
    """The distance between the eyes, px."""
    return float(np.linalg.norm(landmarks[1] - landmarks[0]))


def align(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Fit the similarity that maps one set of points onto another: matrix ``(2, 3)``, scale, mean error in px.

    S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991.
    """
    middle, goal = source.mean(0), target.mean(0)
    a, b = source - middle, target - goal
    u, singular, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    scale = float((singular * signs).sum() / (a**2).sum())
    turn = scale * (u * signs) @ vt
    error = float(np.linalg.norm(a @ turn.T - b, axis=1).mean())
    return np.column_stack([turn, goal - turn @ middle]), scale, error


def small_move(landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A matrix ``(2, 3)`` that turns, scales and shifts a face a little."""
    x, y = landmarks.mean(0)
    matrix = cv2.getRotationMatrix2D((float(x), float(y)), rng.uniform(-4, 4), rng.uniform(0.94, 1.06))
    shift = rng.normal(0, 0.03 * eye_distance(landmarks), 2)
    return np.column_stack([matrix[:, :2], matrix[:, 2] + shift])


def part_mask(shape: tuple[int, int], landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the outline of a random part of the face; returns ``(H, W)`` float32, 0 or 1."""
    along = landmarks[1] - landmarks[0]
    across = np.array([-along[1], along[0]])
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    if across @ (mouth - eyes) < 0:
        across = -across
    anchors = {"left": landmarks[0], "right": landmarks[1], "nose": landmarks[2], "mouth": mouth}
    anchors["middle"] = (eyes + mouth) / 2
    part, size = PARTS[rng.integers(len(PARTS))], rng.uniform(0.85, 1.3)
    mask = np.zeros(shape, np.float32)
    outlines = []
    for anchor, name in part:
        x, y, half_x, half_y = ELLIPSES[name]
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        knots = rng.normal(0, 0.08, 6)
        radius = size * (1 + np.interp(angles, np.linspace(0, 2 * np.pi, 7), [*knots, knots[0]]))
        steps = np.stack([x + half_x * radius * np.cos(angles), y + half_y * radius * np.sin(angles)], axis=1)
        centre = anchors[anchor] + rng.normal(0, 0.05, 2) * np.linalg.norm(along)
        outlines.append(np.round(16 * (centre + steps @ np.stack([along, across]))).astype(np.int32))
    if len(outlines) > 2:  # eyes and nose: one piece, with the bridge between them
        outlines = [cv2.convexHull(np.concatenate(outlines)).astype(np.int32)]
    for outline in outlines:
        cv2.fillPoly(mask, [outline], 1.0, cv2.LINE_8, 4)
    return mask


def grow(mask: np.ndarray, distance: float) -> np.ndarray:
    """The pixels ``(H, W)`` bool within a distance (px) of a mask."""
    return cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=max(1, int(distance))) > 0


# --------------------------------------------------------------------------------------------- colours and blending


def to_lab(image: np.ndarray) -> np.ndarray:
    """Convert to CIELAB, float32."""
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def match_colours(image: np.ndarray, target: np.ndarray, where: np.ndarray, strength: float) -> np.ndarray:
    """Give an image the mean and, within limits, the deviation of the target's colours in a region.

    E. Reinhard et al., "Color Transfer between Images", IEEE Computer Graphics and Applications 2001.
    """
    own, goal = to_lab(image), to_lab(target)
    mean, wanted = own[where].mean(0), goal[where].mean(0)
    gain = np.clip(goal[where].std(0) / np.maximum(own[where].std(0), 1e-3), 0.7, 1.4)
    matched = (own - mean) * (1 + strength * (gain - 1)) + mean + strength * (wanted - mean)
    return np.rint(cv2.cvtColor(matched.astype(np.float32), cv2.COLOR_LAB2RGB).clip(0, 1) * 255).astype(np.uint8)


def alter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another brightness and white balance, and another sharpness."""
    gain = rng.uniform(0.85, 1.15) * (1 + 0.05 * rng.standard_normal(3))
    offset = 8 * rng.standard_normal() + 4 * rng.standard_normal(3)
    changed = np.clip(image * gain + offset, 0, 255).astype(np.uint8)
    kind = rng.random()
    if kind < 0.5:
        height, width = image.shape[:2]
        scale = rng.uniform(0.4, 0.85)
        small = cv2.resize(changed, (int(width * scale), int(height * scale)), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    if kind < 0.75:
        amount = rng.uniform(0.4, 1.2)
        return cv2.addWeighted(changed, 1 + amount, cv2.GaussianBlur(changed, (5, 5), 1.0), -amount, 0)
    return changed


def blend(image: np.ndarray, part: np.ndarray, mask: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """Paste the masked part with continuous gradients (Poisson) or a soft edge; ``unit``: the distance of the eyes."""
    if rng.random() < POISSON_SHARE:
        left, top, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
        middle = (left + width // 2, top + height // 2)
        return cv2.seamlessClone(part, image, (mask > 0).astype(np.uint8) * 255, middle, cv2.NORMAL_CLONE)
    softness = unit * np.exp(rng.uniform(np.log(0.02), np.log(0.15)))
    weight = cv2.GaussianBlur(mask, (0, 0), max(0.4, softness))[..., None]
    return np.rint(image * (1 - weight) + part * weight).astype(np.uint8)
