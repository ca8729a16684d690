"""Property-based tests of the API with valid and invalid requests generated from its OpenAPI document."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import serve
from tests.clips import CODECS, walk, write_clip
from utils.serving.settings import Limits

EXAMPLES = 60  # of each operation


def encoded(pixels: np.ndarray, kind: str, scans: int) -> bytes:
    """An image file; of a progressive JPEG the last scan is repeated ``scans`` times."""
    if kind != "progressive":
        return cv2.imencode(kind, pixels)[1].tobytes()
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()[:-2]
    return data + data[data.rindex(b"\xff\xda") :] * scans + b"\xff\xd9"


@st.composite
def image_bytes(draw) -> bytes:
    """Small images of several formats, some of them damaged or expensive to decode for their size."""
    height, width = draw(st.integers(1, 48)), draw(st.integers(1, 48))
    kind = draw(st.sampled_from([".jpg", ".png", ".webp", ".bmp", ".gif", ".avif", "progressive"]))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 255, (height, width, 3), np.uint8)
    return damaged(draw, encoded(pixels, kind, draw(st.integers(0, 2000))))


@functools.cache
def clip(suffix: str, n_frames: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_clip(Path(folder) / f"clip{suffix}", walk(n_frames / 4, 0)).read_bytes()


@st.composite
def video_bytes(draw) -> bytes:
    """Short clips in several containers, some of them damaged."""
    return damaged(draw, clip(draw(st.sampled_from(sorted(CODECS))), draw(st.integers(1, 3))))


def damaged(draw, file: bytes) -> bytes:
    """Overwrite up to three bytes of a file, and maybe cut it."""
    data = bytearray(file)
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(1, len(data)))] if draw(st.booleans()) else data)


schemathesis.openapi.format("binary", st.one_of(image_bytes(), video_bytes(), st.binary(max_size=64)))
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
NAMES = ("predict", "explain", "stress", "video", "frame", "preview", "cases")
OPERATIONS = [("POST", f"/api/{name}") for name in NAMES]
OPERATIONS += [("GET", path) for path in ("/api/models", "/api/health", "/metrics")]


@pytest.fixture(scope="module")
def api(_tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory):
    limits, cases = Limits(max_seconds=300, max_mb=1, max_files=3), tmp_path_factory.mktemp("cases")
    app = serve.create_app([_tiny_checkpoint_file], limits, threads=1, every_face=True, cases=cases)
    yield schemathesis.openapi.from_wsgi("/api/openapi.json", app)
    app.extensions["service"].close()


def test_every_operation_is_fuzzed(api):
    document = "/api/openapi.json"  # schemathesis skips the address of the document itself
    found = {(operation.ok().method.upper(), operation.ok().path) for operation in api.get_all_operations()}
    assert found | {("GET", document)} == set(OPERATIONS) | {("GET", document)}


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("method, path", OPERATIONS)
def test_every_answer_is_as_documented(api, method, path, mode):
    """Expect no 5xx, a documented status and a body that matches its schema, for valid and invalid requests."""
    operation = api[path][method]
    if mode == schemathesis.GenerationMode.NEGATIVE and method == "GET":
        pytest.skip("there is nothing to send")

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        case.call_and_validate(checks=[getattr(schemathesis.checks, name) for name in CHECKS])

    check()
