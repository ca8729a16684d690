"""Take the screenshots of the page with the released detector and generated faces only.

  python -m tests_web.screenshots

writes results/web/{desktop,phone,dark,video}.png. Requires the built page (`make web`), Chromium and Playwright; draws
a small demo set on first use.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from serve import create_app
from tests.clips import scene, walk, write_clip
from tests_web.browser import choose, chromium, running
from utils.args import check_output_dir, make_parser, run_script
from utils.checkpoint_files import DEFAULT_CHECKPOINT, check_checkpoint_file

DESKTOP = {"width": 1180, "height": 900}
PHONE = {"width": 390, "height": 844}
DEMO_SET = "demo@n=240,size=256,split=train"
PEOPLE = 6  # in a video conference
TILE, GAP = 172, 16  # px
FAKE = "upsampled/000000"  # one of them, which the detector suspects most at this size


def conference() -> np.ndarray:
    """Portraits of the demo set side by side, one of them a fake: RGB."""
    from datasets.decoding.images import read_image
    from datasets.listing.spec import open_records

    records = open_records(DEMO_SET).records
    paths = [record.path for record in records if record.generator == "real"][: PEOPLE - 1]
    paths.insert(1, next(record.path for record in records if FAKE in record.path))
    picture = np.full((2 * TILE + 3 * GAP, 3 * TILE + 4 * GAP, 3), 48, np.uint8)
    for number, path in enumerate(paths):
        top, left = (GAP + at * (TILE + GAP) for at in divmod(number, 3))
        tile = cv2.resize(read_image(path), (TILE, TILE), interpolation=cv2.INTER_AREA)
        picture[top : top + TILE, left : left + TILE] = tile
    return picture


def draw_files(folder: Path) -> list[str]:
    """Write the pictures and the video that a visitor uploads; returns their paths."""
    pictures = {
        "conference.png": conference(),
        "portrait.png": scene((0, 40), width=176, height=136),
        "landscape.png": np.linspace((180, 200, 220), (90, 120, 80), 200).astype(np.uint8)[:, None].repeat(320, 1),
    }
    for name, pixels in pictures.items():
        cv2.imwrite(str(folder / name), pixels[:, :, ::-1])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    clip = write_clip(folder / "clip.mp4", walk(6, 0, 2))
    return [*(str(folder / name) for name in (*pictures, "broken.jpg")), str(clip)]


def take(browser: Any, url: str, files: list[str], folder: Path) -> None:
    """Write every screenshot."""
    for name, viewport, scheme in (("desktop", DESKTOP, "light"), ("phone", PHONE, "light"), ("dark", DESKTOP, "dark")):
        page = browser.new_page(viewport=viewport, device_scale_factor=1, color_scheme=scheme)
        page.set_default_timeout(120_000)
        page.goto(url)
        choose(page, files)
        page.locator(".heat").wait_for()
        page.screenshot(path=folder / f"{name}.png", full_page=name == "desktop")
        if name == "desktop":
            page.locator(".thumb").last.click()
            page.locator(".detail").screenshot(path=folder / "video.png")
        page.close()


def main(argv=None) -> dict:
    """Serve the checkpoint and take the screenshots."""
    parser = make_parser(__doc__, "tests_web/screenshots.py")
    parser.add_argument("--checkpoint", metavar="PT", help=f"run folder, file or export {DEFAULT_CHECKPOINT}")
    parser.add_argument("--face-detector", metavar="FILE", help="YuNet as an ONNX file")
    parser.add_argument("--output-dir", default="results/web", metavar="DIR", help="default: results/web")
    args = parser.parse_args(argv)
    folder = check_output_dir(args.output_dir)
    app = create_app([check_checkpoint_file(args.checkpoint)], face_detector=args.face_detector)
    with running(app) as url, chromium() as browser, tempfile.TemporaryDirectory() as files:
        take(browser, url, draw_files(Path(files)), folder)
    app.extensions["service"].close()
    return {"folder": str(folder)}


if __name__ == "__main__":
    run_script(main)
