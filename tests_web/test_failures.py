"""The page when a file cannot be checked, or when the server is busy or lost."""

from __future__ import annotations

import cv2
import numpy as np

from tests_web.browser import choose
from utils.serving.settings import Refused


def test_files_that_cannot_be_checked_say_why(page, photos, tmp_path):
    text, large = tmp_path / "notes.png", tmp_path / "large.png"
    text.write_text("<svg onload=alert(1)>")
    cv2.imwrite(str(large), np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    choose(page, [str(text), str(large), str(broken), photos[0]])
    assert page.locator(".chip.failed").all_text_contents() == ["wrong format", "too large", "damaged"]
    assert "This is not a JPEG" in page.locator(".verdict").text_content()
    page.locator(".thumb").nth(1).click()
    assert "larger than 2 MB" in page.locator(".verdict").text_content()
    assert page.locator(".gallery-head [role=status]").text_content().endswith("3 not checked")


def test_busy_server_is_asked_again(page, app, photos, monkeypatch):
    service, calls = app.extensions["service"], []
    answer = service.predict

    def busy_once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise Refused(503, "busy", "The server is busy.", retry_after=1)
        return answer(*args)

    monkeypatch.setattr(service, "predict", busy_once)
    page.get_by_label("Pictures or videos", exact=True).set_input_files(photos[:1])
    page.get_by_text("The server is busy. Trying again in 1 s").wait_for()
    page.locator(".verdict h2.real, .verdict h2.fake, .verdict h2.unsure").wait_for()
    assert not page.get_by_text("The server is busy").count()
    assert len(calls) == 2 and page.locator(".chip.failed").count() == 0


def test_unreachable_server_is_said_and_can_be_tried_again(browser, url):
    page = browser.new_page()
    page.route("**/api/models", lambda route: route.abort())
    page.goto(url)
    page.get_by_text("The server cannot be reached.").wait_for()
    page.unroute("**/api/models")
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("button", name="Choose files").wait_for()
    page.close()


def test_files_are_checked_again_after_the_server_was_lost(page, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    choose(page, [str(broken)])
    assert page.get_by_role("button", name="Check the rest").count() == 0  # it would be in vain
    page.route("**/api/predict", lambda route: route.abort())
    page.get_by_label("Pictures or videos", exact=True).set_input_files(photos[:2])
    page.get_by_text("3 not checked").wait_for()
    assert page.locator(".chip.failed").all_text_contents() == ["damaged", "no connection", "no connection"]
    page.unroute("**/api/predict")
    page.get_by_role("button", name="Check the rest").click()
    page.get_by_text(" · 1 not checked").wait_for()
    assert page.locator(".chip.failed").count() == 1


def test_the_reason_of_a_failure_goes_away_while_the_file_is_checked_again(page, photos):
    page.route("**/api/predict", lambda route: route.abort())
    choose(page, photos[:1])
    page.route("**/api/predict", lambda route: None)  # no answer
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("heading", name="Checking …").wait_for()
    assert "cannot be reached" not in page.locator(".verdict").inner_text()


def test_a_failed_heat_map_can_be_tried_again(page, photos):
    page.route("**/api/explain", lambda route: route.abort())
    choose(page, photos[:1])
    reasons = page.locator(".reasons")
    reasons.get_by_text("There is no heat map: The server cannot be reached.").wait_for()
    page.unroute("**/api/explain")
    reasons.get_by_role("button", name="Try again").click()
    page.locator(".heat").wait_for()
