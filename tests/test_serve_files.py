"""serve.py: videos, previews of pictures that a browser cannot show, and cases that a user keeps."""

from __future__ import annotations

import base64
import errno
import http.client
import io
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("flask")
pytest.importorskip("waitress")

import predict
import serve
from datasets.listing.spec import open_records
from tests.clips import walk, write_clip
from tests.conftest import exit_and_stderr
from tests.datasets.heif_files import encode_heic
from tests.sockets import listening
from tests.uploads import jpeg
from utils.cases import LIST_NAME
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.serving import wsgi
from utils.serving.settings import Limits

LIMITS = Limits(max_seconds=300, max_mb=0.5, max_video_mb=2, max_video_frames=12)


@pytest.fixture(scope="module")
def checkpoint(_tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that frames faces."""
    content = load_checkpoint(_tiny_checkpoint_file)
    file = tmp_path_factory.mktemp("detector") / "faces.pt"
    save_checkpoint(file, {**content, "geometry": {"mode": "face", "size": 32, "resize_to": None, "margin": 1.4}})
    return file


@pytest.fixture(scope="module")
def app(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cases")
    app = serve.create_app([checkpoint], LIMITS, threads=1, page=folder, cases=folder)
    yield app
    app.extensions["service"].close()


def send(app, what: str, data: bytes, **fields: str) -> Any:
    field = "video" if what in ("video", "frame") else "image"
    return app.test_client().post(f"/api/{what}", data={field: (io.BytesIO(data), "../a"), **fields})


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_the_faces_of_a_video_are_those_of_predict(app, checkpoint, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", walk(6, 0, 2))
    flags = ["--checkpoint", str(checkpoint), "--format", "json", "--max-frames", "12", "--threads", "1"]
    predict.main([str(clip), *flags, "--output", str(tmp_path / "rows.json")])
    wanted = json.loads((tmp_path / "rows.json").read_text())
    answer = send(app, "video", clip.read_bytes()).get_json()
    assert len(wanted) == len(answer["tracks"]) >= 2 and answer["frames"] == 12 and answer["seconds"] == 5.5
    for row, track in zip(wanted, answer["tracks"], strict=True):
        assert {key: track[key] for key in ("track", "start_s", "end_s", "frames", "framed", "verdict")} == {
            key: row[key] for key in ("track", "start_s", "end_s", "frames", "framed", "verdict")
        }
        assert track["logit"] == pytest.approx(row["logit"], abs=1e-5)
        assert [time for time, _ in track["points"]][:: track["frames"] - 1] == [track["start_s"], track["end_s"]]
        assert len(track["points"]) == track["frames"] and max(p for _, p in track["points"]) >= track["p_fake"]
        assert decoded(base64.b64decode(track["picture"]["base64"])).shape == (32, 32, 3)
    assert {key: answer[key] for key in ("verdict", "p_fake", "logit")} == {
        key: answer["tracks"][0][key] for key in ("verdict", "p_fake", "logit")
    }
    assert answer["finder"] == wanted[0]["finder"] and answer["name"] == "a"


def test_the_most_suspicious_frame_of_a_face_is_judged_alike_as_a_picture(app, tmp_path):
    data = write_clip(tmp_path / "clip.mp4", walk(6, 0, 2)).read_bytes()
    for track in send(app, "video", data).get_json()["tracks"]:
        time, p_fake = max(track["points"], key=lambda point: point[1])
        frame = send(app, "frame", data, time=str(time))
        assert frame.status_code == 200 and frame.mimetype == "image/png"
        answer = app.test_client().post("/api/predict", data={"images": (io.BytesIO(frame.data), "frame.png")})
        (image,) = answer.get_json()["images"]
        (face,) = [face for face in image["faces"] if track["face"].items() <= face.items()]
        assert face["p_fake"] == pytest.approx(p_fake, abs=1e-5)


@pytest.mark.parametrize("time, status", [("", 400), ("-1", 400), ("nan", 400), ("1e3", 400), ("999999", 422)])
def test_there_is_a_frame_only_at_a_time_of_the_video(app, tmp_path, time, status):
    data = write_clip(tmp_path / "clip.mp4", walk(1, 0)).read_bytes()
    assert send(app, "frame", data, time=time).status_code == status
    assert send(app, "frame", jpeg(), time="0").status_code == 415


def test_a_video_without_a_face_is_judged_by_its_whole_frames_when_asked(app, tmp_path):
    grey = write_clip(tmp_path / "grey.mp4", [np.full((64, 96, 3), 20 * level, np.uint8) for level in range(8)])
    nothing = send(app, "video", grey.read_bytes()).get_json()
    assert (nothing["verdict"], nothing["p_fake"], nothing["logit"]) == ("no face", None, None)
    assert nothing["tracks"] == [] and nothing["frames"] == 4 and nothing["finder"] == "cascade"
    whole = send(app, "video", grey.read_bytes(), whole="true").get_json()
    (track,) = whole["tracks"]
    assert track["framed"] == "whole" and track["face"] is None and track["frames"] == len(track["points"]) == 4
    assert whole["verdict"] == track["verdict"] != "no face"


@pytest.mark.parametrize(
    "change, status, words",
    [
        (lambda data: b"", 422, "empty"),
        (lambda data: data[: len(data) // 2], 422, "damaged or incomplete"),
        (lambda data: data[:36] + b"\0" * 500, 422, "no video that can be decoded"),
        (lambda data: b"MZ" + data, 415, "not a video"),
        (lambda data: jpeg(), 415, "not a video"),
        (lambda data: data + b"\0" * 2_000_000, 413, "The request is larger than 2 MB."),
    ],
)
def test_videos_that_are_none_are_refused(app, tmp_path, change, status, words):
    data = write_clip(tmp_path / "clip.mp4", walk(1, 0)).read_bytes()
    answer = send(app, "video", change(data))
    assert answer.status_code == status and words in answer.get_json()["error"]["message"]
    assert send(app, "video", data).status_code == 200


def test_a_video_that_takes_too_long_is_refused_and_harms_nobody(app, monkeypatch, tmp_path):
    data = write_clip(tmp_path / "clip.mp4", walk(1, 0)).read_bytes()
    worker = app.extensions["service"].video_worker
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_seconds", 0.1)
        patch.setattr(worker, "stream", lambda *_, stream=worker.stream: stream(map, time.sleep, [600]))
        refused = send(app, "video", data)
    assert refused.status_code == 422 and refused.get_json()["error"]["code"] == "too_complex"
    assert send(app, "video", data).status_code == 200


def test_only_videos_may_be_large_and_few_of_them_at_a_time(app):
    size = wsgi.SLACK + 1_500_000  # larger than pictures may be

    def begin(path: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", str(size))
        connection.endheaders(b"-")
        return connection

    with listening(app, LIMITS) as port:
        assert begin("/api/predict").getresponse().status == 413
        waiting = [begin("/api/video") for _ in range(wsgi.VIDEO_UPLOADS)]
        for _ in range(20):  # until the server has seen those that wait
            refused = begin("/api/video")
            refused.sock.settimeout(0.5)
            try:
                answer = refused.getresponse()
                assert (answer.status, answer.getheader("Retry-After")) == (503, "2")
                break
            except TimeoutError:
                waiting.append(refused)
        else:
            pytest.fail("expected 503")
        for connection in waiting:
            connection.close()


def test_a_preview_is_a_small_jpeg(app):
    wide = Image.linear_gradient("L").resize((2000, 500)).convert("RGB")
    data = io.BytesIO()
    wide.save(data, "WEBP")
    answer = send(app, "preview", data.getvalue())
    assert answer.mimetype == "image/jpeg" and decoded(answer.data).shape == (256, 1024, 3)
    assert send(app, "preview", b"\xff\xd8\xff").status_code == 422 and send(app, "preview", b"x").status_code == 415


def test_a_preview_shows_heic(app):
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    data = encode_heic(Image.linear_gradient("L").resize((64, 48)).convert("RGB"))
    assert decoded(send(app, "preview", data).data).shape == (48, 64, 3)


def test_cases_are_kept_once_and_evaluate_reads_them(app):
    folder = app.extensions["service"].cases
    assert app.test_client().get("/api/models").get_json()["cases"] is True
    name = send(app, "cases", jpeg(), label="fake").get_json()["saved"]
    assert (folder / name).read_bytes() == jpeg()
    assert send(app, "cases", jpeg(), label="fake").get_json() == {"saved": name}
    (record,) = open_records(f"csv:{folder / 'cases.csv'}").records
    assert (Path(record.path).name, record.label) == (name, 1)
    for data, fields, status in (
        (jpeg(), {"label": "maybe"}, 400),
        (jpeg(), {}, 400),
        (jpeg()[:300], {"label": "real"}, 422),
        (b"MZ", {"label": "real"}, 415),
    ):
        assert send(app, "cases", data, **fields).status_code == status
    assert sorted(file.name for file in folder.iterdir()) == sorted([name, "cases.csv"])


def damage(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / LIST_NAME).write_text("name,answer\n")


def remove(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.rmdir()


def fill(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)


@pytest.mark.parametrize("spoil, says", [(damage, "the columns"), (remove, "No such file"), (fill, "No space left")])
def test_a_folder_of_cases_that_fails_is_the_servers_problem(app, tmp_path, monkeypatch, caplog, spoil, says):
    folder = tmp_path / "cases"
    folder.mkdir()
    monkeypatch.setattr(app.extensions["service"], "cases", folder)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        spoil(folder, patch)
        answer = send(app, "cases", jpeg(), label="fake")
    assert answer.status_code == 507 and answer.get_json()["error"]["code"] == "not_kept"
    assert "case folder of this server" in answer.get_json()["error"]["message"]
    assert str(tmp_path) not in answer.get_data(as_text=True)
    (record,) = caplog.records  # one line, without a traceback
    assert says in record.getMessage() and not record.exc_info
    assert not list(folder.glob("*.jpg")) and not list(folder.glob("*.tmp"))


def test_a_server_without_a_folder_keeps_no_cases(checkpoint, tmp_path):
    app = serve.create_app([checkpoint], LIMITS, threads=1, page=tmp_path)
    answer = send(app, "cases", jpeg(), label="real")
    assert answer.status_code == 404 and "--cases DIR" in answer.get_json()["error"]["message"]
    app.extensions["service"].close()


def test_a_folder_of_cases_that_is_not_writable_is_reported_at_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    code, printed = exit_and_stderr(serve.main, ["--cases", str(tmp_path / "file")], monkeypatch, capsys)
    assert code == 2 and "--cases" in printed and len(printed.splitlines()) == 1
