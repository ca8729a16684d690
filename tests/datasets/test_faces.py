"""datasets/faces.py: boxes, crops, and the same scores in predict.py, evaluate.py and serve.py."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

import datasets.faces as faces
import evaluate
import predict
from datasets.faces import Face, distinct, face_records, open_finder, with_margin
from datasets.images import read_image, read_record
from datasets.records import Record
from tests.conftest import make_table, write_image
from utils.errors import UserError
from utils.evaluation.face_scores import highest_faces

TWO = [Face(0, 0, 40), Face(44, 8, 36)]


@pytest.fixture
def photos(make_folder) -> Path:
    """A folder of pictures that are large enough for two faces."""
    folder = make_folder("photos", {})
    for index, name in enumerate(("real", "real", "fake", "fake")):
        write_image(folder / name / f"{index}.png", index, name == "fake", height=64, width=96)
    return folder


@pytest.fixture
def two_faces(monkeypatch):
    """A finder that sees two faces in every picture but the first, in which it sees none."""

    def opened(file):
        return lambda image: TWO if image[0, 0].sum() != first[0] else []

    first = [None]
    monkeypatch.setattr(faces, "open_finder", opened)
    monkeypatch.setattr("utils.evaluation.face_scores.open_finder", opened)
    return first


def test_margin_is_square_and_stays_inside():
    assert with_margin((40, 30, 20, 30, 0.9), 100, 100) == Face(26, 21, 48, 0.9)
    corner = with_margin((0, 0, 50, 50, -1), 100, 200)
    assert (corner.left, corner.top, corner.side, corner.confidence) == (0, 0, 80, None)
    wide = with_margin((10, 10, 80, 80, 0.9), 100, 120)
    assert wide.crop(np.zeros((100, 120, 3))).shape == (100, 120, 3)


def test_overlapping_boxes_are_one_face():
    boxes = [(0, 0, 10, 10, 1.0), (1, 1, 10, 10, 0.9), (30, 0, 10, 10, 0.5)]
    assert distinct(boxes) == [boxes[0], boxes[2]]


def test_cascade_finds_the_face_of_a_portrait():
    data = pytest.importorskip("skimage.data")
    image = np.ascontiguousarray(data.astronaut())
    found = open_finder(None)(image)
    assert any(face.left < 225 < face.left + face.side and face.top < 110 < face.top + face.side for face in found)
    assert open_finder(None)(np.zeros((20, 20, 3), np.uint8)) == []


@pytest.mark.parametrize("content", [None, b"no model"])
def test_a_file_that_is_no_detector_is_a_user_error(tmp_path, content):
    file = tmp_path / "yunet.onnx"
    if content:
        file.write_bytes(content)
    with pytest.raises(UserError, match="YuNet ONNX file"):
        open_finder(str(file))


def test_a_record_of_a_face_reads_as_its_region(photos):
    path = str(photos / "real" / "0.png")
    found = list(face_records([Record(path, 0, "real"), Record("missing.png", 1, "gan")], lambda image: TWO))
    assert [(number, record.path, record.region) for number, record in found] == [
        (0, path, (0, 0, 40, 40)),
        (0, path, (44, 8, 80, 44)),
        (1, "missing.png", None),
    ]
    np.testing.assert_array_equal(read_record(found[1][1]), read_image(path)[8:44, 44:80])
    assert read_record(Record(path, 0, "real")).shape == (64, 96, 3)


def test_the_highest_face_of_each_picture_and_tier_is_kept():
    table = make_table(["a", "a", "b", "b"] * 2, [0] * 8, [1, 2, 4, 3, 0, -1, 5, 6])
    table.tier = ["clean"] * 4 + ["web"] * 4
    assert highest_faces(table).logit.tolist() == [2, 4, 0, 6]


def test_all_entry_points_give_the_same_scores(photos, two_faces, tiny_checkpoint, tmp_path):
    pytest.importorskip("flask")
    pytest.importorskip("waitress")
    import serve

    files = sorted(map(str, photos.rglob("*.png")))
    two_faces[0] = read_image(files[0])[0, 0].sum()
    predict.main(
        [
            "--checkpoint",
            str(tiny_checkpoint),
            "--faces",
            "--format",
            "json",
            "--output",
            str(tmp_path / "out.json"),
            *files,
        ]
    )
    predicted = {row["path"]: row["logit"] for row in json.loads((tmp_path / "out.json").read_text())}
    evaluate.main(
        [
            "--checkpoint",
            str(tiny_checkpoint),
            "--data",
            f"{photos}",
            "--faces",
            "--n-boot",
            "0",
            "--output-dir",
            str(tmp_path / "evaluation"),
        ]
    )
    from utils.scoring.table import read_scores

    table = read_scores(next((tmp_path / "evaluation" / "scores").glob("*.csv.gz")))
    app = serve.create_app([tiny_checkpoint], face_detector="cascade", threads=1, page=tmp_path)
    data = {"images": [(io.BytesIO(Path(file).read_bytes()), file) for file in files]}
    served = app.test_client().post("/api/predict", data=data).get_json()["images"]
    app.extensions["service"].batcher.close()
    assert list(predicted) == files and sorted(f"{photos}/{path}" for path in table.path) == files
    assert [len(image["faces"]) for image in served] == [0, 2, 2, 2]
    for image, file in zip(served, files, strict=True):
        assert image["logit"] == pytest.approx(predicted[file], abs=1e-5)
        row = table.path.index(file.removeprefix(f"{photos}/"))
        assert table.logit[row] == pytest.approx(predicted[file], abs=1e-5)
