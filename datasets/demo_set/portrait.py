"""Assemble a procedural portrait: features, skin, hair, clothes and background under one light."""

from __future__ import annotations

import cv2
import numpy as np

from datasets.demo_set import scene
from datasets.demo_set.faces import Figure, curve, ellipse, head_height, ribbon
from datasets.demo_set.scene import f32, tinted

SIDES = (-1, 1)


def _eyes(figure: Figure, albedo: np.ndarray, gaze: float) -> None:
    who = figure.who
    apart, half, opened, slant = who.eye

    def lids(height: float, shift: float = 0.0, peak: float = -0.1) -> list[np.ndarray]:
        t = np.linspace(-1, 1, 13)
        v = shift - slant * t - height * (1 - t * t) * (1 + peak * t)
        return [np.stack([side * (apart + half * t), v], 1) for side in SIDES]

    def discs(v: float, a: float, b: float, shift: float = 0.0) -> list[np.ndarray]:
        return [ellipse(side * apart + shift, v, a, b) for side in SIDES]

    upper, lower = lids(opened), lids(-0.62 * opened, peak=0.2)
    almonds = [ribbon(top, low) for top, low in zip(upper, lower, strict=True)]
    dark, black = who.skin * 0.3, f32([0.004] * 3)
    figure.paint(albedo, discs(-0.03, half * 1.25, 0.12), who.skin * 0.62, 0.4, 0.05 * figure.scale)
    figure.paint(albedo, lids(-1.5 * opened, 0.015), who.skin * 0.62, 0.3 + 0.3 * who.age, 1.2, line=0.018)
    figure.paint(albedo, almonds, f32([0.66, 0.62, 0.58]), 1.0, 0.5)
    figure.paint(albedo, discs(-0.005, 0.068, 0.068, gaze), who.iris * 0.35, 1.0, 0.4, clip=almonds)
    figure.paint(albedo, discs(-0.003, 0.053, 0.053, gaze), who.iris, 0.9, 0.7, clip=almonds)
    figure.paint(albedo, discs(-0.005, 0.028, 0.028, gaze), black, 1.0, 0.4, clip=almonds)
    shadow = [ribbon(top, low) for top, low in zip(upper, lids(0.45 * opened), strict=True)]
    figure.paint(albedo, shadow, dark, 0.5, 0.9, clip=almonds)
    lashes = zip(lids(opened + 0.02, -0.002, -0.3), lids(opened - 0.006), strict=True)
    figure.paint(albedo, [ribbon(top, low) for top, low in lashes], dark * 0.25, 0.95, 0.5)
    figure.paint(albedo, lower, dark, 0.45, 0.6, line=0.012)
    figure.paint(albedo, lids(opened + 0.02, -0.042), dark, 0.55, 0.9, line=0.014)


def _brows(figure: Figure, albedo: np.ndarray, rng: np.random.Generator) -> None:
    rise, thick, arch, strength = figure.who.brow
    t = np.linspace(-1, 1, 13)
    across, arc = 0.3 + 0.17 * t, -rise - arch * (1 - (t - 0.3) ** 2)
    top, low = arc - thick * (0.9 - 0.5 * t), arc + thick * (0.7 - 0.7 * t)
    tone = np.minimum(figure.who.hair * 0.5, figure.who.skin * 0.45)
    shapes = [ribbon(np.stack([side * across, top], 1), np.stack([side * across, low], 1)) for side in SIDES]
    figure.paint(albedo, shapes, tone, strength * 0.75, 1.3)
    place, lean = rng.integers(0, 13, 32), rng.uniform(0.01, 0.05, 32)
    turn = np.repeat(SIDES, 16)
    start = across[place] + rng.uniform(-0.014, 0.014, 32)
    hairs = np.stack(
        [np.stack([turn * start, low[place]], 1), np.stack([turn * (start + lean), top[place] - 0.004], 1)], 1
    )
    figure.paint(albedo, list(hairs), tone * 0.7, strength * 0.55, 0.4, line=0.01)


def _nose(figure: Figure, albedo: np.ndarray) -> None:
    wide, tip, _ = figure.who.nose
    holes = [ellipse(side * wide * 0.62, tip + 0.055, wide * 0.36, 0.02, side * -0.35) for side in SIDES]
    figure.paint(albedo, holes, figure.who.skin * 0.12, 0.75, 1.1)
    wings = [curve(side * wide * 1.35, side * wide * 1.6, lambda t: tip + 0.02 - 0.05 * t) for side in SIDES]
    figure.paint(albedo, wings, figure.who.skin * 0.4, 0.4, 1.3, line=0.016)


def _mouth(figure: Figure, albedo: np.ndarray) -> None:
    who, opening = figure.who, figure.who.open_mouth
    half, upper, lower, smile = who.mouth
    half *= 1 + 4 * opening

    def line(shrink: float, above: float, power: float = 2.0, bow: float = 0.0) -> np.ndarray:
        t = np.linspace(-1, 1, 17)
        arch = 1 - np.abs(t) ** power - bow * np.exp(-((t / 0.16) ** 2))
        return np.stack([half * shrink * t, 0.66 - smile * t * t + above * arch], 1)

    lip = who.skin * f32([0.82, 0.46, 0.46]) + f32([0.02, 0.0, 0.004])
    lips = ribbon(line(1.0, -upper - opening * 0.4, 2.2, 0.28), line(0.94, lower + opening, 2.4))
    figure.paint(albedo, lips, lip, 0.85, 1.0)
    gap_top = line(0.9, -0.009 - opening * 0.55)
    gap = ribbon(gap_top, line(0.9, 0.009 + opening))
    figure.paint(albedo, gap, lip * 0.12, 0.9, 0.6)
    if opening:
        teeth = ribbon(gap_top, line(0.85, opening * 0.55))
        figure.paint(albedo, teeth, f32([0.6, 0.57, 0.5]), 0.9, 0.6, clip=gap)
    under = curve(-0.1, 0.1, lambda t: 0.69 + lower + opening - 0.01 * t**2)
    figure.paint(albedo, under, who.skin * 0.6, 0.35, 2.0, line=0.03)


def _skin(figure: Figure, grain: np.ndarray, blotch: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    who = figure.who
    flush = np.exp(-(((np.abs(u) - 0.38) / 0.2) ** 2) - ((v - 0.34) / 0.2) ** 2)
    flush += np.exp(-((u / 0.13) ** 2) - ((v - 0.38) / 0.12) ** 2)
    pores = np.exp(np.float32(0.028 + 0.035 * who.age) * grain + np.float32(0.05) * blotch)
    tint = 0.16 * flush + 0.05 * blotch
    albedo = cv2.merge(
        [pores * (tone + tone * weight * tint) for tone, weight in zip(who.skin, f32([0.25, -0.6, -0.5]), strict=True)]
    )
    if who.beard:
        chin = (v < 1.0) * np.clip((v - 0.34 - 0.9 * (0.55 - np.abs(u)).clip(0) ** 2 + 0.04 * blotch) / 0.16, 0, 1)
        lip_gap = np.exp(-((u / 0.2) ** 2) - ((v - 0.56) / 0.045) ** 2)
        cover = np.maximum(chin, 0.8 * lip_gap * (who.beard > 0.5)) * who.beard * (0.75 + 0.35 * grain)
        bristle = tinted(np.ones_like(cover), np.minimum(who.hair * 0.55, who.skin * 0.6))
        _blend(albedo, np.clip(cover, 0, 0.95), bristle)
    return albedo


def _blend(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    cv2.blendLinear(canvas, colour, 1 - mask, mask, canvas)


def _fill(figure: Figure, points: np.ndarray) -> np.ndarray:
    mask = np.zeros((figure.size, figure.size), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16 - 8).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _body(figure: Figure, wide: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel outlines of the neck and of the shoulders, which keep upright while the head tilts."""
    t = np.linspace(-1, 1, 25)
    to_pixel = np.array([figure.pose.x, figure.pose.y]) * figure.size
    shoulder = np.stack(
        [t * 2.1, 1.17 + 0.5 * np.abs(t * 2.1 / wide) ** 2.2 + 0.12 * np.exp(-((t * 2.1 / 0.3) ** 2))], 1
    )
    outline = np.concatenate([shoulder, [[2.1, 4], [-2.1, 4]]])
    neck = np.array(
        [
            [-0.4, 0.2],
            [0.4, 0.2],
            [0.41, 0.95],
            [0.55, 1.25],
            [0.2, 1.5],
            [0, 1.62],
            [-0.2, 1.5],
            [-0.55, 1.25],
            [-0.41, 0.95],
        ]
    ) * [figure.who.width / 0.74, 1]
    return neck * figure.scale + to_pixel, outline * figure.scale + to_pixel


def _figure_height(figure: Figure, size: int, covered: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Return the height of the whole figure: head and hair over neck over shoulders over background."""
    x, y = figure.grid(size, tilted=False)
    u, v = figure.grid(size)
    head = head_height(figure, size)
    neck = -0.35 + 0.42 * np.sqrt(np.clip(1 - (x / 0.43) ** 2, 0, 1)) - 0.1 * np.clip(y - 0.9, 0, 1)
    torso = -0.7 + 0.55 * np.sqrt(np.clip(1 - (x / 1.7) ** 2, 0, 1)) * np.clip((y - 0.9) * 1.6, 0, 1)
    in_neck = np.abs(x) < 0.43
    below = np.where(y > 0.4, np.maximum(np.where(in_neck, neck, -1), torso), -0.9)
    full = np.where(head > -0.99, head, below)
    skull = 0.8 * np.sqrt(np.clip(1 - (u / (figure.who.width + 0.16)) ** 2 - (np.minimum(v, 0) / 1.16) ** 2, 0, 1))
    hair = np.maximum(front, covered * ((head <= -0.99) & ~(in_neck & (y > 0.6))))
    return (full + np.clip(skull - full, 0, 2) * hair).astype(np.float32)


def _finish(figure: Figure, radiance: np.ndarray, light: dict[str, np.ndarray], gaze: float) -> None:
    """Add what lies on top of the lit surface: glints in the eyes and glasses."""
    apart, black = figure.who.eye[0], f32([0.012, 0.011, 0.012])
    glint = gaze + float(light["direction"][0]) * 0.03
    spots = [ellipse(side * apart + glint, -0.028, 0.014, 0.014, count=10) for side in SIDES]
    figure.paint(radiance, spots, light["key"] * 0.9, 0.85, 0.5)
    if not figure.who.glasses:
        return
    rims = [ellipse(side * apart, 0.015, 0.225, 0.175 + 0.03 * np.sin(apart * 90)) for side in SIDES]
    figure.paint(radiance, rims, light["fill"] * 0.35, 0.1)
    figure.paint(radiance, [np.concatenate([rim, rim[:1]]) for rim in rims], black, 0.92, 0.4, line=0.024)
    arms = [np.array([[side * (apart + 0.22), -0.02], [side * figure.who.width, -0.06]]) for side in SIDES]
    figure.paint(radiance, arms, black, 0.9, 0.4, line=0.024)
    bridge = curve(-apart + 0.22, apart - 0.22, lambda t: -0.01 - 0.03 * (1 - t**2), 7)
    figure.paint(radiance, bridge, black, 0.9, 0.4, line=0.024)


def head_outline(figure: Figure) -> np.ndarray:
    """Return the outline of the head, finest near the crown and the chin where it turns fastest."""
    v = -np.cos(np.linspace(0, np.pi, 40))
    width = figure.half_width(v)
    return ribbon(np.stack([-width, v], 1), np.stack([width, v], 1))


def render(figure: Figure, light: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Render a portrait.

    Returns scene radiance, float32 (R, R, 3), linear-light RGB, R the size of the figure; white paper is about 1,
    highlights go beyond it.
    """
    size, who, half = figure.size, figure.who, figure.size // 2
    u, v = figure.grid(size)
    x, y = figure.grid(size, tilted=False)
    blotch = scene.fractal(rng, size, 4, 0.75, 32)
    grain = scene.speckle(rng, size, size)
    grain = 0.6 * grain + 1.1 * cv2.GaussianBlur(grain, (0, 0), 1.0)
    hair_noise = scene.strands(rng, u, v, who.part, who.curl * (2.0 if who.style == "curly" else 1.0))
    face_u = u - np.float32(figure.pose.yaw * 0.55)
    behind, front = scene.hair_masks(
        who.style, who.hairline, who.part, who.width, u, v, face_u, 0.6 * hair_noise + 0.6 * blotch, figure.scale
    )
    if who.style == "shaved":
        front = front * np.clip(0.5 + 0.15 * grain, 0, 1)
    hair = tinted(np.exp(0.38 * hair_noise) * (0.8 + 0.25 * blotch.clip(-1, 1)), who.hair)
    skin = _skin(figure, grain, blotch, u - np.float32(figure.pose.yaw * 0.5), v)
    neck, torso = _body(figure, rng.uniform(1.25, 1.7))
    neck_mask, torso_mask = _fill(figure, neck), _fill(figure, torso)
    torso_mask *= 1 - neck_mask * (y > 1.0)
    albedo = np.zeros((size, size, 3), np.float32)
    gaze = rng.normal(0, 0.018)
    _blend(albedo, behind, hair * 0.55)
    _blend(albedo, neck_mask, skin)
    _blend(albedo, torso_mask, scene.clothes(rng, grain, x, y))
    if who.style == "long":
        _blend(albedo, behind * np.clip((np.abs(u) - 0.45) * 12, 0, 1), hair * 0.8)
    ears = np.zeros_like(albedo[..., :1])

    def ear(v: float, a: float, b: float) -> list[np.ndarray]:
        return [ellipse(side * who.width * 0.985 - figure.pose.yaw * 0.12, v, a, b, side * 0.12) for side in SIDES]

    figure.paint(ears, ear(0.1, 0.085, 0.19), np.float32(1), parallax=False)
    figure.paint(albedo, ear(0.1, 0.085, 0.19), who.skin * 0.9, 1.0, 0.5, parallax=False)
    figure.paint(albedo, ear(0.08, 0.045, 0.12), who.skin * 0.5, 0.6, 1.5, parallax=False)
    head_mask = _fill(figure, figure.pixels(head_outline(figure), parallax=False))
    _blend(albedo, head_mask, skin)
    _eyes(figure, albedo, gaze)
    _brows(figure, albedo, rng)
    _nose(figure, albedo)
    _mouth(figure, albedo)
    _blend(albedo, front, hair)
    alpha = np.maximum.reduce([behind, neck_mask, torso_mask, head_mask, front, ears[..., 0]])

    covered, low_front = (cv2.resize(m, (half, half), interpolation=cv2.INTER_AREA) for m in (behind, front))
    height = _figure_height(figure, half, covered, low_front)
    diffuse, gloss = scene.shade(height, light, figure.scale / 2)
    diffuse, gloss = cv2.resize(diffuse, (size, size)), cv2.resize(gloss, (size, size))
    oil = 0.11 * head_mask * (1 - front) * (1 + 0.25 * grain) + 0.05 * front * np.exp(0.5 * hair_noise)
    radiance = albedo * diffuse
    radiance += tinted(gloss * oil * np.float32(rng.uniform(0.4, 1.2)), light["key"])
    _finish(figure, radiance, light, gaze)
    _blend(radiance, 1 - alpha, scene.background(rng, size))
    return radiance
