"""A map over its picture: from the detector's view back to the original, as colours that anybody can tell apart."""

from __future__ import annotations

import cv2
import numpy as np

from datasets.transforms import JPEG_GRID, MAX_ASPECT, Geometry

OPACITY = 0.75  # of the strongest place; a place without evidence shows the picture as it is
UNSEEN = 0.45  # brightness of what the detector does not see

Box = tuple[float, float, float, float]  # top, left, bottom, right, in pixels


def view_box(geometry: Geometry, height: int, width: int) -> Box:
    """Where the detector's square view lies in a picture of ``height`` x ``width`` px; the inverse of Geometry."""
    if geometry.mode == "resize":
        return 0.0, 0.0, float(height), float(width)
    shorter = min(height, width)
    target = max(geometry.resize_to or shorter, geometry.size)
    offsets, sides = (0, 0), (height, width)
    if target > shorter:  # enlarged, and so cut to its middle first if it is a strip
        longest = MAX_ASPECT * shorter
        offsets = (max(0, (height - longest) // 2), max(0, (width - longest) // 2))
        sides = (min(height, longest), min(width, longest))
    scaled = sides if target == shorter else [max(target, round(side * target / shorter)) for side in sides]
    edges = []
    for offset, side, large in zip(offsets, sides, scaled, strict=True):
        start = (large - geometry.size) // 2 // JPEG_GRID * JPEG_GRID
        edges.append((offset + start * side / large, offset + (start + geometry.size) * side / large))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def place_map(heat: np.ndarray, geometry: Geometry, height: int, width: int, nearest: bool = False) -> np.ndarray:
    """Resample a map ``(h, w)`` of the view to ``(height, width)`` float32 of the picture, 0 where nothing was seen."""
    top, left, bottom, right = view_box(geometry, height, width)
    scale_y, scale_x = heat.shape[0] / (bottom - top), heat.shape[1] / (right - left)
    # Pixel centres lie at halves, and warpAffine counts from the centre of the first pixel.
    matrix = np.array(
        [[scale_x, 0, (0.5 - left) * scale_x - 0.5], [0, scale_y, (0.5 - top) * scale_y - 0.5]], np.float64
    )
    flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    placed = cv2.warpAffine(
        np.ascontiguousarray(heat, np.float32), matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.where(seen_mask(geometry, height, width), placed, np.float32(0))


def seen_mask(geometry: Geometry, height: int, width: int) -> np.ndarray:
    """Which pixels of a picture the detector sees, ``(height, width)`` bool."""
    top, left, bottom, right = view_box(geometry, height, width)
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    return ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))[None]


def normalise(heat: np.ndarray) -> np.ndarray:
    """Divide a map by its maximum, so that it fills [0, 1]; one without any evidence stays zero everywhere."""
    highest = float(heat.max(initial=0))
    return (heat / highest if highest > 0 else np.zeros_like(heat)).astype(np.float32)


def colours(heat: np.ndarray) -> np.ndarray:
    """Colours of a map in [0, 1] as uint8 RGB ``(H, W, 3)``: viridis, which rises in lightness, also in grey."""
    levels = (np.clip(heat, 0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def overlay(image: np.ndarray, heat: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """Lay a map over its picture, at the picture's own resolution.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        heat: ``(H, W)``, not below 0; it is normalised, and the stronger a place the more colour covers it.
        seen: ``(H, W)`` bool; what the detector does not see is darkened.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    strength = normalise(heat)
    opacity = (OPACITY * np.sqrt(strength))[..., None]
    mixed = (1 - opacity) * image + opacity * colours(strength)
    if seen is not None:
        mixed = np.where(seen[..., None], mixed, UNSEEN * mixed)
    return mixed.round().astype(np.uint8)
