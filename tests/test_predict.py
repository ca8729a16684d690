"""predict.py: every input gets one row or one reason, in order, and a user's mistake one line."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import predict
from datasets.listing.spec import Record
from models.registry import create_model
from tests.predicting import csv_rows, refused, run
from utils.checkpoints.file import load_detector, save_checkpoint
from utils.scoring.rows import COLUMNS, write_json
from utils.scoring.scorer import Job, Settings, score

pytestmark = pytest.mark.usefixtures("in_empty_folder")

FITTED = {"balanced": 0.5, "fpr1": 0.7, "fpr01": 0.9, "unsure_low": 0.4, "unsure_high": 0.6}


def write_checkpoint(path, thresholds=None, weights=None):
    torch.manual_seed(0)
    detector = create_model("cnn_baseline", input_size=32)
    with torch.no_grad():
        detector.head.weight *= 300  # random weights hardly tell images apart; this spreads the logits
    save_checkpoint(
        path,
        {
            "model": "cnn_baseline",
            "model_args": {"input_size": 32},
            "state_dict": weights(detector.state_dict()) if weights else detector.state_dict(),
            "geometry": detector.geometry.to_dict(),
            "thresholds": thresholds,
            "calibration": {"method": "temperature", "temperature": 2.0},
        },
    )
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.pt", FITTED)


def pixels(seed, height=40, width=48, channels=3):
    """Smooth random colours, so that images differ in what a pooled network sees."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, channels)


def write_images(*names):
    for seed, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(name)
    return list(names)


# ------------------------------------------------------------------------------------------ scores and verdicts


def test_logits_and_p_fake_are_those_of_the_evaluation_loop(checkpoint, capsys):
    names = write_images(*[f"photos/{number}.png" for number in range(7)])
    assert run(checkpoint, "photos", "--batch-size", "3")["exit_code"] == 0
    rows = csv_rows(capsys.readouterr().out)
    detector, _ = load_detector(checkpoint)
    scores = score([Job(detector)], [Record(name, None, "") for name in names], Settings(3))[0]
    assert [row["path"] for row in rows] == names
    assert [float(row["logit"]) for row in rows] == scores.logits.tolist()
    assert [float(row["p_fake"]) for row in rows] == detector.operating_point.p_fake(scores.logits).tolist()
    assert len(set(scores.logits.tolist())) == 7  # else equality would say nothing


@pytest.mark.parametrize("size", [1, 3, 100])
def test_logits_do_not_depend_on_the_batch_size(checkpoint, capsys, size):
    write_images(*[f"photos/{number}.png" for number in range(5)])
    run(checkpoint, "photos")
    whole = [float(row["logit"]) for row in csv_rows(capsys.readouterr().out)]
    run(checkpoint, "photos", "--batch-size", str(size))
    assert [float(row["logit"]) for row in csv_rows(capsys.readouterr().out)] == pytest.approx(whole, rel=1e-4)


def test_loader_processes_give_the_same_rows(checkpoint, capsys):
    write_images(*[f"photos/{number}.png" for number in range(5)])
    run(checkpoint, "photos", "--batch-size", "2")
    alone = capsys.readouterr().out
    run(checkpoint, "photos", "--batch-size", "2", "--workers", "2")
    assert capsys.readouterr().out == alone


def expected_verdict(p_fake, low, high):
    return "fake" if p_fake >= high else "real" if p_fake < low else "unsure"


@pytest.mark.parametrize(
    ("flags", "low", "high"),
    [
        ([], 0.4, 0.6),
        (["--threshold", "balanced"], 0.5, 0.5),
        (["--threshold", "fpr1"], 0.7, 0.7),
        (["--threshold", "fpr01"], 0.9, 0.9),
        (["--threshold", "0.25"], 0.25, 0.25),
        (["--threshold", "0"], 0, 0),
    ],
)
def test_thresholds(checkpoint, capsys, flags, low, high):
    write_images(*[f"photos/{number}.png" for number in range(60)])
    result = run(checkpoint, "photos", *flags)
    rows = csv_rows(capsys.readouterr().out)
    assert [row["verdict"] for row in rows] == [expected_verdict(float(row["p_fake"]), low, high) for row in rows]
    assert result["verdicts"] == {name: sum(row["verdict"] == name for row in rows) for name in predict.VERDICTS}
    if not flags:
        assert min(result["verdicts"][name] for name in ("real", "fake", "unsure")) > 0  # else the band is not tested


def test_checkpoint_without_thresholds(tmp_path, capsys):
    write_images("photos/a.png", "photos/b.png")
    bare = write_checkpoint(tmp_path / "bare.pt")
    assert "number" in refused(bare, "photos", "--threshold", "fpr1")
    assert capsys.readouterr().out == ""
    run(bare, "photos")
    captured = capsys.readouterr()
    rows = csv_rows(captured.out)
    assert [row["verdict"] for row in rows] == [expected_verdict(float(row["p_fake"]), 0.5, 0.5) for row in rows]
    assert "0.5" in captured.err


@pytest.mark.parametrize("value", ["banana", "1.5", "-0.1", "nan", "fpr"])
def test_bad_thresholds_are_usage_errors(checkpoint, capsys, value):
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, ".", f"--threshold={value}")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert value in error and "balanced, fpr1, fpr01" in error and error.count("\n") == 1


# ------------------------------------------------------------------------------------------------ odd and bad files


def write_odd_images():
    """Images that must be scored although they are unusual; returns their names."""
    folder = Path("odd")
    folder.mkdir()
    rgb = Image.fromarray(pixels(0))
    rgb.resize((16, 16)).save(folder / "sixteen.png")
    rgb.resize((16, 320)).save(folder / "narrow.png")
    rgb.convert("L").save(folder / "grey.jpg")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels(0, channels=4), "RGBA").save(folder / "alpha.png")
    cv2.imwrite(str(folder / "deep.png"), pixels(0).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    frames = [Image.fromarray(pixels(seed)) for seed in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    rgb.save(folder / "png-inside.jpg", format="PNG")
    rgb.save(folder / "no-suffix", format="JPEG")
    return sorted(str(path) for path in folder.iterdir())


def write_bad_files():
    """Files that are no images; returns their names."""
    folder = Path("bad")
    folder.mkdir()
    buffer = io.BytesIO()
    Image.fromarray(pixels(1)).save(buffer, format="JPEG")
    (folder / "truncated.jpg").write_bytes(buffer.getvalue()[:-200])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("not an image either")
    return sorted(str(path) for path in folder.iterdir())


def test_odd_images_are_scored(checkpoint, capsys):
    names = write_odd_images()
    assert run(checkpoint, *names) == {"n_images": 11, "n_unreadable": 0, "n_left_out": 0, "exit_code": 0} | {
        "verdicts": predict_counts(rows := csv_rows(capsys.readouterr().out))
    }
    assert [row["path"] for row in rows] == names


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (15, 400), (2000, 20), (20, 401), (3000, 30)])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_tiny_images_and_strips_get_no_verdict(checkpoint, capsys, size, form):
    Image.fromarray(pixels(0)).resize(size).save("odd.img", format=form)
    write_images("good.png")
    result = run(checkpoint, "odd.img", "good.png")
    printed = capsys.readouterr()
    assert result["n_unreadable"] == result["exit_code"] == 1
    assert [row["path"] for row in csv_rows(printed.out)] == ["good.png"]
    kind = "small" if min(size) < 16 else "narrow"
    assert f"unreadable: odd.img: too {kind} for a verdict: {size[0]} x {size[1]} px" in printed.err


def predict_counts(rows):
    return {name: sum(row["verdict"] == name for row in rows) for name in predict.VERDICTS}


def test_same_pixels_get_the_same_logit_in_any_container(checkpoint, capsys):
    rgb = Image.fromarray(pixels(0))
    rgb.save("plain.png")
    rgb.save("png-inside.jpg", format="PNG")
    rgb.save("animated.png", save_all=True, append_images=[Image.fromarray(pixels(1))])
    cv2.imwrite("deep.png", pixels(0)[:, :, ::-1].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 3
    rgb.rotate(180).save("turned.png", exif=turned)
    run(checkpoint, "plain.png", "png-inside.jpg", "animated.png", "deep.png", "turned.png", "--batch-size", "1")
    assert len({row["logit"] for row in csv_rows(capsys.readouterr().out)}) == 1


def test_bad_files_are_listed_and_never_scored(checkpoint, capsys):
    bad, good = write_bad_files(), write_images("a.png", "b.png")
    result = run(checkpoint, good[0], *bad, good[1], "--batch-size", "2")
    captured = capsys.readouterr()
    assert [row["path"] for row in csv_rows(captured.out)] == good
    assert (result["n_images"], result["n_unreadable"], result["exit_code"]) == (6, 4, 1)
    reasons = {"bad/text.jpg": "not an image", "bad/zero.png": "empty file", "bad/truncated.jpg": "truncated"}
    for path, reason in (reasons | {"bad/notes.txt": "not an image"}).items():
        assert f"unreadable: {path}: {reason}\n" in captured.err
    assert captured.err.splitlines()[-1].startswith("6 images: ")
    assert captured.err.splitlines()[-1].endswith("; 4 unreadable")


def test_json_holds_readable_and_unreadable_in_order(checkpoint, capsys):
    write_bad_files()
    write_images("a.png", "b.png", "c.png")
    inputs = ["a.png", "bad/zero.png", "b.png", "bad/text.jpg", "c.png"]
    assert run(checkpoint, *inputs, "--format", "json", "--batch-size", "1")["exit_code"] == 1
    elements = json.loads(capsys.readouterr().out)
    assert [element["path"] for element in elements] == inputs
    assert [set(element) for element in elements] == [
        {"path", "error"} if "bad" in path else {"path", "p_fake", "verdict", "logit"} for path in inputs
    ]
    run(checkpoint, "a.png", "b.png", "c.png", "--batch-size", "1")
    for row, element in zip(csv_rows(capsys.readouterr().out), elements[::2], strict=True):
        assert row == {key: str(value) for key, value in element.items()}


@pytest.mark.parametrize(("form", "read"), [("csv", csv_rows), ("json", json.loads)])
def test_output_parses_when_nothing_is_readable(checkpoint, capsys, form, read):
    names = write_bad_files()
    assert run(checkpoint, *names, "--format", form)["exit_code"] == 1
    assert len(read(capsys.readouterr().out)) == (0 if form == "csv" else 4)


def test_json_of_no_batches_is_an_empty_array():
    stream = io.StringIO()
    write_json(stream, iter([]), COLUMNS)
    assert json.loads(stream.getvalue()) == []


def test_refused_checkpoints(checkpoint, tmp_path):
    write_images("a.png")
    Path("empty.pt").write_bytes(b"")
    Path("cut.pt").write_bytes(Path(checkpoint).read_bytes()[:5000])
    for name, reason in {
        "gone.pt": "found none",
        "empty.pt": "empty",
        "cut.pt": "truncated",
        ".": "found none",
    }.items():
        assert reason in refused(name, "a.png")
