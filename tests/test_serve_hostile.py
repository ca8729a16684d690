"""serve.py and hostile files: none is an error of the server, and each gets a verdict or a reason."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("flask")
pytest.importorskip("waitress")

import serve
from studies.speed.upload_files import HEADERS, clip, hostile_pictures, hostile_videos, mutations
from tests.uploads import jpeg
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


def send(client, what: str, data: bytes, **fields: str):
    field = {"predict": "images", "video": "video", "frame": "video"}.get(what, "image")
    return client.post(f"/api/{what}", data={field: (io.BytesIO(data), "photo.jpg"), **fields})


@pytest.mark.parametrize("name", PICTURES)
def test_hostile_pictures(client, name):
    for what in ("predict", "explain", "stress", "preview"):
        answer = send(client, what, PICTURES[name], whole="true")
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
