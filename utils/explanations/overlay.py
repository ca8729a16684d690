"""Overlays: a map placed from the detector's view back onto the picture, in colours readable with colour blindness."""

from __future__ import annotations

import cv2
import numpy as np

from datasets.faces.framing import Box
from datasets.transforms import JPEG_GRID, MAX_ASPECT, Geometry

OPACITY = 0.75  # of the strongest place; places without evidence stay uncovered
UNSEEN = 0.45  # brightness outside the detector's view

Edges = tuple[float, float, float, float]  # top, left, bottom, right, in pixels


def view_box(geometry: Geometry, height: int, width: int, box: Box | None = None) -> Edges:
    """Position of the detector's square view in a picture of ``height`` x ``width`` px; the inverse of Geometry.

    ``box`` is the face that the view shows, None for a view of the whole picture.
    """
    if geometry.needs_face or box:
        top, left, side = geometry.square((height, width), box)
        inner = (0, 0, side, side) if geometry.needs_face else view_box(geometry, side, side)
        return top + inner[0], left + inner[1], top + inner[2], left + inner[3]
    if geometry.mode == "resize":
        return 0.0, 0.0, float(height), float(width)
    shorter = min(height, width)
    target = max(geometry.resize_to or shorter, geometry.size)
    offsets, sides = (0, 0), (height, width)
    if target > shorter:  # a strip is cut to its middle before it is enlarged
        longest = MAX_ASPECT * shorter
        offsets = (max(0, (height - longest) // 2), max(0, (width - longest) // 2))
        sides = (min(height, longest), min(width, longest))
    scaled = sides if target == shorter else [max(target, round(side * target / shorter)) for side in sides]
    edges = []
    for offset, side, large in zip(offsets, sides, scaled, strict=True):
        start = (large - geometry.size) // 2 // JPEG_GRID * JPEG_GRID
        edges.append((offset + start * side / large, offset + (start + geometry.size) * side / large))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def place_map(heat: np.ndarray, edges: Edges, height: int, width: int, nearest: bool = False) -> np.ndarray:
    """Resample a map ``(h, w)`` of the view to ``(height, width)`` float32 of the picture, 0 outside the view."""
    top, left, bottom, right = edges
    scale_y, scale_x = heat.shape[0] / (bottom - top), heat.shape[1] / (right - left)
    # Pixel centres lie at halves; warpAffine counts from the centre of the first pixel.
    matrix = np.array(
        [[scale_x, 0, (0.5 - left) * scale_x - 0.5], [0, scale_y, (0.5 - top) * scale_y - 0.5]], np.float64
    )
    flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    placed = cv2.warpAffine(
        np.ascontiguousarray(heat, np.float32), matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.where(seen_mask(edges, height, width), placed, np.float32(0))


def seen_mask(edges: Edges, height: int, width: int) -> np.ndarray:
    """Mask of the pixels inside the edges of a view, ``(height, width)`` bool."""
    top, left, bottom, right = edges
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    return ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))[None]


def normalise(heat: np.ndarray) -> np.ndarray:
    """Divide a map by its maximum to fill [0, 1]; an all-zero map stays zero."""
    highest = float(heat.max(initial=0))
    return (heat / highest if highest > 0 else np.zeros_like(heat)).astype(np.float32)


def colours(heat: np.ndarray) -> np.ndarray:
    """Viridis colours of a map in [0, 1] as uint8 RGB ``(H, W, 3)``."""
    levels = (np.clip(heat, 0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def overlay(image: np.ndarray, heat: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """Draw a map over a picture at the resolution of the picture.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        heat: ``(H, W)``, not below 0; it is normalised, and stronger places are covered more.
        seen: ``(H, W)`` bool; the rest is darkened.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    strength = normalise(heat)
    opacity = (OPACITY * np.sqrt(strength))[..., None]
    mixed = (1 - opacity) * image + opacity * colours(strength)
    if seen is not None:
        mixed = np.where(seen[..., None], mixed, UNSEEN * mixed)
    return mixed.round().astype(np.uint8)
