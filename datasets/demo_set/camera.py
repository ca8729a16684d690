"""A simulated camera: from scene radiance to an 8-bit photograph, and the JPEG encoder of all demo images.

The sensor follows the Poisson-Gaussian model of A. Foi, M. Trimeche, V. Katkovnik and K. Egiazarian, "Practical
Poissonian-Gaussian Noise Modeling and Fitting for Single-Image Raw-Data", IEEE Transactions on Image Processing,
2008; the order of steps follows T. Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019
(arXiv 1811.11127). The shot noise is Gaussian with matched variance, and there is no lens distortion, vignetting
or camera-specific fixed pattern.
"""

from __future__ import annotations

import cv2
import numpy as np

WHITE = 16383
DEMOSAIC = {
    False: (cv2.COLOR_BayerRGGB2RGB, cv2.COLOR_BayerGRBG2RGB, cv2.COLOR_BayerGBRG2RGB, cv2.COLOR_BayerBGGR2RGB),
    True: (
        cv2.COLOR_BayerRGGB2RGB_EA,
        cv2.COLOR_BayerGRBG2RGB_EA,
        cv2.COLOR_BayerGBRG2RGB_EA,
        cv2.COLOR_BayerBGGR2RGB_EA,
    ),
}
TONE = (np.clip((np.arange(WHITE + 1) / WHITE), 0, 1) ** (1 / 2.2) * 255).astype(np.float32)


def capture(radiance: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Photograph a scene.

    ``radiance`` is float32 (R, R, 3), linear-light RGB, R >= size. Returns uint8 (size, size, 3) RGB, after lens
    blur, signal-dependent noise, a Bayer colour filter, demosaicing, white balance, tone curve and sharpening.
    """
    exposed: np.ndarray = radiance * np.float32(rng.uniform(0.8, 1.15))
    exposed = cv2.GaussianBlur(exposed, (0, 0), rng.uniform(0.45, 0.9))
    exposed = cv2.resize(exposed, (size, size), interpolation=cv2.INTER_AREA)
    gains = np.array([rng.uniform(1.5, 2.1), 1.0, rng.uniform(1.3, 1.9)], np.float32)
    light = [np.clip(plane, 0, 1) / gain for plane, gain in zip(cv2.split(exposed), gains, strict=True)]
    phase, raw = int(rng.integers(4)), np.empty((size, size), np.float32)
    red_row, red_column = divmod(phase, 2)
    raw[:] = light[1]
    raw[red_row::2, red_column::2] = light[0][red_row::2, red_column::2]
    raw[1 - red_row :: 2, 1 - red_column :: 2] = light[2][1 - red_row :: 2, 1 - red_column :: 2]
    shot, read = np.exp(rng.uniform(np.log(1e-4), np.log(7e-4))), rng.uniform(0.001, 0.004)
    noise = rng.standard_normal((size, size), dtype=np.float32)
    raw += noise * np.sqrt(np.float32(shot) * raw + np.float32(read * read))
    counts = np.clip(raw * WHITE, 0, WHITE).astype(np.uint16)
    colour = cv2.cvtColor(counts, DEMOSAIC[bool(rng.random() < 0.6)][phase])
    photo = cv2.merge(
        [
            TONE[np.minimum(plane * gain, WHITE).astype(np.int32)]
            for plane, gain in zip(cv2.split(colour), gains, strict=True)
        ]
    )
    soft = cv2.GaussianBlur(photo, (0, 0), 1.0)
    return to_uint8(photo + np.float32(rng.uniform(0.15, 0.6)) * (photo - soft))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round and clip float levels in [0, 255] to uint8."""
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encode uint8 RGB (H, W, 3) as baseline JPEG with 4:2:0 chroma, always with the same encoder settings."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1].tobytes()


def decode_jpeg(data: bytes) -> np.ndarray:
    """Decode JPEG bytes to uint8 RGB (H, W, 3).

    Raises:
        ValueError: the bytes are not an image.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"expected the bytes of a JPEG image, got {len(data)} bytes that do not decode")
    return np.ascontiguousarray(image[..., ::-1])
