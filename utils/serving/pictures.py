"""Pictures in the answers of the server: the judged square of a face, the overlay of a map, base64 text."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

from datasets.faces.finder import Face
from datasets.faces.framing import Box
from datasets.transforms import Geometry
from utils.explanations.overlay import overlay, view_box
from utils.serving.preparation import Part


def face_dict(face: Face | None, size: tuple[int, int], geometry: Geometry) -> dict[str, Any] | None:
    """The square of a face that is judged in a picture of this height and width, in px."""
    return {**square_dict(face.box, size, geometry), "confidence": face.confidence} if face else None


def square_dict(box: Box, size: tuple[int, int], geometry: Geometry) -> dict[str, int]:
    """The square around a box that is judged, in px."""
    top, left, side = geometry.square(size, box)
    return {"left": left, "top": top, "side": side}


def draw_map(
    picture: np.ndarray, part: Part, size: tuple[int, int], face: Face | None, geometry: Geometry, heat: np.ndarray
) -> np.ndarray:
    """Draw the map of a face, or of the whole picture, over a part of the picture, which may be reduced."""
    edges = np.reshape(view_box(geometry, *size, face.box if face else None), (2, 2))  # top, left; bottom, right
    edges -= (part.top, part.left)
    height, width = picture.shape[:2]
    factor = max(height, width) / max(part.width, part.height)
    top, left = np.minimum((edges[0] * factor).astype(int), (height - 1, width - 1))
    bottom, right = np.clip((edges[1] * factor).round().astype(int), (top + 1, left + 1), (height, width))
    placed, seen = np.zeros((height, width), np.float32), np.zeros((height, width), bool)
    placed[top:bottom, left:right] = cv2.resize(heat, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    seen[top:bottom, left:right] = True
    return overlay(picture, placed, seen)


def encoded(image: np.ndarray, suffix: str) -> dict[str, Any]:
    """An RGB or grey image as base64 text."""
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    return in_json(cv2.imencode(suffix, colours)[1].tobytes(), image.shape, suffix)


def in_json(data: bytes, shape: tuple[int, ...], suffix: str = ".jpg") -> dict[str, Any]:
    """The bytes of an image file ``(H, W)`` as base64 text."""
    return {
        "media_type": "image/png" if suffix == ".png" else "image/jpeg",
        "width": shape[1],
        "height": shape[0],
        "base64": base64.b64encode(data).decode(),
    }
