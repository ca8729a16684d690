"""Uploads that the tests of serve.py share."""

from __future__ import annotations

import io

import cv2
import numpy as np


def upload(client, url: str, files: list[tuple[bytes, str]], field: str | None = None, **fields: str):
    field = field or ("images" if url.endswith("predict") else "image")
    data = {field: [(io.BytesIO(content), name) for content, name in files], **fields}
    return client.post(url, data=data, content_type="multipart/form-data")


def jpeg(side: int = 64) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()
