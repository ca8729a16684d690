"""What surrounds a procedural face: light, hair, clothes and background, all in linear-light RGB."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

HAIR_STYLES = ("short", "fringe", "side", "long", "bob", "curly", "bun", "shaved")
HAIR_ODDS = (0.2, 0.1, 0.17, 0.17, 0.1, 0.12, 0.06, 0.08)


def f32(values: Sequence) -> np.ndarray:
    """Return nested numbers as a float32 array; ``np.float32`` makes the same array, but is typed as one number."""
    return np.asarray(values, np.float32)


def speckle(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return white noise of unit variance, uniform because that is drawn six times faster than Gaussian noise."""
    return (rng.random((height, width), dtype=np.float32) - np.float32(0.5)) * np.float32(12**0.5)


def fractal(
    rng: np.random.Generator, size: int, coarsest: int = 4, fall: float = 0.6, finest: int | None = None
) -> np.ndarray:
    """Return fractal noise, float32 (size, size), about unit variance: octaves from coarsest to finest cells."""
    # Coarse noise is built on a coarse grid and enlarged once.
    grid = min(size, 2 * finest) if finest else size
    total, gain, power, cells = np.zeros((grid, grid), np.float32), 1.0, 0.0, coarsest
    while cells <= min(grid, finest or grid):
        octave = speckle(rng, cells, cells)
        if cells < grid:
            octave = cv2.resize(octave, (grid, grid), interpolation=cv2.INTER_CUBIC)
        total += np.float32(gain) * octave
        power, gain, cells = power + gain * gain, gain * fall, cells * 2
    total /= np.float32(np.sqrt(power))
    return total if grid == size else cv2.resize(total, (size, size), interpolation=cv2.INTER_LINEAR)


def tinted(plane: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return plane (S, S) times colour (3,) as (S, S, 3); several times faster than broadcasting three channels."""
    return cv2.merge([plane * channel for channel in colour])


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return an out-of-focus background, float32 (size, size, 3): a gradient with bokeh, bands or cloth."""
    half = size // 2
    tint = np.exp(rng.normal(0, 0.4, (2, 1)) + rng.normal(0, 0.17, (2, 3)))
    colours = np.clip(rng.uniform(0.03, 0.55) * tint, 0.01, 0.9)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.7, 0.7, half, dtype=np.float32)
    ramp = np.clip(0.5 + axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle), 0, 1)[..., None]
    image = (colours[0] + (colours[1] - colours[0]) * ramp).astype(np.float32)
    kind = rng.choice(["plain", "bokeh", "bands", "mottled"], p=[0.25, 0.3, 0.2, 0.25])
    if kind == "bokeh":
        for _ in range(int(rng.integers(6, 26))):
            spot = np.zeros((half, half), np.uint8)
            centre = (int(rng.integers(0, half)), int(rng.integers(0, half)))
            cv2.circle(spot, centre, int(rng.uniform(0.02, 0.075) * size), 255, -1, cv2.LINE_AA)
            hue = np.clip(colours[int(rng.integers(2))] * np.exp(rng.normal(0.5, 0.35, 3)), 0, 1.6)
            image += (spot[..., None] * np.float32(rng.uniform(0.1, 0.5) / 255)) * (hue.astype(np.float32) - image)
    elif kind == "bands":
        for _ in range(int(rng.integers(3, 9))):
            x, y = int(rng.integers(0, half)), int(rng.integers(0, half // 2))
            hue = np.exp(rng.normal(0, 0.3, 3) + rng.normal(0, 0.4))
            hue = np.clip(colours[int(rng.integers(2))] * hue, 0, 1.2).tolist()
            cv2.rectangle(image, (x, y), (x + int(rng.integers(8, half // 2)), half), hue, -1)
    else:
        strength = 0.04 if kind == "plain" else rng.uniform(0.15, 0.4)
        image *= np.exp(np.float32(strength) * fractal(rng, half, 4, rng.uniform(0.4, 0.75)))[..., None]
    image = cv2.GaussianBlur(image, (0, 0), 1.0 if kind == "mottled" else rng.uniform(1.0, 4.0))
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def draw_light(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw a key light and a fill: direction (3,) towards the light, colours (3,) in linear-light RGB."""
    azimuth, height = rng.uniform(-1.15, 1.15), rng.uniform(0.25, 0.85)
    direction = np.array([np.sin(azimuth) * np.cos(height), -np.sin(height), np.cos(azimuth) * np.cos(height)])
    warmth = rng.normal(0, 0.1)
    key = rng.uniform(0.75, 1.15) * np.array([1 + warmth, 1.0, 1 - warmth])
    fill = rng.uniform(0.18, 0.5) * np.array([1 - warmth / 2, 1.0, 1 + warmth / 2])
    return {"direction": direction.astype(np.float32), "key": key.astype(np.float32), "fill": fill.astype(np.float32)}


def shade(height: np.ndarray, light: dict[str, np.ndarray], unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Light a height field: diffuse radiance (S, S, 3) for a white surface, and highlights (S, S).

    ``height`` is float32 (S, S) in face units and ``unit`` is the number of pixels of one face unit.
    """
    direction, pixels = light["direction"], height * np.float32(unit)
    soft = cv2.GaussianBlur(pixels, (0, 0), 0.7)
    slope_x = np.clip(cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=0.125), -4, 4)
    slope_y = np.clip(cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=0.125), -4, 4)
    norm = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = (direction[2] - slope_x * direction[0] - slope_y * direction[1]) * norm
    flat = max(float(np.hypot(direction[0], direction[1])), 1e-3)
    climb, blocked = float(direction[2]) / flat, np.full_like(pixels, -9.0)
    for step in (0.05, 0.1, 0.17, 0.26, 0.38):
        move = step * unit / flat
        shift = f32([[1, 0, -direction[0] * move], [0, 1, -direction[1] * move]])
        there = cv2.warpAffine(pixels, shift, pixels.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        blocked = np.maximum(blocked, there - pixels - np.float32(climb * step * unit))
    shadow = cv2.GaussianBlur(np.clip(blocked / np.float32(0.06 * unit), 0, 1), (0, 0), 0.018 * unit + 0.4)
    hollow = cv2.GaussianBlur(pixels, (0, 0), 0.1 * unit) - pixels
    open_sky = np.clip(1 - hollow * np.float32(2.2 / unit), 0.25, 1.1)
    lit = (1 - 0.8 * shadow) * open_sky
    wrap = np.array([0.38, 0.24, 0.18], np.float32)
    diffuse = cv2.merge(
        [np.maximum(facing + w, 0) * (lit * (key / (1 + w))) for w, key in zip(wrap, light["key"], strict=True)]
    )
    sky = (0.75 + 0.35 * slope_y * norm * -1) * open_sky
    diffuse += tinted(sky, light["fill"])
    halfway = direction + np.array([0, 0, 1], np.float32)
    halfway /= np.linalg.norm(halfway)
    gloss = np.clip((halfway[2] - slope_x * halfway[0] - slope_y * halfway[1]) * norm, 0, 1)
    for _ in range(4):
        gloss *= gloss
    return diffuse, gloss * lit


def strands(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, part: float, curl: float) -> np.ndarray:
    """Return hair strands around a crown, float32 about unit variance, for coordinates u and v (S, S)."""
    wave = fractal(rng, u.shape[0], 8, 0.5, 32) * np.float32(0.015 + 0.1 * curl)
    radius, angle = cv2.cartToPolar(u - np.float32(part * 0.5) + wave, v + np.float32(0.8) + wave)
    table = speckle(rng, 24, 768) + 0.8 * cv2.resize(speckle(rng, 12, 192), (768, 24))
    lookup = cv2.remap(
        table,
        angle * np.float32(767 / (2 * np.pi)),
        radius * np.float32(9 + 10 * curl),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    return lookup


def hair_masks(
    style: str,
    hairline: float,
    part: float,
    width: float,
    u: np.ndarray,
    v: np.ndarray,
    face_u: np.ndarray,
    frizz: np.ndarray,
    sharp: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks of the hair behind the head and on the head, each (S, S) in [0, 1].

    ``face_u`` moves with the yaw of the face; ``frizz`` is noise that frays the edges; ``sharp`` is pixels per unit.
    """
    full = {"curly": 1.27, "long": 1.1, "bob": 1.12, "shaved": 1.01, "bun": 1.04}.get(style, 1.09)
    fray = np.float32(0.055 if style == "curly" else 0.014) * frizz
    cap = full - np.sqrt((u / (width + 0.015)) ** 2 + (v / 1.01) ** 2) + fray
    temple = {"long": 0.6, "bob": 0.6, "shaved": 0.7, "bun": 0.7}.get(style, 0.65) * width / 0.74
    top = {"fringe": -0.26, "long": hairline - 0.08}.get(style, hairline)
    off = face_u - np.float32(part if style in ("side", "long") else 0.25 * part)
    # The face looks out of the hair through an ellipse: round at the hairline, long towards the jaw.
    high = np.minimum(v - 0.25, 0) / (0.25 - top - 0.12 * np.abs(off) * (style in ("side", "long")))
    low = np.maximum(v - 0.25, 0) * 0.45
    opening = np.sqrt((face_u / temple) ** 2 + high**2 + low**2) - 1 + 0.045 * frizz * (style != "shaved")
    if style == "fringe":
        opening = np.maximum(opening, (np.float32(top) - v + 0.08 * frizz) * (np.abs(face_u) < temple))
    down = {"long": 1.45, "bob": 0.78, "shaved": -0.12, "bun": -0.02, "curly": 0.05}.get(style, 0.12)
    front = np.minimum(np.minimum(cap, opening * 0.6) * sharp, (down - v + 0.05 * frizz) * sharp * 0.5)
    front = np.clip(front + 0.5, 0, 1)
    reach = {"long": 1.45, "bob": 0.82}.get(style, 0.1)
    body = (width + 0.13 + 0.06 * np.sin(3 * v + part)) - np.abs(u) + fray
    fall = np.minimum(body, np.minimum(reach - v + 0.06 * frizz, v + 0.35))
    behind = np.maximum(cap, fall) if style in ("long", "bob") else np.minimum(cap, 0.25 - v)
    if style == "bun":
        behind = np.maximum(behind, 0.3 - np.hypot(u - part * 0.3, v + 1.12) + fray)
    return np.clip(behind * sharp + 0.5, 0, 1), front


def clothes(rng: np.random.Generator, grain: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the colour of the clothes, float32 (S, S, 3): a dyed weave (grain), sometimes striped or checked."""
    dye = np.clip(rng.uniform(0.02, 0.5) * np.exp(rng.normal(0, 0.4, 3)), 0.008, 0.8).astype(np.float32)
    weave = 1 + 0.07 * grain[::-1]
    if rng.random() < 0.4:
        pitch, other = rng.uniform(14, 40), rng.random() < 0.5
        bands = np.sin(x * pitch) * (np.sin(y * pitch) if other else 1)
        weave *= 1 + np.float32(rng.uniform(0.15, 0.5)) * np.clip(3 * bands, -1, 1)
    return tinted(weave, dye)
