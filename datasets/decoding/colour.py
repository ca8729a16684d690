"""Colour profiles: images are converted to sRGB, the space of nearly all training sets.

A phone stores Display P3, a camera Adobe RGB. Read as sRGB, such an image looks too pale. A profile that is
broken, too large, or made for another kind of pixels is ignored, as in browsers.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 << 20  # those of printers are the largest, about 2 MiB
# Grey levels by which a profile may differ from sRGB and still leave the pixels as they are: those named sRGB differ
# by rounding and by their tone curve.
SRGB_TOLERANCE = 3
STRIP = 64  # rows that are converted at once
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of the colour spaces in a profile


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of mode L, RGB, RGBA or CMYK to sRGB (RGB or RGBA); unchanged without a usable profile."""
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return image
    mode = _mode_of(profile)
    if mode == "RGB" and image.mode in ("L", "RGB", "RGBA"):
        colours = image.convert("RGB")
    elif mode == image.mode:
        colours = image
    else:
        return image
    transform = _transform(profile, colours.mode)
    if transform is None:
        return image
    converted = transform.apply(colours)
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


def array_to_srgb(image: np.ndarray, profile: bytes | None, is_grey: bool) -> np.ndarray:
    """Convert an RGB array ``(H, W, 3)`` uint8 to sRGB in place; ``is_grey``: the file holds one channel."""
    for start in range(0, len(image) if profile else 0, STRIP):  # less memory than all at once, and faster
        strip = image[start : start + STRIP]
        stored = Image.fromarray(strip[..., 0] if is_grey else strip)
        converted = to_srgb(stored, profile)
        if converted is stored:
            break
        strip[:] = np.asarray(converted)
    return image


@functools.lru_cache(maxsize=8)
def _mode_of(profile: bytes) -> str | None:
    """Mode of the images that a profile describes; None for a broken profile."""
    try:
        return _MODES.get(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space)
    except Exception:  # a damaged profile
        return None


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Conversion from a profile to sRGB; None where it does nothing or the profile is broken."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return transform
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
        probe = Image.fromarray(colours).convert(mode)
        change = np.abs(np.asarray(transform.apply(probe), int) - np.asarray(probe.convert("RGB"), int)).max()
    except Exception:  # littlecms refuses a damaged profile in many ways
        return None
    return transform if change > SRGB_TOLERANCE else None
