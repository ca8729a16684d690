"""Finding faces: their boxes, and the views that a detector gets of them."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

from datasets.demo_set.fakes import photograph
from datasets.faces.finder import YUNET_FILE, Face, FaceFinder, face_views, highest_of_each, open_finder
from datasets.faces.framing import Box
from datasets.faces.search import MAX_FACES, distinct
from datasets.transforms import Geometry
from utils.errors import UserError
from utils.files import ROOT

TWO = [Face(Box(0.1, 0.1, 0.3, 0.5), 0.9), Face(Box(0.6, 0.2, 0.2, 0.4), 0.8)]
YUNET = ROOT.parent / "shared" / "weights" / "face_detection_yunet_320.onnx"


@pytest.fixture(params=["cascade", str(YUNET)], ids=["cascade", "yunet"])
def finder(request) -> FaceFinder:
    if request.param != "cascade" and not YUNET.is_file():
        pytest.skip(f"no YuNet at {YUNET}")
    return FaceFinder(request.param)


def portrait(size: int, seed: int = 2) -> np.ndarray:
    """A generated face in the middle of a picture, about half of its side."""
    return photograph(np.random.default_rng(seed), size).image


def middle(face: Face) -> tuple[float, float]:
    return face.box.left + face.box.width / 2, face.box.top + face.box.height / 2


def test_the_box_of_a_portrait(finder):
    (face,) = finder(portrait(256))
    assert middle(face) == pytest.approx((0.5, 0.5), abs=0.12)
    assert 0.3 < max(face.box.width, face.box.height) < 0.75
    reduced = finder(portrait(256)[::2, ::2])[0]
    assert reduced.box == pytest.approx(face.box, abs=0.08)


def test_pictures_without_a_face(finder):
    noise = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    for image in (noise, np.zeros((16, 16, 3), np.uint8), np.full((16, 320, 3), 200, np.uint8)):
        assert finder(image) == []
        views, faces = face_views(image, Geometry("face", 32), finder)
        assert faces == [] and np.array_equal(views, [Geometry("face", 32)(image)])


def test_the_largest_of_ten_faces_is_framed(finder):
    street = np.full((400, 1000, 3), 128, np.uint8)
    for number in range(9):
        street[280:380, 20 + 105 * number : 120 + 105 * number] = portrait(100, number)
    street[10:266, 400:656] = portrait(256)
    found = finder(street)
    assert len(found) <= MAX_FACES and middle(found[0]) == pytest.approx((0.528, 0.345), abs=0.05)
    views, faces = face_views(street, Geometry("face", 64), finder)
    assert faces == found[:1] and len(views) == 1


def test_faces_cut_by_the_border_and_of_20_px_are_framed_inside_the_picture(finder):
    whole = portrait(256)
    for image in (whole[:, 100:], whole[100:], whole[:, :150], cv2.resize(whole, (40, 40)), whole[70:190, 70:190]):
        views, _ = face_views(image, Geometry("face", 48), finder)
        assert views.shape == (1, 48, 48, 3) and views.std() > 5


def test_yunet_finds_what_the_border_cuts_and_what_fills_the_picture():
    if not YUNET.is_file():
        pytest.skip(f"no YuNet at {YUNET}")
    finder, whole = FaceFinder(str(YUNET)), portrait(256)
    for image in (whole[:, 100:], whole[:, :160], whole[70:190, 70:190], cv2.resize(whole, (40, 40))):
        assert len(finder(image)) == 1


def test_the_finder_is_that_of_the_flag_the_variable_or_the_cache(monkeypatch, tmp_path):
    file = tmp_path / "own.onnx"
    monkeypatch.setattr(FaceFinder, "_search", lambda self: None)
    assert open_finder().file == "cascade"
    monkeypatch.setenv("DEEPFAKE_CACHE", str(tmp_path))
    (tmp_path / YUNET_FILE).touch()
    assert open_finder().file == str(tmp_path / YUNET_FILE)
    monkeypatch.setenv("DEEPFAKE_FACE_DETECTOR", str(file))
    assert (open_finder().file, open_finder().name) == (str(file), "yunet")
    assert open_finder("cascade").name == "cascade" and open_finder(None, is_needed=False) is None
    with pytest.raises(UserError, match="expected --faces, or a checkpoint of --geometry face"):
        open_finder(str(file), is_needed=False)


def test_overlapping_boxes_are_one_face():
    boxes = [(0, 0, 10, 10, 1.0), (1, 1, 10, 10, 0.9), (30, 0, 10, 10, 0.5)]
    assert distinct(boxes) == [boxes[0], boxes[2]]


def test_cascade_finds_the_face_of_a_portrait():
    data = pytest.importorskip("skimage.data")
    image = np.ascontiguousarray(data.astronaut())
    found = FaceFinder()(image)
    boxes = [face.box for face in found]
    assert any(box.left < 0.44 < box.left + box.width and box.top < 0.21 < box.top + box.height for box in boxes)
    assert FaceFinder()(np.zeros((20, 20, 3), np.uint8)) == []


@pytest.mark.parametrize("content", [None, b"no model"])
def test_a_file_that_is_no_detector_is_a_user_error(tmp_path, content):
    file = tmp_path / "yunet.onnx"
    if content:
        file.write_bytes(content)
    with pytest.raises(UserError, match="YuNet ONNX file"):
        FaceFinder(str(file))


def test_a_finder_survives_pickling_and_another_process(monkeypatch):
    finder = FaceFinder()
    image = np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut())
    found = finder(image)
    assert pickle.loads(pickle.dumps(finder))(image) == found
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert finder(image) == found and finder._own.process == -1


def test_views_are_those_of_the_faces_or_of_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    crop, framed = Geometry("crop", 32), Geometry("face", 32)
    views, faces = face_views(image, crop, lambda _: TWO, every_face=True)
    assert faces == TWO and np.array_equal(views, [crop.of_face(image, face.box) for face in TWO])
    views, faces = face_views(image, framed, lambda _: TWO)
    assert faces == TWO[:1] and np.array_equal(views, [framed(image, TWO[0].box)])
    assert len(face_views(image, framed, lambda _: TWO, every_face=True)[0]) == 2
    for geometry, finder in ((crop, lambda _: TWO), (framed, lambda _: []), (crop, None)):
        views, faces = face_views(image, geometry, finder)
        assert faces == [] and np.array_equal(views, [geometry(image)])


def test_the_highest_face_of_each_picture_counts():
    logits = np.array([[1, 2, 4, 3, 0, -1], [5, 6, 7, 8, -2, -3.0]])
    pictures, highest = highest_of_each(np.array([3, 3, 4, 4, 7, 7]), logits)
    assert pictures.tolist() == [3, 4, 7] and highest.tolist() == [[2, 4, 0], [6, 8, -2]]
    assert highest_of_each(np.empty(0, int), np.empty((2, 0)))[1].shape == (2, 0)
