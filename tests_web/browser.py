"""A server in a thread, a headless Chromium and common steps, for the tests of the page and for screenshots."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from tests.sockets import listening
from utils.errors import UserError
from utils.files import ROOT
from utils.serving.settings import Limits

AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# No sandbox, because tests run as root in containers; the browser only visits this server.
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@contextlib.contextmanager
def running(app: Any, limits: Limits | None = None) -> Iterator[str]:
    """Serve an app on a free port of the loopback address; yields the URL."""
    with listening(app, limits or Limits()) as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start the system's Chromium; yields a Playwright browser.

    Raises:
        UserError: Chromium is not installed.
    """
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        raise UserError("expected Chromium, found none; install it with: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def choose(page: Any, files: list[str]) -> None:
    """Upload files and wait until each has a verdict or an error."""
    page.get_by_label("Pictures or videos", exact=True).set_input_files(files)
    page.locator(".gallery-head [role=status]:not(:empty)").wait_for()


def boxes(page: Any, *queries: str) -> list[dict[str, float]]:
    """Where the first element of each query lies, in px, at one moment."""
    code = "queries => queries.map(query => document.querySelector(query).getBoundingClientRect().toJSON())"
    return page.evaluate(code, queries)


def serious(page: Any) -> list[str]:
    """Violations that axe calls serious or critical."""
    page.evaluate(AXE.read_text(encoding="utf-8"))  # through the debugger, which the page's policy does not bind
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [f"{item['id']}: {item['nodes'][0]['html']}" for item in found if item["impact"] in ("serious", "critical")]
