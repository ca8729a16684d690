"""Every face of a picture: predict.py, evaluate.py and serve.py judge the same faces alike."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import evaluate
import predict
from datasets.decoding.images import read_image
from datasets.faces.boxes import find_faces
from datasets.faces.finder import Face, FaceFinder
from datasets.faces.framing import Box
from datasets.listing.records import Record
from datasets.listing.spec import open_records
from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from tests.clips import write_framing
from tests.conftest import write_image
from utils.scoring.prediction import Predictor, predict_records
from utils.scoring.rows import COLUMNS, FACE_COLUMNS

pytestmark = pytest.mark.usefixtures("no_evaluation_figures")

TWO = [Face(Box(0.1, 0.1, 0.3, 0.5), 0.9), Face(Box(0.6, 0.2, 0.2, 0.4), 0.8)]


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

    first = [None]
    monkeypatch.setattr(FaceFinder, "__call__", lambda _, image: TWO if image[0, 0].sum() != first[0] else [])
    # Worker processes of the server would not see this finder.
    monkeypatch.setattr("utils.serving.workers.WorkerPool.run", lambda _, function, *arguments: function(*arguments))
    return first


def test_each_picture_is_decoded_once_and_the_first_is_scored_at_once(photos, two_faces, tiny_checkpoint, monkeypatch):
    from utils.checkpoints.file import load_detector
    from utils.scoring.scorer import Job, Settings, score, stream

    (photos / "fake/broken.png").write_bytes(b"no image")
    records = open_records(f"{photos}").records
    read = []
    monkeypatch.setattr("datasets.decoding.images.read_image", lambda path: (read.append(path), read_image(path))[1])
    detector = load_detector(tiny_checkpoint)[0]
    records = find_faces(records, FaceFinder(), None)
    read.clear()
    settings = Settings(batch_size=1, every_face=True)
    indices, logits, _ = next(iter(stream([Job(detector)], records, settings)))
    assert len(read) == 1 and indices.tolist() == [0] and logits.shape == (1, 1)
    read.clear()
    found = score([Job(detector), Job(detector, "web")], records, settings)
    assert len(read) == 5 and found[0].indices.tolist() == [0, 1, 3, 4] and len(found[0].unreadable) == 1
    alone = score([Job(detector)], records, Settings(batch_size=3, workers=2, every_face=True))[0]
    assert alone.logits == pytest.approx(found[0].logits, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_predictions_hold_each_face_with_its_box(photos, two_faces, batch_size, whole):
    two_faces[0] = read_image(photos / "real/1.png")[0, 0].sum()
    paths = [str(photos / name) for name in ("real/0.png", "real/1.png", "none.png", "fake/2.png")]
    records = [Record(path, None, "") for path in paths]
    predictor = Predictor(Geometry("crop", 32), OperatingPoint(), lambda views: views.mean((1, 2, 3)))
    batches = list(predict_records(predictor, records, batch_size, 2, FaceFinder(), True, whole))
    assert np.concatenate([indices for indices, _, _ in batches]).tolist() == [0, 0, 1, 3, 3]
    means, *boxes, confidence = np.concatenate([columns for _, columns, _ in batches], axis=1)
    expected = [predictor.geometry.of_face(read_image(paths[3]), face.box).mean() for face in TWO]
    assert means[3:] == pytest.approx(expected)
    alone = predictor.geometry(read_image(paths[1])).mean() if whole else np.nan
    assert means[2] == pytest.approx(alone, nan_ok=True)
    assert np.transpose(boxes)[0] == pytest.approx([9.6, 6.4, 28.8, 32]) and np.isnan(np.transpose(boxes)[2]).all()
    assert confidence == pytest.approx([0.9, 0.8, np.nan, 0.9, 0.8], nan_ok=True)
    assert [found for _, _, unreadable in batches for found in unreadable] == [(2, "file not found")]


def test_each_face_has_a_row_and_the_most_suspicious_decides(photos, two_faces, tiny_checkpoint, capsys):
    two_faces[0] = read_image(photos / "real/1.png")[0, 0].sum()
    flags = ["--checkpoint", str(tiny_checkpoint), str(photos), "--threads", "1", "--faces"]
    result = predict.main(flags)
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert list(rows[0]) == [*COLUMNS, "framed", "finder", *FACE_COLUMNS]
    for path, own in itertools.groupby(rows, lambda row: row["path"]):
        own = list(own)
        if path.endswith("real/1.png"):
            (row,) = own
            assert (row["verdict"], row["framed"], row["finder"]) == ("no face", "", "cascade")
            assert not any(row[name] for name in ("p_fake", "logit", *FACE_COLUMNS))
            continue
        assert {row["face"] for row in own} == {"1", "2"} and {row["framed"] for row in own} == {"face"}
        assert float(own[0]["logit"]) >= float(own[1]["logit"])
        (first,) = (row for row in own if row["face"] == "1")
        assert [first[name] for name in FACE_COLUMNS[1:]] == ["10", "6", "29", "32", "0.9"]
    firsts = [next(own)["verdict"] for _, own in itertools.groupby(rows, lambda row: row["path"])]
    assert result["verdicts"] == {name: firsts.count(name) for name in predict.VERDICTS}
    assert result["n_images"] == 4 and result["exit_code"] == 0 and "1 no face; 0 unreadable" in printed.err
    predict.main([*flags, "--format", "json", "--metadata"])
    rows = json.loads(capsys.readouterr().out)
    faceless = next(row for row in rows if row["path"].endswith("real/1.png"))
    assert faceless | {"metadata": 0} == dict.fromkeys(("p_fake", "logit", "framed")) | {
        "path": faceless["path"], "verdict": "no face", "finder": "cascade", "metadata": 0
    }  # fmt: skip
    predict.main([*flags, "--whole"])
    printed = capsys.readouterr()
    (row,) = (row for row in csv.DictReader(io.StringIO(printed.out)) if row["path"].endswith("real/1.png"))
    assert row["framed"] == "whole" and row["verdict"] != "no face" and "1 without a face" in printed.err
    two_faces[0] = None
    capsys.readouterr()
    predict.main(flags[:-1])
    assert capsys.readouterr().out.startswith("path,p_fake,verdict,logit\n")


def test_pictures_with_more_faces_than_the_one_scored_are_counted(photos, two_faces, tiny_checkpoint, tmp_path, capsys):
    two_faces[0] = read_image(photos / "real/1.png")[0, 0].sum()
    flags = ["--checkpoint", write_framing(tiny_checkpoint, tmp_path), str(photos), "--threads", "1"]
    predict.main(flags)
    assert "; 3 with more faces than the one scored (--faces scores all)\n" in capsys.readouterr().err
    predict.main([*flags, "--faces"])
    assert "more faces" not in capsys.readouterr().err


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
            "--whole",
            "--format",
            "json",
            "--output",
            str(tmp_path / "out.json"),
            *files,
        ]
    )
    predicted: dict[str, float] = {}  # the first row of a picture decides
    for row in json.loads((tmp_path / "out.json").read_text()):
        predicted.setdefault(row["path"], row["logit"])
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
    app = serve.create_app([tiny_checkpoint], every_face=True, threads=1, page=tmp_path)
    data = {"images": [(io.BytesIO(Path(file).read_bytes()), file) for file in files], "whole": "true"}
    served = app.test_client().post("/api/predict", data=data).get_json()["images"]
    app.extensions["service"].close()
    assert list(predicted) == files and sorted(f"{photos}/{path}" for path in table.path) == files
    assert [len(image["faces"]) for image in served] == [0, 2, 2, 2]
    for image, file in zip(served, files, strict=True):
        assert image["logit"] == pytest.approx(predicted[file], abs=1e-5)
        row = table.path.index(file.removeprefix(f"{photos}/"))
        assert table.logit[row] == pytest.approx(predicted[file], abs=1e-5)
