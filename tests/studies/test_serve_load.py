"""studies/speed/serve_load.py: what is sent and counted, against a server that answers everything at once."""

from __future__ import annotations

import http.server
import threading
from types import SimpleNamespace
from typing import ClassVar

import pytest

from studies.speed import serve_load
from studies.speed.server_clients import upload_of
from studies.speed.upload_files import clip


class Answerer(http.server.BaseHTTPRequestHandler):
    """Answers every fifth picture with 503."""

    protocol_version = "HTTP/1.1"
    received: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(self.path)
        pictures = self.received.count("/api/predict")
        self.send_response(503 if self.path == "/api/predict" and pictures % 5 == 0 else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Answerer, "received", [])
    monkeypatch.setattr(serve_load, "SAMPLE", 0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answerer) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        memory = iter(range(100, 1_000_000))
        alive = SimpleNamespace(poll=lambda: None)
        yield SimpleNamespace(port=listener.server_port, memory_mb=lambda: float(next(memory)), process=alive)
        listener.shutdown()


def test_errors_videos_and_memory_are_counted(server):
    found = serve_load.steady_load(server, [upload_of(b"picture")], b"video", 200, 60)
    assert found["requests"] == sum(found["statuses"].values()) == 200
    assert found["errors"] == found["statuses"]["503"] > 0 == found["broken"]
    assert found["videos"] == found["statuses_of_videos"]["200"] == Answerer.received.count("/api/video") - 1
    times, memory = zip(*found["memory_mb"], strict=True)
    assert times[0] == 0 and list(times) == sorted(times) and list(memory) == sorted(memory)
    rows = serve_load.summarize([1.0], [found], {"uploads": 1, "statuses": {}, "memory_mb": [1, 3]}, {"after": {}})
    values = {row["what"]: row["value"] for row in rows}
    assert values["errors under load"] == found["errors"]
    assert values["growth of memory under load"] == memory[-1] - memory[0]
    assert values["memory under load, the highest"] == memory[-1]


def test_hostile_files_go_to_pictures_videos_and_frames(server):
    found = serve_load.hostile_load(server, [b"\xff\xd8\xff" * 50], clip(), 100)
    assert found["uploads"] == sum(found["statuses"].values()) == 100 and found["alive"]
    assert {"/api/predict", "/api/video", "/api/frame"} == set(Answerer.received)
