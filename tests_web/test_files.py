"""Files of every kind on the page: limits, formats that a browser cannot show, videos, progress, cancelling, cases."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

import serve
from tests.clips import portrait, walk, write_clip
from tests_web.browser import choose, serious
from tests_web.conftest import explain_something
from utils.serving.settings import Limits


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="module")
def app(face_checkpoint: Path, cases: Path):
    """A detector that frames faces, on a server that keeps cases."""
    limits = Limits(max_seconds=300, max_mb=2, max_pixels=1_000_000, max_video_mb=3, max_video_frames=12)
    app = serve.create_app([face_checkpoint], limits, threads=1, cases=cases)
    explain_something(app)
    yield app
    app.extensions["service"].close()


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return str(write_clip(tmp_path / "clip.mp4", walk(6, 0, 2)))


def test_limits_are_said_before_the_upload(page):
    words = page.locator(".drop").inner_text()
    for limit in ("HEIC", "up to 2 MB and 1 megapixel", "up to 3 MB", "12 frames"):
        assert limit in words


def test_heic_is_shown_through_a_preview(page, tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif writes the HEIC of this test")
    pixels = cv2.resize(portrait(0), (256, 256))
    heif.from_bytes("RGB", (256, 256), pixels.tobytes()).save(str(tmp_path / "phone.heic"))
    with page.expect_response("**/api/preview"):
        choose(page, [str(tmp_path / "phone.heic")])
    for image in (".thumb img", ".picture-frame img"):
        page.wait_for_function("query => document.querySelector(query)?.naturalWidth === 256", arg=image)
    assert not page.complaints


def test_video_has_a_row_with_picture_interval_and_timeline_for_each_face(page, clip):
    with page.expect_response("**/api/video") as response:
        choose(page, [clip])
    video = response.value.json()
    rows = page.get_by_role("region", name="Faces in the video").get_by_role("listitem")
    assert rows.count() == len(video["tracks"]) > 0
    for row, track in zip(rows.all(), video["tracks"], strict=True):
        assert f"{track['verdict']} · " in row.inner_text() and f"{track['frames']} frames" in row.inner_text()
        assert row.locator("circle").count() == len(track["points"])
        assert row.get_by_role("img").last.get_attribute("aria-label").startswith("Scores from 0:0")
        width = row.locator("img").evaluate("async image => { await image.decode(); return image.naturalWidth; }")
        assert width == track["picture"]["width"]
    assert page.locator(".gallery .chip").text_content() == video["verdict"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON").click()
    (saved,) = json.loads(Path(download.value.path()).read_text())["videos"]
    assert saved["detector"] == video["model"] and saved["p_fake"] == video["p_fake"]
    assert not {"model", "threshold", "unsure"} & set(saved) and "picture" not in saved["tracks"][0]
    assert not serious(page)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert not page.complaints


def test_the_most_suspicious_frame_of_a_face_is_explained_like_a_picture(page, clip):
    with page.expect_response("**/api/video") as response:
        choose(page, [clip])
    track = response.value.json()["tracks"][-1]  # not the most suspicious one
    time, p_fake = max(track["points"], key=lambda point: point[1])
    row = page.get_by_role("region", name="Faces in the video").get_by_role("listitem").last
    button = row.get_by_role("button", name="Open the frame at 0:0")
    button.focus()
    with page.expect_response("**/api/explain") as response:
        page.keyboard.press("Enter")
    assert {key: response.value.json()["face"][key] for key in track["face"]} == track["face"]
    page.locator(".heat").wait_for()
    assert page.evaluate("() => document.activeElement.id") == "verdict"
    assert page.locator(".thumb").count() == 2
    assert page.locator(".verdict .score").inner_text().startswith(f"{100 * p_fake:.0f} %")
    assert f"one frame of clip.mp4, at 0:0{int(time)}" in page.locator(".verdict").inner_text()
    words = page.locator(".reasons").inner_text()
    assert "does not look at movement" in words and "Search for a frame of it yourself" in words
    assert page.locator(".file-says").count() == 0  # the server wrote this file
    assert not serious(page)
    page.get_by_role("button", name="Back to the video").click()
    button.click()
    page.get_by_role("button", name="Back to the video").wait_for()
    assert page.locator(".thumb").count() == 2  # it is opened once
    assert not page.complaints


def test_video_without_a_face_is_judged_as_a_whole_on_request(page, tmp_path):
    frames = [np.full((90, 160, 3), 40 * step, np.uint8) for step in range(4)]
    choose(page, [str(write_clip(tmp_path / "empty.mp4", frames))])
    assert page.locator(".verdict h2").inner_text() == "No face found"
    page.get_by_role("button", name="Judge whole frames").click()
    page.get_by_role("heading", name="The frames").wait_for()
    assert "trust this verdict less" in page.locator(".verdict").inner_text()


def test_video_that_cannot_be_read_says_why(page, clip, tmp_path):
    broken, large = tmp_path / "broken.mp4", tmp_path / "large.mov"
    broken.write_bytes(Path(clip).read_bytes()[:3000])
    large.write_bytes(b"0" * 3_100_000)
    choose(page, [str(broken), str(large)])
    assert page.locator(".chip").all_text_contents() == ["not checked", "too large"]
    assert page.locator(".verdict h2").inner_text() == "This video could not be checked"
    assert page.get_by_role("button", name="Try again").count() == 0  # it would be in vain
    page.locator(".thumb").last.click()
    assert "larger than 3 MB" in page.locator(".verdict").inner_text()


@pytest.fixture
def gate(app, monkeypatch):
    """A lock that holds answers back, and the requests that have reached it."""
    service, gate, reached = app.extensions["service"], threading.Event(), threading.Semaphore(0)
    answer = service.predict

    def wait(*args):
        reached.release()
        gate.wait(120)
        return answer(*args)

    monkeypatch.setattr(service, "predict", wait)
    yield gate, reached
    gate.set()


def test_progress_is_shown_and_can_be_cancelled_and_resumed(page, photos, gate):
    gate, reached = gate
    page.get_by_label("Pictures or videos", exact=True).set_input_files(photos)
    progress = page.get_by_role("progressbar", name="Files checked")
    assert progress.get_attribute("max") == "6" and page.locator(".progress").inner_text().strip() == "0 of 6"
    assert all(reached.acquire(timeout=60) for _ in range(3))  # the open requests
    stopped: list[str] = []
    page.on("requestfailed", lambda request: stopped.append(request.url))
    with page.expect_event("requestfailed", lambda _: len(stopped) == 3):
        page.get_by_role("button", name="Cancel").click()
    assert page.locator(".gallery-head [role=status]").text_content() == "6 cancelled"
    assert not serious(page)
    gate.set()
    page.get_by_role("button", name="Check the rest").click()
    page.locator(".chip.cancelled").first.wait_for(state="detached")
    page.locator(".gallery-head [role=status]:not(:empty)").wait_for()
    assert page.locator(".gallery-head [role=status]").text_content() == "6 no face"


def test_a_case_is_kept_with_its_answer(page, photos, cases):
    choose(page, photos[:1])
    words = page.get_by_role("region", name="Keep as a case")
    assert "stored in the case folder on the server" in words.inner_text()
    assert "unless you keep one as a case" in page.locator("footer").inner_text()
    page.get_by_role("button", name="Keep: it is fake").click()
    page.get_by_text("Kept as fake").wait_for()
    (row,) = (cases / "cases.csv").read_text().splitlines()[1:]
    assert ",fake" in row and (cases / row.split(",")[0]).read_bytes() == Path(photos[0]).read_bytes()
    assert not serious(page)


def test_a_case_that_the_server_cannot_keep_says_why_and_can_be_sent_again(page, photos, cases):
    (cases / "cases.csv").write_text("no list")
    choose(page, photos[1:2])
    part = page.get_by_role("region", name="Keep as a case")
    part.get_by_role("button", name="Keep: it is real").click()
    assert "not kept: the case folder of this server" in part.get_by_role("alert").inner_text()
    (cases / "cases.csv").unlink()
    part.get_by_role("button", name="Keep: it is real").click()
    page.get_by_text("Kept as real").wait_for()
