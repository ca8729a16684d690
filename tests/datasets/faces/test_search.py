"""The search for faces, and borders: frames around a picture do not change what a detector sees."""

from __future__ import annotations

import csv
import io

import cv2
import numpy as np
import pytest

import predict
from datasets.decoding.borders import inside_borders, up_to_borders
from datasets.demo_set.fakes import photograph
from datasets.faces.finder import FaceFinder
from datasets.faces.search import LARGE
from datasets.transforms import Geometry
from tests import screens
from utils.files import ROOT

YUNET = ROOT.parent / "shared" / "weights" / "face_detection_yunet_320.onnx"
FRAMED = Geometry("face", 64)
PEOPLE = (2, 4, 5, 6, 9, 10, 11, 12)  # generated portraits whose faces the cascade finds
FRAMES = {"white border": screens.white_border, "letterbox": screens.letterbox, "phone": screens.phone}


@pytest.fixture(scope="module", params=["cascade", str(YUNET)], ids=["cascade", "yunet"])
def finder(request) -> FaceFinder:
    if request.param != "cascade" and not YUNET.is_file():
        pytest.skip(f"no YuNet at {YUNET}")
    return FaceFinder(request.param)


def portrait(person: int, size: int = 256) -> np.ndarray:
    return photograph(np.random.default_rng(person), size).image


def view(image: np.ndarray, finder: FaceFinder) -> np.ndarray:
    """What a detector that frames faces sees; the image must show one face."""
    (face,) = finder(image)
    return FRAMED(image, face.box)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("tight", [False, True], ids=["portrait", "tight crop"])
@pytest.mark.parametrize("kind", ["white border", "letterbox"])
def test_plain_borders_change_nothing_that_is_seen(kind, tight, finder):
    for person in PEOPLE[:3]:
        picture = portrait(person)[48:208, 48:208] if tight else portrait(person)
        seen = view(FRAMES[kind](picture), finder)
        assert difference(seen, view(picture, finder)) < (2 if tight else 0.01)  # the square may be a pixel off


@pytest.mark.parametrize("tight", [False, True], ids=["portrait", "tight crop"])
def test_bars_of_a_phone_are_not_seen(tight, finder):
    for person in PEOPLE[:3]:
        picture = portrait(person)[48:208, 48:208] if tight else portrait(person)
        image = screens.phone(picture)
        seen = view(image, finder)
        assert difference(seen, view(picture, finder)) < 12  # the box differs by a few pixels
        assert (seen == 250).all(2).mean() < 0.01


def test_each_portrait_of_a_grid_is_found(finder):
    pictures = [portrait(PEOPLE[number % len(PEOPLE)]) for number in range(12)]
    image = screens.grid(pictures, 4)
    height, width = image.shape[:2]
    faces = finder(image)
    cells = {
        (
            int((face.box.top + face.box.height / 2) * height / 268),
            int((face.box.left + face.box.width / 2) * width / 268),
        )
        for face in faces
    }
    assert len(cells) >= 11 and len(faces) <= 13


def test_a_small_picture_in_a_large_plain_one_is_found(finder):
    image = screens.page(portrait(2), 3000, 2000, 245, 1700, 1200)
    assert difference(view(image, finder), view(portrait(2), finder)) < 0.01


def test_borders_are_left_out_from_all_sides_and_within_each_other():
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    letterboxed = screens.page(picture, 40, 100, 0, 0, 20)
    assert inside_borders(picture) == (0, 0, 40, 60)
    assert inside_borders(letterboxed) == (0, 20, 40, 60)
    assert inside_borders(screens.page(letterboxed, 200, 300, 255, 30, 50)) == (30, 70, 40, 60)
    assert inside_borders(screens.page(picture, 200, 300, 255, 160, 240)) == (160, 240, 40, 60)
    assert inside_borders(np.full((50, 70, 3), 9, np.uint8)) == (0, 0, 50, 70)
    noisy = screens.page(picture, 200, 300, 200, 30, 50).astype(int) + np.random.default_rng(1).integers(
        -2, 3, (200, 300, 1)
    )
    assert inside_borders(np.clip(noisy, 0, 255).astype(np.uint8)) == (30, 50, 40, 60)


def test_the_picture_around_a_place_ends_at_plain_lines_not_at_other_pictures():
    rng = np.random.default_rng(0)
    image = screens.grid(list(rng.integers(0, 256, (6, 40, 60, 3), np.uint8)), 3)
    assert up_to_borders(image, (80, 100, 4, 9)) == (64, 84, 40, 60)
    assert up_to_borders(image[20:], (-5, -3, 60, 50)) == (0, 0, 84, 72)  # with the lines in that place
    assert up_to_borders(rng.integers(0, 256, (300, 900, 3), np.uint8), (9, 9, 9, 9)) == (0, 0, 300, 900)


def test_pictures_of_ordinary_size_are_searched_once(monkeypatch):
    """Detectors were trained on such pictures: their boxes must never change."""
    sides = []
    finder = FaceFinder()
    search = finder._search()
    monkeypatch.setattr(
        FaceFinder, "_search", lambda _: lambda image: (sides.append(max(image.shape)), search(image))[1]
    )
    framed = screens.page(portrait(2), 400, LARGE, 255, 50, 200)
    finder(framed)
    assert sides == [320]
    sides.clear()
    finder(cv2.resize(portrait(2), (1024, 1024)))
    assert sides == [320]  # the face is large
    finder(screens.grid([portrait(2)] * 12, 4))
    assert max(sides) == 640


def test_the_released_detector_gives_the_same_verdict_in_any_frame(tmp_path, capsys):
    for person in PEOPLE[:2]:
        picture = portrait(person)
        for kind, image in {"alone": picture, **{kind: frame(picture) for kind, frame in FRAMES.items()}}.items():
            cv2.imwrite(str(tmp_path / f"{person}-{kind}.png"), image[:, :, ::-1])
    predict.main([str(tmp_path), "--face-detector", "cascade", "--threads", "1"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for alone, *framed in (rows[:4], rows[4:]):
        assert [row["verdict"] for row in framed] == [alone["verdict"]] * 3
        assert [float(row["logit"]) for row in framed] == pytest.approx([float(alone["logit"])] * 3, abs=0.02)
