"""Faces on the page: chosen by click or key, explained one by one, and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import serve
from tests.clips import scene
from tests_web.browser import boxes, choose, serious
from tests_web.conftest import explain_something
from utils.checkpoint_files import SOURCES_SUFFIX

PEOPLE = (0, 2)  # that the cascade finds
COLUMNS = ("source", "about", "seen", "n_real", "n_fake", "real_called_fake", "fake_found")
SOURCES = [
    ("a", "portraits", True, 9, 9, 0, 1),
    ("b", "snapshots", False, 100, 50, 0.03, 0.56),
    ("c", "studio portraits", False, 0, 200, None, 0.8),
]


@pytest.fixture(scope="module")
def app(_tiny_checkpoint_file: Path, face_checkpoint: Path):
    """A detector that frames faces, with test results, and one that judges whole pictures."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in SOURCES]
    face_checkpoint.with_suffix(SOURCES_SUFFIX).write_text(json.dumps(rows))
    app = serve.create_app([face_checkpoint, _tiny_checkpoint_file], threads=1)
    explain_something(app)
    yield app
    app.extensions["service"].close()


@pytest.fixture
def couple(tmp_path: Path) -> str:
    path = str(tmp_path / "couple.png")
    cv2.imwrite(path, scene((PEOPLE[0], 10), (PEOPLE[1], 170))[:, :, ::-1])
    return path


@pytest.fixture
def nobody(tmp_path: Path) -> str:
    path = str(tmp_path / "nobody.png")
    cv2.imwrite(path, np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8))
    return path


def faces_of(page):
    return page.get_by_role("group", name="Choose a face").get_by_role("radio")


def percent(p: float) -> str:
    return f"{100 * p:.0f} %"


def chosen(page) -> list[bool]:
    return [radio.is_checked() for radio in faces_of(page).all()]


def test_every_face_has_its_verdict_and_the_most_suspicious_one_is_shown(page, couple):
    with page.expect_response("**/api/predict") as response:
        choose(page, [couple])
    (image,) = response.value.json()["images"]
    left_to_right = sorted(image["faces"], key=lambda face: face["left"])
    labels = [radio.get_attribute("aria-label") for radio in faces_of(page).all()]
    for number, (face, label) in enumerate(zip(left_to_right, labels, strict=True), 1):
        assert label.startswith(f"Face {number} of 2: {face['verdict']}, ")
    assert chosen(page) == [face["logit"] == image["logit"] for face in left_to_right]
    assert page.locator(".gallery .chip").text_content() == image["verdict"]
    picture, box = boxes(page, ".picture-frame .stack", ".face")
    assert (box["x"] - picture["x"]) / picture["width"] == pytest.approx(left_to_right[0]["left"] / 320, abs=0.01)
    assert box["width"] / picture["width"] == pytest.approx(left_to_right[0]["side"] / 320, abs=0.01)
    tag = page.locator(".face:not(.chosen) .tag")
    assert tag.is_visible()
    page.set_viewport_size({"width": 200, "height": 844})
    assert not tag.is_visible()  # it would cover so small a face


def test_a_click_or_an_arrow_key_chooses_a_face_and_its_explanation(page, couple):
    choose(page, [couple])
    page.locator(".heat").wait_for()
    first = chosen(page).index(True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/explain" in request.url else None)
    with page.expect_response("**/api/explain") as response:
        page.locator(".face").nth(1 - first).click()
    explained = response.value.json()["face"]["left"]
    assert (explained < 160) == (1 - first == 0)  # the left one, or the right one
    assert chosen(page).index(True) == 1 - first
    page.locator(".heat").wait_for()
    page.keyboard.press("ArrowRight")  # from the chosen radio button to the next one, or around to the first
    assert chosen(page).index(True) == first
    assert page.locator(".verdict h2").inner_text().startswith(f"Face {first + 1}:")
    assert f"Face {first + 1} with a little around it" in page.locator(".reasons").inner_text()
    page.locator(".face").nth(1 - first).click()
    page.locator(".verdict").get_by_role("button", name=f"face {first + 1}").click()
    assert chosen(page).index(True) == first and page.evaluate("document.activeElement.id") == "verdict"
    assert len(asked) == 1  # the explanation of the first face was kept
    assert not page.complaints


def test_the_heat_map_shows_the_face_and_its_surroundings_only(page, couple):
    with page.expect_response("**/api/explain") as response:
        choose(page, [couple])
    answer = response.value.json()
    page.locator(".heat").wait_for()
    stack, under = boxes(page, ".close-up .stack", ".under")
    view = answer["view"]
    assert view["width"] < 320 and answer["face"]["side"] < view["width"]
    assert stack["width"] / under["width"] == pytest.approx(view["width"] / 320, abs=0.01)
    assert (stack["x"] - under["x"]) / under["width"] == pytest.approx(view["left"] / 320, abs=0.01)
    assert (stack["y"] - under["y"]) / under["height"] == pytest.approx(view["top"] / 180, abs=0.01)


def test_the_stress_test_is_of_the_chosen_face(page, couple):
    choose(page, [couple])
    other = 1 - chosen(page).index(True)
    page.locator(".face").nth(other).click()
    with page.expect_response("**/api/stress") as response:
        page.get_by_role("button", name="Run the stress test").click()
    shown = page.locator(".verdict .score").inner_text()
    assert shown.startswith(percent(response.value.json()["original"]["p_fake"]))
    page.locator(".stress table").wait_for()
    page.locator(".face").nth(1 - other).click()
    page.get_by_role("button", name="Run the stress test").wait_for()  # the other face was not tested


def test_no_face_is_said_and_the_whole_picture_judged_on_request(page, nobody):
    choose(page, [nobody])
    assert page.locator(".gallery .chip").text_content() == "no face"
    assert page.locator(".verdict h2").inner_text() == "No face found"
    assert not serious(page)
    page.get_by_role("button", name="Judge the whole picture").click()
    assert page.evaluate("document.activeElement.id") == "verdict"
    page.locator(".verdict h2.real, .verdict h2.fake, .verdict h2.unsure").wait_for()
    page.locator(".heat").wait_for()
    assert "trust this verdict less" in page.locator(".reasons").inner_text()
    assert not page.complaints


def test_reasons_tell_how_sure_the_detector_is_on_unseen_sources(page, couple):
    choose(page, [couple])
    words = page.locator(".reasons").inner_text()
    assert "called 3 % of the real photographs fake and found 56 to 80 % of the fakes" in words
    hint = page.get_by_text("Select a face to see why.")
    assert hint.is_visible()
    page.emulate_media(media="print")
    assert not hint.is_visible() and page.get_by_text("was missed and not").is_visible()
    page.emulate_media(media="screen")
    for step in ("Search for the picture yourself", "Ask for the original file", "what the file says"):
        assert step in words
    page.get_by_role("link", name="what the file says").click()
    assert page.locator(".file-says dl").is_visible()
    page.get_by_text("About this detector").click()
    rows = page.get_by_role("region", name="Test results by source").locator("tbody tr").all_inner_texts()
    assert rows[1].split("\t") == ["snapshots (b)", "no", "3.0 % of 100", "56.0 % of 50"]
    assert rows[2].split("\t")[2] == "–"


def test_unsure_is_written_below_its_band_and_clear_of_the_ends(page, couple):
    with page.expect_response("**/api/predict") as response:
        choose(page, [couple])
    answer = response.value.json()
    page.route("**/api/predict", lambda route: route.fulfill(json=answer))
    for answer["unsure"], is_low in (([0.5, 0.9], False), ([0.01, 0.05], True)):
        page.reload()
        choose(page, [couple])
        band, end, words = boxes(page, ".meter .band", ".meter .ends span", ".shaded")
        if is_low:
            assert end["right"] < words["left"] < end["right"] + 30
        else:
            assert words["x"] + words["width"] / 2 == pytest.approx(band["x"] + band["width"] / 2, abs=1)


def test_detectors_are_offered_with_their_time_and_the_first_opinion_stays(page, couple, app):
    for offer in app.extensions["service"].offers:
        assert offer.card["seconds"] > 0
    choose(page, [couple])
    offers = page.get_by_label("Detector", exact=True)
    texts = offers.locator("option").all_text_contents()
    assert len(texts) == 2 and all(text.endswith(" s per face") for text in texts)
    first = [page.locator(place).inner_text() for place in (".gallery .chip", ".score strong")]
    offers.select_option(index=1)
    page.locator(".face").first.wait_for(state="detached")
    page.locator(".gallery-head [role=status]:not(:empty)").wait_for()
    assert page.locator(".face").count() == 0  # this one judges whole pictures
    name = app.extensions["service"].offers[0].name
    assert page.get_by_text(f"{name} said: {', '.join(first)}.").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_with_faces(page, couple, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    choose(page, [couple])
    page.locator(".heat").wait_for()
    page.get_by_text("About this detector").click()
    assert not serious(page)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
