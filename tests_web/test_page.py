"""The built page in a headless Chromium: user actions and accessibility."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import predict
import serve
from tests.utils.metadata.manifests import firefly_store, in_png
from tests_web.browser import boxes, choose, running, serious

MAX_BUNDLE = 130_000  # bytes, gzip
PHONE = {"width": 390, "height": 844}


def test_upload_gives_the_verdicts_of_predict(page, photos, tiny_checkpoint, tmp_path):
    output = tmp_path / "out.json"
    predict.main(["--checkpoint", str(tiny_checkpoint), "--format", "json", "--output", str(output), *photos])
    with page.expect_response("**/api/predict") as response:
        choose(page, photos)
    decision = response.value.json()
    shown = [chip.text_content() for chip in page.locator(".gallery .chip").all()]
    assert shown == [row["verdict"] for row in json.loads(output.read_text())]
    with page.expect_download() as download:
        page.locator(".gallery-head").get_by_role("button", name="Save as JSON").click()
    saved = json.loads(Path(download.value.path()).read_text())["images"]
    low, high = decision["unsure"] or [decision["threshold"]] * 2
    for image in saved:
        assert (image["real_below"], image["fake_from"]) == (low, high) and not {"threshold", "unsure"} & set(image)
    for image, row in zip(saved, json.loads(output.read_text()), strict=True):
        assert image["p_fake"] == pytest.approx(row["p_fake"], abs=1e-6)
    assert not page.complaints


def test_gallery_shows_one_picture_in_full_and_lets_go_of_others(page, photos):
    choose(page, photos)
    page.locator(".thumb").nth(3).click()
    assert page.locator(".file").text_content() == "3.png"
    for name, next_focus in (("3.png", "4.png"), ("5.png", "4.png")):
        page.get_by_role("button", name=f"Remove {name}").click()
        assert page.locator(".thumb:focus .name").text_content() == next_focus
    assert page.locator(".thumb").count() == 4
    page.get_by_role("button", name="Remove all").click()
    assert page.locator(".thumb").count() == 0 and page.locator(".detail").count() == 0
    choose(page, photos[:1])
    page.get_by_role("button", name="Remove 0.png").click()
    assert page.evaluate("() => document.activeElement.id") == "main"


def test_a_report_has_the_date_of_the_check(page, photos):
    page.clock.set_fixed_time("2031-05-06")
    choose(page, photos[:1])
    page.locator(".heat").wait_for()
    page.clock.set_fixed_time("2032-05-06")
    page.get_by_role("button", name="Run the stress test").click()
    page.locator(".stress table").wait_for()
    assert "2031" in page.locator(".printed").text_content()
    with page.expect_download() as download:
        page.locator(".verdict").get_by_role("button", name="Save as JSON").click()
    (saved,) = json.loads(Path(download.value.path()).read_text())["images"]
    assert saved["checked"].startswith("2031-05-06")
    assert {"face", "original", "steps", "held"} == set(saved["stress"][0])


def test_the_theme_is_that_of_the_system_until_one_is_chosen(page):
    def background() -> str:
        return page.evaluate("() => getComputedStyle(document.body).backgroundColor")

    light = background()
    page.emulate_media(color_scheme="dark")
    dark = background()
    page.reload()
    page.get_by_role("button", name="Light").click()
    assert dark != light == background()
    page.reload()
    page.get_by_role("button", name="Dark").wait_for()
    assert background() == light  # the choice is kept
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Dark").click()
    assert background() == dark
    page.emulate_media(media="print")
    ink = page.evaluate("() => getComputedStyle(document.body).color")
    assert background() == "rgb(255, 255, 255)" and max(map(int, ink[4:-1].split(","))) < 80


def test_slider_fades_the_heat_map_and_works_with_keys(page, photos):
    choose(page, photos[:1])
    slider = page.get_by_label("Strength of the heat map")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(".heat").evaluate("element => getComputedStyle(element).opacity") == "1"
    page.keyboard.press("Home")
    assert page.locator(".heat").evaluate("element => getComputedStyle(element).opacity") == "0"


def test_stress_test_has_a_row_for_each_step(page, photos):
    choose(page, photos[:1])
    page.get_by_role("button", name="Run the stress test").click()
    page.locator(".stress table").wait_for()
    assert page.locator(".stress tbody td.chart").count() == 14
    assert "ways to share" in page.locator(".stress").text_content()


def test_what_the_file_says_is_shown_apart_from_the_verdict(page, photos, tmp_path):
    generated = tmp_path / "generated.png"
    generated.write_bytes(in_png(Path(photos[0]).read_bytes(), firefly_store()))
    choose(page, [photos[1], str(generated)])
    part = page.locator(".file-says")
    assert not part.locator("dl").is_visible()
    part.locator("summary").focus()
    page.keyboard.press("Enter")
    assert "none named" in part.inner_text()
    page.keyboard.press("Enter")
    assert not part.locator("dl").is_visible()
    page.emulate_media(media="print")
    assert part.locator("dl").is_visible()  # on paper nobody can open it
    page.emulate_media(media="screen")
    assert "AI made it" not in page.locator(".verdict").inner_text()
    page.locator(".thumb").last.click()
    assert "AI made it" in page.locator(".verdict").inner_text()
    text = part.inner_text()
    for words in (
        "claim by Adobe_Firefly 2.0; not verified (PNG caBX)",
        "made by a generator",
        "none named",
        "no part",
    ):
        assert words in text
    assert not page.complaints


def test_pasted_and_dropped_pictures_are_taken(page, photos):
    content = list(Path(photos[0]).read_bytes())
    for event in ("paste", "drop"):
        page.evaluate(
            """([kind, bytes]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], kind + ".png", {type: "image/png"}));
                const event = kind === "paste"
                    ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true})
                    : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true});
                (kind === "paste" ? document : document.querySelector(".drop")).dispatchEvent(event);
            }""",
            [event, content],
        )
    page.locator(".thumb").nth(1).wait_for()
    page.locator(".gallery-head [role=status]:not(:empty)").wait_for()
    assert [name.text_content() for name in page.locator(".thumb .name").all()] == ["paste.png", "drop.png"]


def test_camera_picture_is_checked(page):
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Take a picture").click()
    page.locator(".verdict h2.real, .verdict h2.fake, .verdict h2.unsure").wait_for()
    assert page.locator(".thumb .name").text_content() == "camera.png"


def test_token_is_asked_for_and_sent(browser, _tiny_checkpoint_file, photos):
    token = "a-token-that-is-long-enough"
    app = serve.create_app([_tiny_checkpoint_file], token=token, threads=1)
    with running(app) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_label("access token").fill("not the token")
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("The server did not accept this token.").wait_for()
        page.get_by_label("access token").fill(token)
        page.get_by_role("button", name="Continue").click()
        choose(page, photos[:1])
        assert page.locator(".chip.failed").count() == 0
        page.close()
    app.extensions["service"].close()


def test_history_stays_in_the_browser_until_it_is_deleted(page, photos):
    choose(page, photos[:2])
    page.get_by_text("Earlier verdicts (2)").wait_for()
    page.reload()
    page.get_by_text("Earlier verdicts (2)").click()
    page.get_by_role("button", name="Delete them").click()
    page.get_by_text("Earlier verdicts (").wait_for(state="detached")


def test_phone_scrolls_in_one_direction_only(page, photos):
    page.set_viewport_size(PHONE)
    choose(page, photos)
    page.get_by_role("button", name="Run the stress test").click()
    page.locator(".stress table").wait_for()
    table, chart = boxes(page, ".stress table", "td.chart .track")
    assert chart["width"] == table["width"]
    page.get_by_text("About this detector").click()
    term, fact = boxes(page, "dt", "dd")
    assert term["x"] == fact["x"]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, photos, scheme, tmp_path):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    assert not serious(page)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    choose(page, [*photos, str(broken)])
    page.locator(".heat").wait_for()
    page.get_by_role("button", name="Run the stress test").click()
    page.locator(".stress table").wait_for()
    page.get_by_text("About this detector").click()
    page.get_by_text("Earlier verdicts (").click()
    page.locator(".file-says summary").click()
    assert not serious(page)
    page.locator(".thumb").last.click()
    assert not serious(page)
    page.get_by_role("button", name="Use the camera").click()
    assert not serious(page)


def test_keyboard_reaches_the_verdict(page, photos):
    choose(page, photos[:2])
    page.locator(".thumb").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator(".file").text_content() == "1.png"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Remove 0.png"


def test_first_paint_is_fast_and_the_bundle_small(browser, url):
    import gzip

    page = browser.new_page()
    page.goto(url)
    page.get_by_role("button", name="Choose files").wait_for()
    paint = page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    print(f"first contentful paint {paint.json_value():.0f} ms")
    page.close()
    size = sum(len(gzip.compress(file.read_bytes())) for file in serve.WEB.joinpath("dist").rglob("*.*"))
    print(f"bundle {size / 1000:.1f} kB gzip")
    assert size <= MAX_BUNDLE
