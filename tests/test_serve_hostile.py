"""serve.py and hostile files: none is an error of the server, and each gets a verdict or a reason."""

from __future__ import annotations

import base64
import io
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("flask")
pytest.importorskip("waitress")

import serve
from studies.speed.upload_files import HEADERS, clip, hostile_pictures, hostile_videos, mutations
from tests.uploads import jpeg, upload
from utils.serving.settings import Limits

PICTURES, VIDEOS = hostile_pictures(), hostile_videos()
REFUSED = {  # all others may have a verdict, because their pixels are good
    *(name for name in PICTURES if name.startswith("HEIC")),
    "GIF of 60,000 px",
    *("cut", "cut AVI", "without a video stream", "AVI of 16,000 px", "with a box that is too small"),
}


@pytest.fixture(scope="module")
def client(_tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cases")
    limits = Limits(max_seconds=300, max_mb=8, max_video_frames=4)
    app = serve.create_app([_tiny_checkpoint_file], limits, threads=1, every_face=True, page=folder, cases=folder)
    yield app.test_client()
    app.extensions["service"].close()


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its data does not hold."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def gif(side: int) -> bytes:
    """A GIF of one large frame in a few bytes."""
    frame = struct.pack("<HHHH", 0, 0, side, side)
    return b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + b"\0" * 6 + b"," + frame + b"\0\x02\x02D\x01\0;"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", b"\0" * 1000)
    return buffer.getvalue()


def send(client, what: str, data: bytes, **fields: str):
    field = {"predict": "images", "video": "video", "frame": "video"}.get(what, "image")
    return client.post(f"/api/{what}", data={field: (io.BytesIO(data), "photo.jpg"), **fields})


@pytest.mark.parametrize("name", PICTURES)
def test_hostile_pictures(client, name):
    for what in ("predict", "explain", "stress", "preview"):
        answer = send(client, what, PICTURES[name], **({} if what == "preview" else {"whole": "true"}))
        assert answer.status_code in ((413, 422) if name in REFUSED else (200,)), what
    if name in REFUSED:  # and nothing of it is kept
        assert send(client, "cases", PICTURES[name], label="fake").status_code in (413, 422)


@pytest.mark.parametrize("name", VIDEOS)
def test_hostile_videos(client, name):
    answer = send(client, "video", VIDEOS[name])
    assert answer.status_code in ((413, 422) if name in REFUSED else (200, 422))
    assert send(client, "frame", VIDEOS[name], time="0").status_code == answer.status_code
    assert send(client, "predict", VIDEOS[name]).status_code == 415


@pytest.mark.parametrize(
    "width, height, words",
    [
        (1, 1, "The image is too small for a verdict: 1 x 1 px, each side needs 16."),
        (2, 2000, "The image is too small for a verdict: 2 x 2000 px, each side needs 16."),
        (16, 400, "The image is too narrow for a verdict: 16 x 400 px, more than 20 : 1."),
    ],
)
def test_a_picture_without_a_verdict_is_not_called_damaged(client, width, height, words):
    data = cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes()
    for what in ("predict", "explain", "stress"):
        answer = send(client, what, data)
        assert answer.status_code == 422
        assert answer.get_json()["error"] == {"code": "bad_shape", "message": words}


def test_a_video_without_a_frame_at_the_time_is_not_called_damaged(client):
    answer = send(client, "frame", clip(2), time="99")
    assert answer.status_code == 422
    assert answer.get_json()["error"] == {"code": "no_frame", "message": "The video has no frame at 99 s or later."}


def test_mutations(client):
    for data in (*mutations([jpeg(), *PICTURES.values()], 60), *HEADERS):
        assert send(client, "predict", data, whole="true").status_code in (200, 413, 415, 422)
    for data in (*mutations([clip(2), clip(2, ".avi")], 40), *HEADERS):
        assert send(client, "video", data).status_code in (200, 413, 415, 422)
    assert send(client, "predict", jpeg()).status_code == 200


@pytest.mark.parametrize(
    "content, status",
    [
        (b"", 422),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415),
        (b"<!doctype html><script>alert(1)</script>", 415),
        (zipped(), 415),
        (b"%PDF-1.7", 415),
        (b"%!PS-Adobe-3.0 EPSF-3.0", 415),
        (png(60_000, 60_000), 413),
        (png(60, 60), 422),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, 422),
        (gif(65_000), 413),
        (b"RIFF\xff\xff\xff\xffWEBPVP8 ", 422),
        (b"BM" + b"\xff" * 60, 422),
        (jpeg()[:400], 422),
    ],
)
def test_hostile_files_are_refused(client, content, status):
    answer = upload(client, "/api/predict", [(content, "photo.jpg")])
    assert answer.status_code == status
    assert set(answer.get_json()["error"]) == {"code", "message"}


@pytest.mark.parametrize("tail", [zipped(), b"<script>alert(1)</script>"])
def test_polyglots_are_judged_by_their_pixels_and_never_given_back(client, tail):
    answer = upload(client, "/api/explain", [(jpeg() + tail, "a.html")], whole="true")
    assert answer.status_code == 200 and answer.mimetype == "application/json"
    assert tail not in base64.b64decode(answer.get_json()["overlay"]["base64"])


def test_nothing_is_written_to_disk(client, monkeypatch):
    import tempfile

    from werkzeug.datastructures import FileStorage
    from werkzeug.test import encode_multipart

    large = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8))[1].tobytes()
    assert len(large) > 1_000_000  # Werkzeug's own limit for memory is half of that
    boundary, body = encode_multipart({"images": FileStorage(io.BytesIO(large), "a.png")})

    def refuse(*args, **kwargs):
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr("werkzeug.formparser.SpooledTemporaryFile", refuse)
    answer = client.post("/api/predict", data=body, content_type=f"multipart/form-data; boundary={boundary}")
    assert answer.status_code == 200
