"""python -m datasets.download against a server of our own: resuming, damage, refusals, hostile archives."""

import base64
import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import download as script
from datasets import transfer
from datasets.transfer import unzip
from utils.errors import UserError

PATH = "/datasets/download/someone/faces"
COUNTS = {"train": 2, "valid": 1, "test": 1}


def make_archive(leave_out: str = "") -> bytes:
    """A ZIP file laid out as the 140k set is."""
    image = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))[1].tobytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, count in COUNTS.items():
            for name in ("real", "fake"):
                for number in range(count):
                    path = f"real_vs_fake/real-vs-fake/{split}/{name}/{number}.png"
                    if path != leave_out:
                        archive.writestr(path, image)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.content`` in the manner of ``server``'s settings and keeps a list of what was asked."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if server.status != 200:
            return self.send_error(server.status)
        if self.path == PATH and server.redirect:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{server.server_port}/signed")
            return self.end_headers()
        start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].rstrip("-")) if server.ranges else 0
        whole = server.content
        if start >= len(whole):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(whole)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(whole) - start))
        self.send_header("ETag", hashlib.md5(whole).hexdigest())
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        if server.md5:
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={server.md5}")
        self.end_headers()
        end = start + server.breaks.pop(0) if server.breaks else len(whole)
        self.wfile.write(whole[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Handler)
    settings = {
        "content": make_archive(),
        "status": 200,
        "redirect": True,
        "ranges": True,
        "md5": "",
        "breaks": [],
        "requests": [],
    }
    vars(server).update(settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setitem(script.DOWNLOADS, "140k", script.Download("someone/faces", COUNTS))
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "*")  # the server is this machine
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server: HTTPServer, folder: Path, *flags: str) -> dict:
    address = f"http://127.0.0.1:{server.server_port}"
    return script.main(["140k", "--server", address, "--output-dir", str(folder), *flags])


def fetch_yunet(server: HTTPServer, folder: Path) -> dict:
    return script.main(["yunet", "--server", f"http://127.0.0.1:{server.server_port}", "--output-dir", str(folder)])


def test_yunet_is_verified_and_fetched_once(server, tmp_path, monkeypatch, capsys):
    server.content = b"a network"
    monkeypatch.setattr(script, "YUNET_SHA256", hashlib.sha256(server.content).hexdigest())
    file = Path(fetch_yunet(server, tmp_path)["file"])
    assert file.read_bytes() == server.content and [*tmp_path.iterdir()] == [file]
    assert server.requests[0][0] == f"/{file.name}" and capsys.readouterr().out == f"{file}: YuNet, 9 bytes\n"
    fetch_yunet(server, tmp_path)
    assert len(server.requests) == 1
    file.write_bytes(b"damaged")
    fetch_yunet(server, tmp_path)
    assert file.read_bytes() == server.content


def test_another_file_than_yunet_is_refused(server, tmp_path):
    with pytest.raises(UserError, match=r"expected YuNet with sha256 8f2383e4.* got a file with"):
        fetch_yunet(server, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_yunet_goes_to_the_cache_where_all_scripts_find_it(server, tmp_path, monkeypatch):
    from datasets.faces.finder import FaceFinder, open_finder

    monkeypatch.setenv("DEEPFAKE_CACHE", str(tmp_path / "cache"))
    assert open_finder().name == "cascade"
    monkeypatch.setattr(script, "YUNET_SHA256", hashlib.sha256(server.content).hexdigest())
    script.main(["yunet", "--server", f"http://127.0.0.1:{server.server_port}"])
    monkeypatch.setattr(FaceFinder, "_search", lambda self: None)  # the file is not a network
    finder = open_finder()
    assert finder.name == "yunet" and Path(finder.file).parent == tmp_path / "cache"


def test_download_is_unpacked_and_counted(server, tmp_path, capsys):
    result = fetch(server, tmp_path / "140k")
    assert result["exit_code"] == 0 and result["counts"]["train"] == {"real": 2, "fake": 2}
    assert "8 images: train 2 real 2 fake" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["140k"]  # no archive, no leftovers
    done = len(server.requests)
    fetch(server, tmp_path / "140k")
    assert len(server.requests) == done  # a complete folder is not fetched again


def test_the_password_is_not_shown_to_the_host_of_the_files(server, tmp_path):
    fetch(server, tmp_path / "140k")
    (_, _, first), (path, _, second) = server.requests
    assert first == "Basic " + base64.b64encode(b"me:secret").decode() and path == "/signed" and second is None


def test_a_broken_connection_goes_on_where_it_was(server, tmp_path):
    server.breaks = [500, 300]
    fetch(server, tmp_path / "140k")
    assert [asked for path, asked, _ in server.requests if path == "/signed"] == [None, "bytes=500-", "bytes=800-"]


def test_the_next_run_goes_on_where_the_last_one_gave_up(server, tmp_path):
    server.breaks = [100] * transfer.ATTEMPTS
    with pytest.raises(UserError, match="run the command again to resume"):
        fetch(server, tmp_path / "140k")
    assert (tmp_path / "140k.zip.part").stat().st_size == 100 * transfer.ATTEMPTS
    server.requests.clear()
    assert fetch(server, tmp_path / "140k")["exit_code"] == 0
    assert server.requests[-1][1] == f"bytes={100 * transfer.ATTEMPTS}-"


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges, server.breaks = False, [400]
    assert fetch(server, tmp_path / "140k")["counts"]["test"] == {"real": 1, "fake": 1}


def test_a_file_that_changed_meanwhile_is_not_patched_together(server, tmp_path):
    server.breaks = [100] * transfer.ATTEMPTS
    with pytest.raises(UserError):
        fetch(server, tmp_path / "140k")
    server.content = server.content.replace(b"valid/real/0", b"valid/real/7")
    assert fetch(server, tmp_path / "140k")["exit_code"] == 0
    assert (tmp_path / "140k/real_vs_fake/real-vs-fake/valid/real/7.png").is_file()


def test_a_complete_part_counts(server, tmp_path):
    (tmp_path / "140k.zip.part").write_bytes(server.content)
    assert fetch(server, tmp_path / "140k")["exit_code"] == 0


def test_the_announced_sum_is_compared(server, tmp_path):
    server.md5 = base64.b64encode(hashlib.md5(b"another file").digest()).decode()
    with pytest.raises(UserError, match="MD5 sum"):
        fetch(server, tmp_path / "140k")
    assert not (tmp_path / "140k").exists() and not (tmp_path / "140k.zip.part").exists()
    server.md5 = base64.b64encode(hashlib.md5(server.content).digest()).decode()
    assert fetch(server, tmp_path / "140k")["exit_code"] == 0


@pytest.mark.parametrize(("status", "says"), [(401, "HTTP 401"), (403, "HTTP 403"), (404, "HTTP 404")])
def test_refusals_are_one_line_and_not_repeated(status, says, server, tmp_path):
    server.status = status
    with pytest.raises(UserError, match=says) as refused:
        fetch(server, tmp_path / "140k")
    assert "\n" not in str(refused.value) and len(server.requests) == 1
    assert ("check your user name and key" in str(refused.value)) == (status in (401, 403))


def test_nobody_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="no data arrived"):
        transfer.download("http://127.0.0.1:9/file", tmp_path / "file.zip", {})


def test_missing_credentials_are_explained(monkeypatch, tmp_path):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"create a token at https://www\.kaggle\.com/settings"):
        script.credentials()
    (tmp_path / "kaggle.json").write_text(json.dumps({"username": "me", "key": "secret"}))
    assert script.credentials() == ("me", "secret")
    (tmp_path / "kaggle.json").write_text("[]")
    with pytest.raises(UserError, match="create a new token"):
        script.credentials()


def test_missing_images_are_noticed(server, tmp_path):
    server.content = make_archive(leave_out="real_vs_fake/real-vs-fake/train/fake/1.png")
    with pytest.raises(UserError, match=r"expected 2 fake train images .* got 1"):
        fetch(server, tmp_path / "140k")


@pytest.mark.parametrize("name", ["../outside.png", "/etc/outside.png", "a/../../outside.png", "C:/outside.png"])
def test_a_member_that_leads_elsewhere_is_refused_before_anything_is_written(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", b"x")
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match="could write elsewhere"):
        unzip(tmp_path / "a.zip", tmp_path / "target" / "set")
    assert [file.name for file in tmp_path.rglob("*")] == ["a.zip"]


def test_links_in_an_archive_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="plain files"):
        unzip(tmp_path / "a.zip", tmp_path / "set")


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_archive_leaves_no_folder(damage, tmp_path):
    data = bytearray(make_archive())
    if damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[200] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="whole ZIP archive"):
        unzip(tmp_path / "a.zip", tmp_path / "set")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_too_small_a_disk_is_told_beforehand(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(make_archive())
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr("datasets.transfer.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="GB of free space"):
        unzip(tmp_path / "a.zip", tmp_path / "set")
