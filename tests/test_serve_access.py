"""serve.py: who may ask for what. Tokens, host names, other sites, security headers, limits of a request."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import pytest

pytest.importorskip("flask")
pytest.importorskip("waitress")

import serve
from tests.conftest import exit_and_stderr
from tests.sockets import listening
from tests.uploads import jpeg, upload
from utils.errors import UserError
from utils.serving.settings import Limits
from utils.serving.wsgi import make_server

LIMITS = Limits(max_mb=2, max_pixels=1_000_000, max_files=4)
TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(scope="module")
def app(_tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory):
    page = tmp_path_factory.mktemp("no-build")
    app = serve.create_app([_tiny_checkpoint_file], LIMITS, threads=1, page=page)
    yield app
    app.extensions["service"].close()


@pytest.fixture
def client(app):
    return app.test_client()


def test_bytes_files_and_fields_are_limited(client):
    assert upload(client, "/api/predict", [(b"\xff" * 3_000_000, "a.jpg")]).status_code == 413
    assert upload(client, "/api/predict", [(jpeg(), "a.jpg")] * 5).status_code == 413
    assert upload(client, "/api/explain", [(jpeg(), "a.jpg")] * 2).status_code == 413
    assert "too many parts" in upload(client, "/api/predict", [(b"", "a.jpg")] * 40).get_json()["error"]["message"]
    assert upload(client, "/api/predict", []).status_code == 400
    assert upload(client, "/api/predict", [(jpeg(), "a.jpg")], model="other").status_code == 400
    assert upload(client, "/api/predict", [(jpeg(), "a.jpg")], faces="maybe").status_code == 400
    assert client.post("/api/predict", data=b"\xff\xd8\xff", content_type="image/jpeg").status_code == 400


@pytest.mark.parametrize(
    ("url", "field", "more", "got"),
    [
        ("/api/predict", "image", {}, "image"),
        ("/api/predict", "images", {"thresold": "0.3"}, "thresold"),
        ("/api/predict?model=best", "images", {}, "model"),
        ("/api/preview", "image", {"model": "best"}, "model"),
        ("/api/explain", "picture", {}, "picture"),
    ],
)
def test_fields_that_would_be_ignored_are_refused(client, url, field, more, got):
    answer = upload(client, url, [(jpeg(), "a.jpg")], field, **more)
    message = answer.get_json()["error"]["message"]
    assert answer.status_code == 400
    assert message.startswith("Expected the form fields image") and message.endswith(f", got {got!r}.")


def test_errors_are_json_and_say_nothing_of_the_inside(app, client, monkeypatch):
    def crash(*args):
        raise RuntimeError("secret/path")

    monkeypatch.setattr(app.extensions["service"], "predict", crash)
    answer = upload(client, "/api/predict", [(jpeg(), "a.jpg")])
    assert answer.status_code == 500 and "secret" not in answer.text
    assert client.get("/api/nothing").get_json()["error"]["code"] == "not_found"
    assert client.get("/api/predict").status_code == 405


def test_every_answer_has_the_security_headers(client):
    for url in ("/", "/api/health", "/api/nothing", "/plain-files/plain.css"):
        headers = client.get(url).headers
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin"  # no-referrer would hide the origin of the plain form
        assert "Access-Control-Allow-Origin" not in headers
    assert client.get("/api/health").headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("site, status", [("cross-site", 403), ("same-site", 403), ("same-origin", 400)])
def test_requests_of_other_sites_are_refused(client, site, status):
    for name in ("predict", "cases", "video"):
        assert client.post(f"/api/{name}", headers={"Sec-Fetch-Site": site}).status_code == status


@pytest.mark.parametrize(
    "origin, host, status",
    [
        ("http://evil.com", "localhost:5000", 403),
        ("http://localhost:5001", "localhost:5000", 403),
        ("null", "localhost:5000", 403),
        ("http://[", "localhost:5000", 403),
        ("http://localhost:5000", "localhost:5000", 400),
        ("http://[::1]:5000", "[::1]:5000", 400),
        ("https://faces.example.org", "faces.example.org", 400),  # behind a proxy with TLS
    ],
)
def test_requests_of_other_origins_are_refused(client, origin, host, status):
    for path in ("/api/predict", "/api/cases", "/plain"):
        assert client.post(path, headers={"Origin": origin, "Host": host}).status_code == status
    same = {"Origin": origin, "Host": "127.0.0.1:5000", "Sec-Fetch-Site": "same-origin"}  # a proxy changed the host
    assert client.post("/api/predict", headers=same).status_code == 400


def test_token_guards_all_but_health_and_page(tiny_checkpoint, tmp_path):
    app = serve.create_app([tiny_checkpoint], LIMITS, token=TOKEN, page=tmp_path)
    client = app.test_client()
    assert client.get("/api/health").status_code == client.get("/").status_code == 200
    for url in ("/api/models", "/metrics"):
        assert client.get(url).status_code == 401
        assert client.get(url, headers={"Authorization": "Bearer ü"}).status_code == 401
        assert client.get(url, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert upload(client, "/plain", [(jpeg(), "a.jpg")], field="images").status_code == 401
    assert upload(client, "/plain", [(jpeg(), "a.jpg")], field="images", token=TOKEN).status_code == 200
    app.extensions["service"].close()


def test_only_known_host_names_are_served(tiny_checkpoint, tmp_path):
    app = serve.create_app([tiny_checkpoint], host_names=serve.host_names("127.0.0.1", []), page=tmp_path)
    client = app.test_client()
    assert client.get("/api/health", base_url="http://localhost:5000").status_code == 200
    refused = client.get("/api/health", base_url="http://evil.example")
    assert refused.status_code == 400 and "start it with --public-name" in refused.get_json()["error"]["message"]
    assert serve.host_names("0.0.0.0", []) is None
    assert serve.host_names("127.0.0.1", ["faces.example.org"])[-1] == "faces.example.org"
    app.extensions["service"].close()


@pytest.mark.parametrize("text", ["nonsense", "*", "localhost", "10.0.0.0/8", ""])
def test_a_proxy_that_is_no_ip_address_is_refused_at_once(monkeypatch, capsys, text):
    code, printed = exit_and_stderr(serve.main, ["--trusted-proxy", text, "--token-file", "/none"], monkeypatch, capsys)
    assert code == 2 and len(printed.splitlines()) == 1
    assert f"--trusted-proxy: expected an IP address, got {text!r}; pass" in printed
    assert serve.ip_address("::0001") == "::1"


@pytest.mark.parametrize("text", ["", "short\n"])
def test_tokens_that_can_be_guessed_are_refused(tmp_path, text):
    (tmp_path / "token").write_text(text)
    with pytest.raises(UserError, match="at least 16 characters"):
        serve.read_token(str(tmp_path / "token"))


def test_server_answers_over_a_socket_and_limits_headers(app):
    with listening(app, LIMITS) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/api/health")
        assert json.loads(connection.getresponse().read())["status"] == "ok"
        connection.request("GET", "/api/health", headers={"X-Large": "x" * 20_000})
        refused = connection.getresponse()
        assert refused.status == 431 and json.loads(refused.read())["error"]["code"] == "error"
        with pytest.raises(UserError, match="expected a free address"):
            make_server(app, "127.0.0.1", port, LIMITS)


@pytest.mark.parametrize("size", [2_500_000, 3_500_000, 500_000_000])  # refused by the app, then by waitress
def test_a_request_with_too_many_bytes_is_refused_in_json(app, size):
    with listening(app, LIMITS) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("POST", "/api/predict")
        connection.putheader("Content-Length", str(size))
        connection.endheaders(b"-" * (size if size < 3_000_000 else 1))
        answer = connection.getresponse()
    assert answer.status == 413 and answer.getheader("Content-Type") == "application/json"
    error = json.loads(answer.read())["error"]
    assert error == {"code": "too_many_bytes", "message": "The request is larger than 2 MB."}
