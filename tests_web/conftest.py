"""Fixtures of the page tests, which `make test-web` runs and `make test` does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import serve
from tests.conftest import _tiny_checkpoint_file, tiny_checkpoint, write_image
from tests_web.browser import chromium, running
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.serving.settings import Limits

__all__ = ["_tiny_checkpoint_file", "tiny_checkpoint"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not serve.WEB.joinpath("dist/index.html").is_file():
        for item in (item for item in items if item.path.name != "test_fuzz.py"):  # which needs no page
            item.add_marker(pytest.mark.skip(reason="make web was not run"))


def explain_something(app) -> None:
    """Give every explanation of a server the same map; those of an untrained detector are often all zero."""
    for offer in app.extensions["service"].offers:
        offer.explain = lambda view, target: (np.eye(32, dtype=np.float32), "gradcam")


@pytest.fixture(scope="module")
def face_checkpoint(_tiny_checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector that frames faces."""
    checkpoint = load_checkpoint(_tiny_checkpoint_file)
    geometry = {"mode": "face", "size": 32, "resize_to": None, "margin": 1.4}
    file = tmp_path_factory.mktemp("detectors") / "faces.pt"
    save_checkpoint(file, {**checkpoint, "geometry": geometry})
    return file


@pytest.fixture(scope="module")
def app(_tiny_checkpoint_file: Path):
    """A detector of whole pictures; a module may have another one."""
    app = serve.create_app([_tiny_checkpoint_file], Limits(max_seconds=300, max_mb=2), threads=1)
    explain_something(app)
    yield app
    app.extensions["service"].close()


@pytest.fixture(scope="module")
def url(app):
    with running(app) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture
def page(browser, url):
    """A fresh page that must not contact third parties or violate the Content-Security-Policy."""
    context = browser.new_context(bypass_csp=False, permissions=["camera"])
    context.set_default_timeout(60_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((url, "blob:", "data:"))
            else complaints.append(f"third party: {request.url}")
        ),
    )
    page.complaints = complaints
    page.goto(url)
    page.get_by_role("button", name="Choose files").wait_for()
    yield page
    context.close()


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        write_image(path, index, fake=index % 2 == 1, height=96, width=80 + 8 * index)
    return [str(path) for path in paths]
