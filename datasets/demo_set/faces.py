"""Render procedural portraits: a height field under one light, with drawn features.

Nothing is learned and nothing is downloaded: an identity is a few dozen random numbers. The head is a
half ellipsoid with Gaussian bumps (nose, brow, lips, chin); its normals give diffuse light, highlights and
occlusion, and marching through the height field gives soft cast shadows. The skin scatters light more in red
than in blue, approximated by wrapping the diffuse term per channel (Green, "Real-Time Approximations to
Subsurface Scattering", GPU Gems, 2004; a true diffusion profile is left out for speed).

Face coordinates are (u, v): u to the right, v down, the crown at v = -1, the chin at v = 1, the eyes at v = 0.
Colours are linear-light RGB; a canvas is float32 (R, R, 3), rendered at twice the final size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.demo_set import scene

# sRGB, as hexadecimal digits
SKIN_TONES = "ffdec8 f4cdac e8b892 d49e74 b27a52 8c5c3c 68422d 4a2f22"
HAIR_TONES = "161211 2c1e16 4a301e 704a2a a87c46 ceac74 843a1c a8a4a0"
IRIS_TONES = "462c1a 624224 686234 4a6c52 527696 6e7c84"


@dataclass(frozen=True)
class Pose:
    """Where the head is: centre and half height in canvas fractions, tilt in radians, yaw in [-0.4, 0.4]."""

    x: float
    y: float
    scale: float
    tilt: float
    yaw: float


@dataclass(frozen=True)
class Identity:
    """Every number that makes one person; lengths in face coordinates, colours in linear-light RGB."""

    width: float
    jaw: float
    square: float
    nose: tuple[float, float, float]
    eye: tuple[float, float, float, float]
    brow: tuple[float, float, float, float]
    mouth: tuple[float, float, float, float]
    cheek: float
    chin: float
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    style: str
    hairline: float
    part: float
    curl: float
    beard: float
    age: float
    glasses: bool
    open_mouth: float


def _pick(rng: np.random.Generator, palette: str, spread: float) -> np.ndarray:
    """Draw a tone between two neighbours of a palette, in linear light, a little off in each channel."""
    tones = [tuple(bytes.fromhex(tone)) for tone in palette.split()]
    place = rng.uniform(0, len(tones) - 1.001)
    low = int(place)
    mixed = np.asarray(tones[low]) + (place - low) * (np.asarray(tones[low + 1]) - np.asarray(tones[low]))
    return ((mixed / 255.0) ** 2.2 * np.exp(rng.normal(0, spread, 3))).astype(np.float32)


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draw the framing of a portrait that is cropped like an identity photograph."""
    return Pose(
        0.5 + rng.normal(0, 0.018),
        0.465 + rng.normal(0, 0.014),
        rng.uniform(0.325, 0.375),
        rng.normal(0, 0.07),
        float(np.clip(rng.normal(0, 0.17), -0.36, 0.36)),
    )


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw one person."""
    uniform = rng.uniform
    beard = uniform(0.35, 1.0) if rng.random() < 0.26 else 0.0
    skin, iris = _pick(rng, SKIN_TONES, 0.05), _pick(rng, IRIS_TONES, 0.1)
    # Light eyes are rare in dark skin: pull the iris towards brown as the skin gets darker.
    brown = scene.f32([0.06, 0.03, 0.015])
    iris = brown + (iris - brown) * min(1.0, float(skin[1]) / 0.3) ** 1.5
    return Identity(
        width=uniform(0.67, 0.8),
        jaw=uniform(0.0, 0.2),
        square=uniform(2.0, 2.9),
        nose=(uniform(0.075, 0.115), uniform(0.38, 0.46), uniform(0.13, 0.24)),
        eye=(uniform(0.29, 0.33), uniform(0.125, 0.155), uniform(0.04, 0.068), uniform(-0.02, 0.025)),
        brow=(uniform(0.15, 0.2), uniform(0.018, 0.042), uniform(0.01, 0.055), uniform(0.45, 0.95)),
        mouth=(uniform(0.18, 0.26), uniform(0.03, 0.058), uniform(0.05, 0.085), uniform(-0.015, 0.05)),
        cheek=uniform(0.0, 0.07),
        chin=uniform(0.02, 0.09),
        skin=skin,
        hair=_pick(rng, HAIR_TONES, 0.1),
        iris=iris,
        style=str(rng.choice(scene.HAIR_STYLES, p=scene.HAIR_ODDS)),
        hairline=uniform(-0.66, -0.46),
        part=uniform(-0.45, 0.45),
        curl=uniform(0.0, 1.0),
        beard=beard,
        age=uniform(0, 1),
        glasses=bool(rng.random() < 0.13),
        open_mouth=uniform(0.02, 0.045) if rng.random() < 0.35 else 0.0,
    )


class Figure:
    """One person in one pose: maps face coordinates to pixels and draws shapes there."""

    def __init__(self, who: Identity, pose: Pose, size: int) -> None:
        self.who, self.pose, self.size = who, pose, size
        self.scale = pose.scale * size
        self.cos, self.sin = float(np.cos(pose.tilt)), float(np.sin(pose.tilt))
        self.to_pixel = self.scale * np.array([[self.cos, self.sin], [-self.sin, self.cos]])
        self.origin = np.array([pose.x, pose.y]) * size

    def roundness(self, v: np.ndarray) -> np.ndarray:
        """Return how wide the head is at height v, from 0 at crown and chin to 1 between them."""
        return np.sqrt(np.maximum(1 - np.abs(v) ** self.who.square, 0))

    def half_width(self, v: np.ndarray) -> np.ndarray:
        """Return the half width of the head at height v; 0 above the crown and below the chin."""
        narrowing = 1 - 0.8 * self.who.jaw * np.clip((v + 0.1) / 1.1, 0, 1)
        return self.who.width * narrowing * self.roundness(v)

    def grid(self, size: int, tilted: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return face coordinates (u, v), each float32 (size, size), of the pixels of a canvas."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        x = (axis[None, :] - np.float32(self.pose.x)) / np.float32(self.pose.scale)
        y = (axis[:, None] - np.float32(self.pose.y)) / np.float32(self.pose.scale)
        if not tilted:
            return np.broadcast_to(x, (size, size)), np.broadcast_to(y, (size, size))
        return x * self.cos + y * self.sin, y * self.cos - x * self.sin

    def pixels(self, points: np.ndarray, parallax: bool = True) -> np.ndarray:
        """Map face coordinates (N, 2) to pixel coordinates; with parallax they move with the yaw of the head."""
        u, v = points[:, 0], points[:, 1]
        if parallax:
            u = u + self.pose.yaw * 0.8 * np.sqrt(np.maximum(1 - (u / self.who.width) ** 2 - v * v, 0))
        return np.stack([u, v], 1) @ self.to_pixel + self.origin

    def paint(
        self,
        canvas: np.ndarray,
        points: np.ndarray | list[np.ndarray],
        colour: np.ndarray | np.float32,
        opacity: float = 1.0,
        blur: float = 0.0,
        clip: np.ndarray | list[np.ndarray] | None = None,
        line: float = 0.0,
        parallax: bool = True,
    ) -> None:
        """Fill a shape given in face coordinates (stroke it, with line > 0); only its bounding box is touched.

        ``points`` and ``clip`` may be lists of shapes of the same number of points.
        """
        parts = points if isinstance(points, list) else [points]
        corners = self.pixels(np.concatenate(parts) if len(parts) > 1 else parts[0], parallax)
        pad = int(3 * blur + line * self.scale + 3)
        (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
        left, top = max(int(left) - pad, 0), max(int(top) - pad, 0)
        right, bottom = min(int(right) + pad + 1, self.size), min(int(bottom) + pad + 1, self.size)
        if right <= left or bottom <= top:
            return
        low, shape = np.array([left, top]), (bottom - top, right - left)
        mask = self._mask(corners - low, shape, line, len(parts))
        if clip is not None:
            holes = clip if isinstance(clip, list) else [clip]
            limit = self._mask(self.pixels(np.concatenate(holes), parallax) - low, shape, 0, len(holes))
            mask = np.minimum(mask, limit)
        mask = mask.astype(np.float32)
        if blur:
            mask = cv2.GaussianBlur(mask, (0, 0), blur)
        weight = (mask * np.float32(opacity / 255))[..., None]
        patch = canvas[top:bottom, left:right]
        patch += (colour - patch) * weight

    def _mask(self, corners: np.ndarray, shape: tuple[int, int], line: float, parts: int = 1) -> np.ndarray:
        mask = np.zeros(shape, np.uint8)
        fixed = list((corners * 16 - 7.5).astype(np.int32).reshape(parts, -1, 2))
        if line:
            width = max(1, round(line * self.scale))
            cv2.polylines(mask, fixed, False, 255, width, cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(mask, fixed, 255, cv2.LINE_AA, 4)
        return mask


def ellipse(u: float, v: float, a: float, b: float, turn: float = 0.0, count: int = 24) -> np.ndarray:
    """Return the outline (count, 2) of an ellipse in face coordinates."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    x, y = a * np.cos(angle), b * np.sin(angle)
    return np.stack([u + x * np.cos(turn) - y * np.sin(turn), v + x * np.sin(turn) + y * np.cos(turn)], 1)


def curve(u0: float, u1: float, shape: Callable[[np.ndarray], np.ndarray], count: int = 13) -> np.ndarray:
    """Return points (count, 2) from u0 to u1 whose v is shape(t), t from -1 to 1."""
    t = np.linspace(-1, 1, count)
    return np.stack([u0 + (u1 - u0) * (t + 1) / 2, shape(t) + 0 * t], 1)


def ribbon(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Close two curves into one outline."""
    return np.concatenate([top, bottom[::-1]])


def _bump(u: np.ndarray, v: np.ndarray, a: float, b: float, wide: float, tall: float) -> np.ndarray:
    return np.exp(-(((u - a) / wide) ** 2) - ((v - b) / tall) ** 2)


def head_height(figure: Figure, size: int) -> np.ndarray:
    """Return the height of the head towards the viewer, float32 (size, size); -1 outside it."""
    who = figure.who
    u, v = figure.grid(size)
    width = np.maximum(figure.half_width(v), 1e-3)
    inside = np.abs(u) < width
    base = 0.8 * figure.roundness(v) * np.sqrt(np.maximum(1 - (u / width) ** 2, 0))
    u = u - np.float32(figure.pose.yaw) * base
    side = np.abs(u)
    wide, tip, bulk = who.nose
    apart = who.eye[0]
    slope = np.clip((v + 0.12) / (tip + 0.12), 0, 1)
    bridge = np.exp(-((u / wide) ** 2)) * slope * np.sqrt(slope) * np.exp(-(np.clip((v - tip) / 0.07, 0, None) ** 2))
    z = base + bulk * bridge + 0.35 * bulk * _bump(side, v, wide * 1.25, tip + 0.02, 0.055, 0.06)
    z -= 0.09 * _bump(side, v, apart - 0.04, -0.02, 0.15, 0.1)
    z += 0.045 * _bump(side, v, apart, 0.0, 0.11, 0.06)
    z += 0.05 * _bump(side, v, apart - 0.03, -0.2, 0.2, 0.07)
    z += who.cheek * _bump(side, v, 0.4, 0.26, 0.18, 0.17)
    z += who.chin * _bump(u, v, 0, 0.88, 0.2, 0.1)
    z -= 0.03 * _bump(u, v, 0, 0.81, 0.2, 0.035)
    half, upper, lower, _ = who.mouth
    z += 0.05 * _bump(u, v, 0, 0.655 - upper * 0.6, half, 0.045)
    z += 0.055 * _bump(u, v, 0, 0.66 + lower * 0.6, half * 0.8, 0.05)
    z -= 0.03 * _bump(u, v, 0, 0.66, half, 0.018)
    fold = np.exp(-(((side - 0.2 - 0.22 * (v - tip)) / 0.035) ** 2)) * ((v > tip) & (v < 0.75))
    z -= (0.01 + 0.025 * who.age) * fold
    return np.where(inside, z, np.float32(-1)).astype(np.float32)
