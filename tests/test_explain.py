"""explain.py through its command line: what it writes, what it refuses, what it survives."""

import csv
import io
import json
import os
import weakref

import numpy as np
import pytest

import explain
from datasets.decoding.images import read_image
from models.registry import create_model
from tests.conftest import write_image
from utils.checkpoints.file import save_checkpoint
from utils.errors import UserError

TINY = {"occlusion": {"grid": 2}}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("utils.explanations.faithfulness.cells.COMPARED", 2)
    monkeypatch.setattr("utils.explanations.faithfulness.cells.table_options", lambda names: TINY)


def run(*words):
    return explain.main([*map(str, words), "--threads", "1"])


def test_an_unreadable_image_among_many_is_listed_and_the_others_are_explained(tiny_checkpoint, tmp_path, capsys):
    write_image(tmp_path / "in" / "fake" / "wide.png", 1, True, height=40, width=70)
    long = "t" * 251  # with its suffix, as long as a file name can be
    write_image(tmp_path / "in" / "fake" / f"{long}.png", 2, True, height=16, width=17)
    write_image(tmp_path / "in" / "fake" / "speck.png", 2, True, height=7, width=5)
    (tmp_path / "in" / "fake" / "broken.png").write_bytes(b"no image")
    result = run("--checkpoint", tiny_checkpoint, tmp_path / "in", "--contact-sheet", "--output-dir", tmp_path / "out")
    assert result["exit_code"] == 1 and result["n_unreadable"] == 2
    out, err = capsys.readouterr()
    assert "broken.png: not an image" in err and "speck.png: too small for a verdict" in err
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["path"].rsplit("/", 1)[1] for row in rows] == [f"{long}.png", "wide.png"]
    assert {row["method"] for row in rows} == {"gradcam"}
    found = {file.name for file in (tmp_path / "out").iterdir()}
    stems = ("wide", long[:180], "contact_sheet", "average_maps")
    assert found == {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png")} | {
        "wide__gradcam.png",
        f"{long[:180]}__gradcam.png",
    }
    import cv2

    assert cv2.imread(str(tmp_path / "out" / "wide__gradcam.png")).shape == (40, 70, 3)


def test_existing_files_are_never_replaced_silently(tiny_checkpoint, tmp_path):
    write_image(tmp_path / "a.png", 1, True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    flags = ("--checkpoint", tiny_checkpoint, tmp_path / "a.png", "--output-dir", tmp_path / "out")
    with pytest.raises(UserError, match="--overwrite"):
        run(*flags)
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    assert run(*flags, "--overwrite", "--methods", "gradcam", "occlusion")["exit_code"] == 0
    assert (tmp_path / "out" / "comparison.png").exists()


def test_mistakes_are_named(tiny_checkpoint, tmp_path, capsys):
    write_image(tmp_path / "a.png", 1, True)
    start = ("--checkpoint", tiny_checkpoint, tmp_path / "a.png", "--output-dir", tmp_path / "out")
    with pytest.raises(UserError, match="did you mean hirescam"):
        run(*start, "--methods", "hirescan")
    with pytest.raises(UserError, match=r"got 'trunk\.7'; it has trunk"):
        run(*start, "--layer", "trunk.7")
    with pytest.raises(SystemExit):
        run("--checkpoint", tiny_checkpoint)
    assert "PATH" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("no image")
    assert run(*start[:3], tmp_path / "notes.txt", *start[3:])["exit_code"] == 1
    assert "notes.txt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*start, "--limit", 2)
    assert "expected --limit with --faithfulness only" in capsys.readouterr().err
    for flags, says in (
        (("--faithfulness", "--data", "demo", "--contact-sheet"), "expected --contact-sheet with PATH... only"),
        (
            ("--from-raw", "out", "--target", "fake", "--layer", "trunk"),
            "expected no --target, --layer with --from-raw",
        ),
    ):
        with pytest.raises(SystemExit):
            run(*flags)
        assert says in capsys.readouterr().err


@pytest.fixture
def classical_checkpoint(tmp_path):
    model_args = {"features": "dct", "input_size": 32}
    detector = create_model("logistic_regression", **model_args)
    x = np.random.default_rng(0).normal(size=(20, len(detector.feature_names()))).astype(np.float32)
    detector.fit((x, np.arange(20) % 2), (x, np.arange(20) % 2), seed=0)
    description = {"model": "logistic_regression", "model_args": model_args, "state_dict": detector.state_dict()}
    geometry = {"mode": "crop", "size": 32, "resize_to": None}
    save_checkpoint(
        tmp_path / "best.pt", {**description, "geometry": geometry, "thresholds": None, "calibration": None}
    )
    return tmp_path / "best.pt"


def test_a_classical_detector_shows_its_features_and_refuses_gradients(classical_checkpoint, tmp_path):
    write_image(tmp_path / "a.png", 1, True)
    flags = ("--checkpoint", classical_checkpoint, tmp_path / "a.png", "--output-dir", tmp_path / "out")
    (row,) = run(*flags)["rows"]
    assert (row["method"], row["target"]) == ("features", "both") and (tmp_path / "out" / "a__features.pdf").exists()
    with pytest.raises(UserError, match="use --methods features occlusion superpixels"):
        run(*flags, "--overwrite", "--methods", "gradcam")
    with pytest.raises(UserError, match="expected a method that draws maps with --contact-sheet, got features"):
        run(*flags, "--overwrite", "--contact-sheet")


def test_names_of_many_kinds_are_drawn_and_printed(
    tiny_checkpoint, classical_checkpoint, tmp_path, monkeypatch, rendered
):
    """Not only text: bytes that are not UTF-8, and what matplotlib would read as a formula."""
    folder = tmp_path / "$\\q$\udcff"
    for number, name in enumerate(("bad\udcff.png", "$\\q$.png")):
        write_image(tmp_path / "a.png", number, True)
        folder.mkdir(exist_ok=True)
        (tmp_path / "a.png").rename(folder / name)
    for checkpoint, flags in ((tiny_checkpoint, ["--contact-sheet"]), (classical_checkpoint, [])):
        stdout = io.TextIOWrapper(io.BytesIO(), "utf-8")
        monkeypatch.setattr("sys.stdout", stdout)
        out = tmp_path / checkpoint.parent.name
        assert run("--checkpoint", checkpoint, folder, *flags, "--output-dir", out / "out")["exit_code"] == 0
        stdout.flush()
        assert b"bad\xff.png" in stdout.buffer.getvalue()
        assert all(file.stat().st_size > 1000 for file in (out / "out").rglob("*.pdf"))


class Counter:
    """Read images and count how many of them are alive at once."""

    def __init__(self):
        self.alive = self.most = 0

    def __call__(self, path):
        image = read_image(path)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self.drop)
        return image

    def drop(self):
        self.alive -= 1


def test_features_of_many_images_need_the_memory_of_one(classical_checkpoint, tmp_path, monkeypatch):
    for index in range(6):
        write_image(tmp_path / "in" / f"{index}.png", index, True)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    reader = Counter()
    monkeypatch.setattr("utils.explanations.methods.features.read_image", reader)
    result = run("--checkpoint", classical_checkpoint, tmp_path / "in", "--output-dir", tmp_path / "out")
    assert len(result["rows"]) == 6 and result["n_unreadable"] == 1 and reader.most <= 2


def test_maps_of_many_images_need_the_memory_of_a_batch(tiny_checkpoint, tmp_path, monkeypatch):
    for index in range(8):
        write_image(tmp_path / "in" / f"{index}.png", index, True, height=300, width=300)
    reader = Counter()
    monkeypatch.setattr("utils.explanations.images.read_image", reader)
    flags = ("--checkpoint", tiny_checkpoint, tmp_path / "in", "--output-dir", tmp_path / "out", "--batch-size", 2)
    assert len(run(*flags, "--methods", "gradcam", "hirescam")["rows"]) == 16 and reader.most <= 5


def test_faithfulness_keeps_its_cells_and_makes_the_tables_of_them(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = "demo@n=60,size=64,generator=blended,split=train"
    flags = (
        "--checkpoint",
        tiny_checkpoint,
        "--data",
        data,
        "--limit",
        8,
        "--faithfulness",
        "--methods",
        "gradcam",
        "occlusion",
        "--batch-size",
        4,
        "--output-dir",
        "out",
    )
    first = run(*flags)
    rows = {row["method"]: row for row in first["rows"]}
    assert first["exit_code"] == 0 and list(rows) == ["gradcam", "occlusion", "random", "centre", "edges"]
    assert rows["gradcam"]["n"] == 8 and rows["gradcam"]["n_mask"] == 4 == rows["gradcam"]["n_grid"]
    assert rows["gradcam"]["n_random_weights"] == 2 and np.isfinite(rows["gradcam"]["random_weights_road"])
    for name in ("faithfulness", "localisation"):
        assert all((tmp_path / "out" / f"{name}.{kind}").exists() for kind in ("csv", "md", "tex"))
    facts = json.loads(next((tmp_path / "out" / "raw").glob("*.json")).read_text())
    assert facts["command"].startswith("python explain.py") and facts["n_images"] == 8 and facts["hardware"]
    table = (tmp_path / "out" / "faithfulness.csv").read_bytes()
    monkeypatch.setattr("utils.explanations.faithfulness.report.CellMeter", None)  # nothing is measured again
    run(*flags)
    assert (tmp_path / "out" / "faithfulness.csv").read_bytes() == table
    with pytest.raises(UserError, match="that make maps with --faithfulness, got features"):
        run(*flags, "--methods", "features")
    rebuilt = run("--from-raw", "out", "--output-dir", "again")
    assert (tmp_path / "again" / "faithfulness.csv").read_bytes() == table and len(rebuilt["rows"]) == 5
    with pytest.raises(UserError, match="no raw/"):
        run("--from-raw", "again", "--output-dir", "third")
    with pytest.raises(UserError, match="other settings"):
        run(*flags, "--seed", 5)
    masks = {mask: mask.stat().st_mtime_ns for mask in tmp_path.rglob("masks/train/*.png")}
    for mask in masks:
        mask.touch()
    with pytest.raises(UserError, match="other settings"):
        run(*flags)
    for mask, written in masks.items():
        os.utime(mask, ns=(written, written))
    monkeypatch.setattr("utils.explanations.faithfulness.report.code_digest", lambda *patterns: "other code")
    with pytest.raises(UserError, match="other settings or code"):
        run(*flags)
