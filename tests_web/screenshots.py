"""Take the screenshots of the page: desktop, phone, dark; with generated faces only.

  python -m tests_web.screenshots --checkpoint runs/demo

writes results/web/{start,desktop,faces,phone,dark}.png. Requires the built page (`make web`), Chromium, Playwright
and the demo set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve import create_app
from tests_web.browser import chromium, running
from utils.args import check_checkpoint_file, check_output_dir, make_parser, run_script

DESKTOP = {"width": 1180, "height": 900}
PHONE = {"width": 390, "height": 844}
PER_KIND = 2  # pictures of each generator


def demo_files() -> list[str]:
    """Some generated portraits of the demo set, reals and every kind of fake."""
    from datasets.spec import open_records

    chosen: dict[str, list[str]] = {}
    for record in open_records("demo@split=test").records:
        chosen.setdefault(record.generator, []).append(record.path)
    return [
        path
        for paths in zip(*(sorted(found)[7 : 7 + PER_KIND] for found in chosen.values()), strict=True)
        for path in paths
    ]


def fill(page: Any, url: str, files: list[str]) -> None:
    """Upload pictures and wait for the verdicts and the heat map of the first."""
    page.goto(url)
    page.get_by_label("Pictures", exact=True).set_input_files(files)
    page.wait_for_selector(".heat")
    page.locator(".gallery-head p").filter(has_not_text="to go").wait_for()


def take(browser: Any, url: str, files: list[str], folder: Path) -> None:
    """Write every screenshot."""
    page = browser.new_page(viewport=DESKTOP, device_scale_factor=1)
    page.goto(url)
    page.get_by_role("button", name="Choose pictures").wait_for()
    page.screenshot(path=folder / "start.png")
    fill(page, url, files)
    page.get_by_role("button", name="Run the stress test").click()
    page.wait_for_selector(".stress table")
    page.get_by_text("About this detector").click()
    page.screenshot(path=folder / "desktop.png", full_page=True)
    page.close()
    for name, viewport, scheme in (("phone", PHONE, "light"), ("dark", DESKTOP, "dark")):
        page = browser.new_page(viewport=viewport, device_scale_factor=1, color_scheme=scheme)
        fill(page, url, files)
        page.screenshot(path=folder / f"{name}.png", full_page=name == "phone")
        page.close()


def main(argv=None) -> dict:
    """Serve the checkpoint and take the screenshots."""
    parser = make_parser(__doc__, "tests_web/screenshots.py")
    parser.add_argument("--checkpoint", default="runs/demo", metavar="PT", help="default: runs/demo")
    parser.add_argument("--face-detector", metavar="FILE", help="YuNet as ONNX: score each face")
    parser.add_argument("--output-dir", default="results/web", metavar="DIR", help="default: results/web")
    args = parser.parse_args(argv)
    folder = check_output_dir(args.output_dir)
    app = create_app([check_checkpoint_file(args.checkpoint)], face_detector=args.face_detector)
    with running(app) as url, chromium() as browser:
        take(browser, url, demo_files(), folder)
    return {"folder": str(folder)}


if __name__ == "__main__":
    run_script(main)
