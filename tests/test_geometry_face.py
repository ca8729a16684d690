"""Geometry face end to end: every script sees the same pixels of the same picture and says how it was framed."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import attack
import benchmark
import calibrate
import ensemble
import evaluate
import explain
import predict
import train
from datasets.decoding.images import read_image
from datasets.demo_set.fakes import photograph
from datasets.faces.boxes import with_faces
from datasets.faces.finder import FaceFinder
from datasets.listing.spec import open_records
from datasets.loading import ImageDataset
from datasets.perturbations import apply_tier, content_seed, move_box
from datasets.transforms import Geometry, TrainTransform, to_tensor
from tests.conftest import exit_and_stderr, write_image
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.scoring.table import read_scores, read_sidecar

pytestmark = pytest.mark.usefixtures("no_evaluation_figures")

FACE = Geometry("face", 32, margin=1.4)
FACELESS = "noise.png"
SEEDS = (2, 4, 5, 6, 9, 10, 11, 12)  # of generated portraits whose faces the cascade finds


@pytest.fixture(scope="module")
def portraits(tmp_path_factory) -> Path:
    """Generated faces away from the middle of larger pictures, and one picture without a face in each class."""
    folder = tmp_path_factory.mktemp("faces") / "portraits"
    seeds = itertools.cycle(SEEDS)
    for split, count in (("train", 4), ("valid", 3), ("test", 2)):
        for noise, name in enumerate(("real", "fake")):  # equal ones would tie, in some batches only
            write_image(folder / split / name / FACELESS, noise, False, 96, 160)
            for number in range(count):
                canvas = np.full((110, 170, 3), 90, np.uint8)
                portrait = photograph(np.random.default_rng(next(seeds)), 96).image
                canvas[10:106, 70 - 10 * number : 166 - 10 * number] = portrait
                cv2.imwrite(str(folder / split / name / f"{number}.png"), canvas[:, :, ::-1])
    return folder


@pytest.fixture
def face_checkpoint(tiny_checkpoint) -> Path:
    """The tiny checkpoint with a geometry that frames faces."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    save_checkpoint(tiny_checkpoint, {**checkpoint, "geometry": FACE.to_dict()})
    return tiny_checkpoint


def logits_of(checkpoint: Path, folder: Path, tier: str = "clean") -> dict[str, float]:
    """The logits that pictures must have: found on the picture as it is, framed after the degradation."""
    detector, finder, logits = load_detector(checkpoint)[0], FaceFinder(), {}
    for file in sorted(folder.rglob("*.png")):
        image = read_image(file)
        faces = finder(image)
        box = move_box(faces[0].box if faces else None, tier, image.shape, content_seed(image))
        with torch.inference_mode():
            logits[str(file)] = detector(to_tensor(FACE(apply_tier(image, tier), box))[None]).item()
    return logits


def test_all_entry_points_see_the_same_pixels(portraits, face_checkpoint, tmp_path, capsys):
    pytest.importorskip("flask")
    pytest.importorskip("waitress")
    pytest.importorskip("onnxruntime")
    import serve

    folder = portraits / "test"
    wanted = logits_of(face_checkpoint, folder)
    assert len(set(wanted.values())) > 4
    listing = with_faces(open_records(f"{portraits}", "test"), FaceFinder())
    for item in map(ImageDataset(listing.records, TrainTransform(FACE, "none")).__getitem__, range(len(wanted))):
        image, _, index = item
        with torch.inference_mode():
            logit = load_detector(face_checkpoint)[0](image[None]).item()
        assert logit == pytest.approx(wanted[listing.records[index].path], abs=1e-6)

    exported = tmp_path / "tiny.onnx"
    benchmark.main(["--checkpoint", str(face_checkpoint), "--export", "onnx", "--output", str(exported)])
    for file in (face_checkpoint, exported):
        output = tmp_path / "rows.json"
        flags = ["--whole", "--format", "json", "--output", str(output)]
        predict.main(["--checkpoint", str(file), str(folder), *flags])
        rows = json.loads(output.read_text())
        assert {row["path"]: row["logit"] for row in rows} == pytest.approx(wanted, abs=1e-5)
        assert {row["path"] for row in rows if row["framed"] == "whole"} >= {
            f"{folder}/{c}/{FACELESS}" for c in ("real", "fake")
        }
        assert {row["finder"] for row in rows} == {"cascade"}

    flags = ["--tiers", "clean", "web", "--severity", "crop", "--no-score-cache", "--n-boot", "0"]
    out = tmp_path / "evaluation"
    evaluate.main(["--checkpoint", str(face_checkpoint), "--data", str(portraits), *flags, "--output-dir", str(out)])
    table = read_scores(next((out / "scores").glob("*.csv.gz")))
    for tier in ("clean", "web", "crop-0.75"):
        own = {
            f"{portraits}/{table.path[row]}": table.logit[row] for row in np.flatnonzero(np.array(table.tier) == tier)
        }
        assert own == pytest.approx(logits_of(face_checkpoint, folder, tier), abs=1e-5)

    app = serve.create_app([face_checkpoint], threads=1, page=tmp_path)
    client, whole = app.test_client(), {"whole": "true"}
    data = {"images": [(io.BytesIO(Path(file).read_bytes()), file) for file in wanted], **whole}
    served = client.post("/api/predict", data=data).get_json()["images"]
    shown = [
        client.post(f"/api/{what}", data={"image": (io.BytesIO(Path(file).read_bytes()), "a.png"), **whole}).get_json()
        for what in ("explain", "stress")
        for file in wanted
    ]
    app.extensions["service"].close()
    assert [image["logit"] for image in served] == pytest.approx([*wanted.values()], abs=1e-5)
    found = [answer.get("original", answer)["logit"] for answer in shown]
    assert found == pytest.approx([*wanted.values()] * 2, abs=1e-5)
    assert {image["framed"] for image in served} == {"face", "whole"} and shown[0]["finder"] == "cascade"
    assert all(len(image["faces"]) == (image["framed"] == "face") for image in served)


def test_every_picture_without_a_face_is_counted_and_listed(portraits, face_checkpoint, tmp_path, monkeypatch, capsys):
    flags = ["--checkpoint", str(face_checkpoint)]
    out = tmp_path / "evaluation"
    evaluate.main(
        [
            *flags,
            "--data",
            str(portraits),
            "--score-cache",
            str(tmp_path / "cache"),
            "--n-boot",
            "0",
            "--output-dir",
            str(out),
        ]
    )
    assert "portraits test: 4 of 6 pictures show a face (cascade); the others are used whole" in capsys.readouterr().err
    info = read_sidecar(next((out / "scores").glob("*.csv.gz")))
    assert info["finder"] == "cascade" and info["without_face"] == [f"test/fake/{FACELESS}", f"test/real/{FACELESS}"]
    predict.main([*flags, str(portraits / "test"), "--whole"])
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["framed"] for row in rows].count("whole") == 2 and {row["finder"] for row in rows} == {"cascade"}
    assert printed.err.endswith("2 without a face, scored as a whole\n")
    explain.main([*flags, str(portraits / "test"), "--output-dir", str(tmp_path / "maps")])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["framed"] for row in rows].count("whole") == 2 and {row["finder"] for row in rows} == {"cascade"}


def test_a_run_trains_validates_tests_and_is_searched_once(portraits, tmp_path, monkeypatch, capsys, no_curves):
    monkeypatch.setenv("DEEPFAKE_CACHE", str(tmp_path / "cache"))
    searched = []
    find = FaceFinder.__call__
    monkeypatch.setattr(FaceFinder, "__call__", lambda self, image: (searched.append(1), find(self, image))[1])
    flags = "--model cnn --model-args width=4 --image-size 32 --epochs 2 --batch-size 4 --threads 1"
    run = [
        *flags.split(),
        "--geometry",
        "face",
        "--margin",
        "1.2",
        "--data",
        str(portraits),
        "--output-dir",
        str(tmp_path / "run"),
    ]
    result = train.main(run)
    assert len(searched) == len(list(portraits.rglob("*.png"))) and len(result["rows"]) == 1
    checkpoint = load_checkpoint(result["checkpoint"])
    assert checkpoint["geometry"] == {"mode": "face", "size": 32, "resize_to": None, "margin": 1.2}
    train.main([*run, "--overwrite", "--workers", "1"])
    assert len(searched) == len(list(portraits.rglob("*.png")))
    assert "valid: 6 of 8 pictures show a face" in capsys.readouterr().err
    calibrated = calibrate.main(
        ["--checkpoint", result["checkpoint"], "--data", str(portraits), "--output-dir", str(tmp_path / "new")]
    )
    assert calibrated["rows"][0]["auc"] == pytest.approx(result["rows"][0]["auc"])


def test_attacks_see_framed_faces(portraits, face_checkpoint, tmp_path, monkeypatch):
    flags = ["--checkpoint", str(face_checkpoint), "--data", str(portraits)]
    small = "--attacks fgsm --eps 1/255 --threads 1".split()
    rows = attack.main([*flags, *small, "--output-dir", str(tmp_path / "attacks"), "--export", str(tmp_path / "png")])[
        "rows"
    ]
    detector, _ = load_detector(face_checkpoint)
    p_fake = detector.operating_point.p_fake(np.array([*logits_of(face_checkpoint, portraits / "test").values()]))
    right = np.mean((p_fake >= detector.operating_point.threshold()) == [True, True, True, False, False, False])
    assert rows[0]["clean_acc"] == pytest.approx(right)


@pytest.mark.parametrize(
    ("other", "frame"),
    [
        (Geometry("face", 32, margin=1.4), FACE),
        (Geometry("face", 48, margin=1.4), Geometry("face", 48, margin=1.4)),
        (Geometry("face", 32, margin=2.0), Geometry("face", 46, margin=2.0)),
        (Geometry("crop", 32), Geometry("face", 37, margin=1.6)),
    ],
)
def test_a_member_that_frames_faces_can_be_joined_with_others(
    portraits, face_checkpoint, tmp_path, other, frame, capsys
):
    checkpoint = load_checkpoint(face_checkpoint)
    save_checkpoint(tmp_path / "other.pt", {**checkpoint, "geometry": other.to_dict()})
    members = ["--checkpoint", str(face_checkpoint), str(tmp_path / "other.pt"), "--data", str(portraits)]
    result = ensemble.main([*members, "--output-dir", str(tmp_path / "joint")])
    detector, _ = load_detector(result["checkpoint"])
    assert detector.geometry == frame and len(result["rows"]) == 1
    assert (
        "would see more of a picture alone; here all members see 1.6 times the face" in capsys.readouterr().err
    ) == (other.mode == "crop")
    image = read_image(portraits / "test" / "real" / "0.png")
    box = FaceFinder()(image)[0].box
    with torch.inference_mode():
        alone = load_detector(face_checkpoint)[0](to_tensor(FACE(image, box))[None])
        joint = detector.evidence(to_tensor(detector.geometry(image, box))[None])
    assert joint[0, 0].item() == pytest.approx(alone.item() / 2.0, abs=1e-6 if frame == FACE else 0.2)


def test_flags_that_find_no_use_are_one_line(portraits, face_checkpoint, tmp_path, capsys, monkeypatch):
    scores = tmp_path / "scores.csv"
    scores.write_text("path,label,dataset,generator,tier,logit,p_fake\n")
    folder, wrong = ["--output-dir", str(tmp_path / "out")], tmp_path / "wrong.onnx"
    wrong.write_bytes(b"no network")
    crop = tmp_path / "crop.pt"
    checkpoint = load_checkpoint(face_checkpoint)
    save_checkpoint(crop, {**checkpoint, "geometry": Geometry("crop", 32).to_dict()})
    for main, flags, message in (
        (
            evaluate.main,
            ["--from-scores", str(scores), "--faces", *folder],
            "expected --data with --faces, got --from-scores",
        ),
        (evaluate.main, ["--from-scores", str(scores), "--face-detector", str(wrong), *folder], "expected --data with"),
        (evaluate.main, ["--from-scores", str(scores), "--tiers", "web", *folder], "expected --data with --tiers, got"),
        (
            calibrate.main,
            [
                "--checkpoint",
                str(face_checkpoint),
                "--from-scores",
                str(scores),
                "--face-detector",
                str(wrong),
                *folder,
            ],
            "expected pictures",
        ),
        (train.main, ["--margin", "1.3", *folder], "expected --geometry face with --margin"),
        (
            train.main,
            ["--geometry", "face", "--resize-to", "300", *folder],
            "expected --geometry crop with --resize-to",
        ),
        (
            train.main,
            ["--geometry", "face", "--face-detector", str(wrong), "--data", str(portraits), *folder],
            "YuNet ONNX file, OpenCV cannot use",
        ),
        (
            predict.main,
            [str(portraits), "--checkpoint", str(face_checkpoint), "--face-detector", str(wrong)],
            "YuNet ONNX file",
        ),
        (predict.main, [str(portraits), "--face-detector", str(wrong.with_name("absent.onnx"))], "found no file"),
        (
            predict.main,
            [str(portraits), "--checkpoint", str(crop), "--face-detector", "cascade"],
            "expected --faces, or",
        ),
    ):
        code, err = exit_and_stderr(main, flags, monkeypatch, capsys)
        assert code == 2 and message in err and len(err.splitlines()) == 1, flags
