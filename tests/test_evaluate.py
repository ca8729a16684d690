"""evaluate.py: what it writes, that it can be made again from the scores alone, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from datasets.listing.spec import Listing, Record
from datasets.transforms import Geometry
from models.registry import create_model
from tests.conftest import exit_and_stderr
from utils.checkpoints.file import save_checkpoint
from utils.errors import UserError
from utils.files import ROOT
from utils.scoring.table import read_scores, read_sidecar, sidecar_path

CONTRACT = """checkpoint model dataset split tier n_real n_fake auc auc_ci ap acc acc_ci real_acc fake_acc f1 eer
    tpr_at_fpr1 ece brier threshold unreadable""".split()
EXTRAS = (
    "ap_ci real_acc_ci fake_acc_ci f1_ci eer_ci tpr_at_fpr1_ci ece_ci brier_ci seen trained_on_tier generator".split()
)
THRESHOLD = 0.4
FEW = ["--n-boot", "50", "--threads", "1"]


def make_images(root: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(len(counts))
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(image).resize((36, 40)).save(root / folder / f"{number}.png")
    return root


def make_checkpoint(path: Path, seed: int = 0, **extra) -> Path:
    """A detector with random weights and scores all over [0, 1]."""
    torch.manual_seed(seed)
    detector = create_model("cnn_baseline", input_size=32)
    with torch.no_grad():
        detector.head.weight *= 200
    path.parent.mkdir(parents=True, exist_ok=True)
    description = {
        "model": "cnn_baseline",
        "model_args": {"input_size": 32},
        "geometry": Geometry("crop", 32).to_dict(),
        "thresholds": {"balanced": THRESHOLD, "fpr1": 0.9, "fpr01": 0.99},
        "data": [],
        "calibration": {"method": "temperature", "temperature": 2.0},
        "state_dict": detector.state_dict(),
    }
    save_checkpoint(path, {**description, **extra})
    return path


@pytest.fixture(autouse=True)
def figures(monkeypatch) -> list[str]:
    """The figures that are asked for; drawing them is tested once, in a separate process."""
    stems: list[str] = []
    monkeypatch.setattr("utils.evaluation.report.save_figure", lambda figure, stem: stems.append(Path(stem).name))
    return stems


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory) -> None:
    """Keep the scores of a test to that test."""
    monkeypatch.setattr(evaluate, "SCORE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the sets `faces` (two generators) and `wild`, and the checkpoint `net/best.pt`."""
    root = tmp_path_factory.mktemp("place")
    make_images(
        root / "faces",
        {"test/real": 9, "test/fake/gan": 6, "test/fake/diffusion": 5, "valid/real": 4, "valid/fake/gan": 4},
    )
    make_images(root / "wild", {"real": 5, "fake": 7})
    make_checkpoint(root / "net" / "best.pt")
    return root


def metrics(folder: Path) -> list[dict]:
    return json.loads((folder / "metrics.json").read_text())


def test_rows_tables_and_scores(place, tmp_path, capsys):
    argv = ["--checkpoint", str(place / "net"), "--data", str(place / "faces"), str(place / "wild"), *FEW]
    result = evaluate.main([*argv, "--output-dir", str(tmp_path)])
    assert result["exit_code"] == 0
    assert capsys.readouterr().out == (tmp_path / "metrics.md").read_text()
    rows = metrics(tmp_path)
    assert all(list(row)[: len(CONTRACT)] == CONTRACT and set(row) == {*CONTRACT, *EXTRAS} for row in rows)
    assert rows[:2] == result["rows"]
    identity = [(r["checkpoint"], r["dataset"], r["split"], r["generator"], r["n_real"], r["n_fake"]) for r in rows]
    assert identity == [
        ("net", "faces", "test", "all", 9, 11),
        ("net", "wild", "all", "all", 5, 7),
        ("net", "faces", "test", "diffusion", 9, 5),
        ("net", "faces", "test", "gan", 9, 6),
    ]
    assert all(row["threshold"] == THRESHOLD and row["tier"] == "clean" and row["unreadable"] == 0 for row in rows)
    for name in ("metrics", "generators"):
        assert {(tmp_path / f"{name}.{ending}").exists() for ending in ("csv", "md", "tex")} == {True}

    table = read_scores(tmp_path / "scores" / "net__faces__test.csv.gz")
    found = (file.relative_to(place / "faces") for file in (place / "faces" / "test").rglob("*.png"))
    assert sorted(table.path) == sorted(map(str, found))
    assert all((label == 1) == ("/fake/" in path) for label, path in zip(table.label, table.path, strict=True))
    assert table.p_fake == pytest.approx(1 / (1 + np.exp(-table.logit / 2)))  # calibrated
    assert 0 < table.p_fake.min() < THRESHOLD < table.p_fake.max() < 1
    assert rows[0]["acc"] == np.mean((table.p_fake >= THRESHOLD) == table.label)
    info = read_sidecar(tmp_path / "scores" / "net__faces__test.csv.gz")
    assert (info["checkpoint"], info["model"], info["n_images"]) == ("net", "cnn_baseline", 20)
    assert info["thresholds"]["fpr1"] == 0.9 and len(info["data_fingerprint"]) == 16


def test_report_is_made_again_from_scores_without_model_images_or_torch(place, tmp_path):
    shutil.copytree(place / "faces", tmp_path / "faces")
    shutil.copytree(place / "net", tmp_path / "net")
    first, again = tmp_path / "first", tmp_path / "again"
    argv = [
        "--checkpoint",
        str(tmp_path / "net"),
        "--data",
        str(tmp_path / "faces"),
        str(tmp_path / "faces@classes=fake"),
    ]
    result = evaluate.main([*argv, *FEW, "--output-dir", str(first)])
    shutil.rmtree(tmp_path / "faces")
    shutil.rmtree(tmp_path / "net")
    script = "import sys; sys.modules['torch'] = None; import evaluate; evaluate.main(sys.argv[1:])"
    subprocess.run(
        [sys.executable, "-c", script, "--from-scores", *result["scores"], *FEW, "--output-dir", str(again)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=800,
    )
    for name in ("metrics.json", *(f"{t}.{e}" for t in ("metrics", "generators") for e in ("csv", "md", "tex"))):
        assert (again / name).read_bytes() == (first / name).read_bytes(), name
    drawn = {str(file.relative_to(again)) for file in again.rglob("*") if file.suffix in (".pdf", ".png")}
    stems = ["roc", "precision_recall", "reliability", "coverage"]
    stems += [f"figures/{kind}__net__faces-{n}__clean" for kind in ("confusion", "scores") for n in (1, 2)]
    assert drawn == {f"{stem}.{ending}" for stem in stems for ending in ("pdf", "png")}
    assert all((again / file).stat().st_size > 1000 for file in drawn)


def test_intervals_repeat_and_can_be_left_out(place, tmp_path):
    argv = ["--checkpoint", str(place / "net"), "--data", str(place / "wild"), "--threads", "1"]
    one = evaluate.main([*argv, "--n-boot", "50", "--output-dir", str(tmp_path / "1")])["rows"]
    two = evaluate.main([*argv, "--n-boot", "50", "--output-dir", str(tmp_path / "2"), "--batch-size", "5"])["rows"]
    none = evaluate.main([*argv, "--n-boot", "0", "--output-dir", str(tmp_path / "3")])["rows"]
    assert one[0]["auc_ci"] == two[0]["auc_ci"] and one[0]["acc_ci"][0] <= one[0]["acc"] <= one[0]["acc_ci"][1]
    assert none[0]["auc"] == one[0]["auc"] and none[0]["auc_ci"] is None


def test_one_class_gets_the_figures_it_can_have(place, tmp_path, figures):
    argv = ["--checkpoint", str(place / "net"), "--data", f"{place / 'wild'}@classes=fake", *FEW]
    result = evaluate.main([*argv, "--output-dir", str(tmp_path)])
    row = result["rows"][0]
    assert (result["exit_code"], row["n_real"], row["n_fake"]) == (0, 0, 7)
    assert row["acc"] == row["fake_acc"] and row["fake_acc"] is not None
    assert [row[key] for key in ("auc", "auc_ci", "ap", "real_acc", "eer", "tpr_at_fpr1")] == [None] * 6
    assert figures == ["confusion__net__wild__all__clean", "scores__net__wild__all__clean"]


def test_names_that_collide_are_told_apart(place, tmp_path, figures, capsys):
    checkpoints = [
        make_checkpoint(tmp_path / part, n) for n, part in enumerate(("a/run/best.pt", "b/run/best.pt", "run-1.pt"))
    ]
    other = shutil.copytree(place / "wild", tmp_path / "elsewhere" / "wild")
    for file in (other / "fake").iterdir():
        Image.new("RGB", (40, 40), "grey").save(file)
    argv = ["--checkpoint", *map(str, checkpoints), "--data", str(place / "wild"), str(other)]
    result = evaluate.main([*argv, "--n-boot", "0", "--output-dir", str(tmp_path / "out")])
    names = [(row["checkpoint"], row["dataset"]) for row in result["rows"]]
    assert names == [(c, d) for c in ("run-2", "run-3", "run-1") for d in ("wild-1", "wild-2")]
    assert len(set(result["scores"])) == len(list((tmp_path / "out" / "scores").glob("*.csv.gz"))) == 6
    assert f"wild-2 is {other}" in capsys.readouterr().err
    assert len(figures) == len(set(figures)) == 4 + 2 * 6
    for file in result["scores"]:  # each file has the images that its name says
        wanted = str(other) if "wild-2" in file else str(place / "wild")
        assert read_sidecar(file)["root"] == wanted and not any(path.startswith("/") for path in read_scores(file).path)


def test_two_splits_of_a_set_keep_their_own_figures(place, tmp_path, figures):
    specs = [f"{place / 'faces'}@split={split}" for split in ("valid", "test")]
    argv = ["--checkpoint", str(place / "net"), "--data", *specs, "--n-boot", "0"]
    rows = evaluate.main([*argv, "--output-dir", str(tmp_path)])["rows"]
    assert [(row["dataset"], row["split"]) for row in rows] == [("faces", "valid"), ("faces", "test")]
    assert len(figures) == len(set(figures)) == 4 + 2 * 2


def test_unreadable_images_are_counted_listed_and_never_scored(place, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(place / "wild", tmp_path / "wild")
    broken = data / "fake" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    out = tmp_path / "out"
    argv = ["--checkpoint", place / "net", "--data", data, "--n-boot", "0", "--output-dir", out]
    code, error = exit_and_stderr(evaluate.main, argv, monkeypatch, capsys)
    assert code == 1 and f"unreadable: {broken}: " in error and "1 unreadable images" in error
    scores = out / "scores" / "net__wild__all.csv.gz"
    assert "fake/3.png" not in read_scores(scores).path and len(read_scores(scores)) == 11
    info = read_sidecar(scores)
    assert [item["path"] for item in info["unreadable"]] == ["fake/3.png"] and info["unreadable"][0]["reason"]
    assert info["n_images"] == 12
    assert [(row["unreadable"], row["n_fake"]) for row in metrics(out)] == [(1, 6)]
    code, _ = exit_and_stderr(
        evaluate.main, ["--from-scores", scores, "--n-boot", "0", "--output-dir", out], monkeypatch, capsys
    )
    assert code == 1

    for file in data.rglob("*.png"):
        file.write_bytes(b"")
    code, error = exit_and_stderr(evaluate.main, argv, monkeypatch, capsys)
    assert code == 2 and "none of 12 could be read" in error.splitlines()[-1]


def test_scores_without_their_json_file_use_one_half(place, tmp_path):
    argv = ["--checkpoint", str(place / "net"), "--data", str(place / "wild"), "--n-boot", "0"]
    result = evaluate.main([*argv, "--output-dir", str(tmp_path)])
    scores = Path(result["scores"][0])
    sidecar_path(scores).unlink()
    row = evaluate.main(["--from-scores", str(scores), "--n-boot", "0", "--output-dir", str(tmp_path / "b")])["rows"][0]
    table = read_scores(scores)
    assert row["checkpoint"] == sidecar_path(scores).stem == "net__wild__all"
    assert (row["model"], row["split"], row["threshold"]) == (None, None, 0.5)
    assert row["acc"] == np.mean((table.p_fake >= 0.5) == table.label)
    assert row["auc"] == result["rows"][0]["auc"]


def test_warns_when_a_checkpoint_was_trained_on_the_images(place, tmp_path, capsys):
    argv = ["--checkpoint", str(place / "net"), "--data", str(place / "wild"), "--n-boot", "0"]
    result = evaluate.main([*argv, "--output-dir", str(tmp_path / "a")])
    assert "was trained on" not in capsys.readouterr().err
    fingerprint = read_sidecar(result["scores"][0])["data_fingerprint"]
    seen = {"dataset": "renamed", "split": "train", "fingerprint": fingerprint, "n_real": 5, "n_fake": 7}
    checkpoint = make_checkpoint(tmp_path / "seen.pt", data=[seen])
    evaluate.main(["--checkpoint", str(checkpoint), *argv[2:], "--output-dir", str(tmp_path / "b")])
    assert "seen was trained on these very images of wild" in capsys.readouterr().err

    part = make_checkpoint(tmp_path / "part.pt", data=[{**seen, "dataset": name} for name in ("wild", "faces")])
    argv = ["--checkpoint", str(part), "--n-boot", "0", "--output-dir", str(tmp_path / "c"), "--data"]
    evaluate.main([*argv, str(place / "wild@limit=6"), str(place / "faces")])
    warnings = [line for line in capsys.readouterr().err.splitlines() if "was trained on" in line]
    assert len(warnings) == 1 and "trained on wild, probably also on some of these images" in warnings[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "expected either --data"),
        ("--checkpoint net", "expected either --data"),
        ("--checkpoint net --from-scores s.csv", "--checkpoint PT... only with --data"),
        ("--data wild --from-scores s.csv", "expected either --data"),
        ("--checkpoint absent.pt --data wild", "found none at 'absent.pt'; check the path"),
        ("--checkpoint wild --data wild", "found none at 'wild'"),
        ("--checkpoint empty.pt --data wild", "an empty file"),
        ("--checkpoint weights.pt --data wild", "bare weights"),
        ("--checkpoint net --data nowhere", "no such folder: nowhere"),
        ("--checkpoint net --data wild@split=train", "expected a train split"),
        ("--checkpoint net --data csv:list.csv", "label"),
        ("--checkpoint net --data wild --output-dir empty.pt", "a writable folder"),
        ("--checkpoint net --data wild --n-boot -1", "expected an integer in 0..1000000"),
        ("--checkpoint net --data wild --device tpu9", "--device"),
        ("--checkpoint net --data csv:twice.csv", "expected every image of 'csv:twice.csv' once, got "),
        ("--checkpoint net --data wild --subgroup absent.csv:age", "expected a CSV list, got absent.csv"),
        ("--from-scores absent.csv", "no such file"),
        ("--from-scores list.csv", "expected columns path,label"),
    ],
)
def test_bad_input_is_answered_in_one_line(flags, says, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("wild", "net"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "empty.pt").touch()
    torch.save({"head.weight": torch.zeros(2)}, tmp_path / "weights.pt")
    (tmp_path / "list.csv").write_text("path\nwild/real/0.png\nwild/fake/0.png\n")
    (tmp_path / "twice.csv").write_text(
        "path,label\nwild/real/0.png,real\nwild/fake/0.png,fake\nwild/real/0.png,real\n"
    )
    code, error = exit_and_stderr(evaluate.main, flags.split(), monkeypatch, capsys)
    assert code == 2 and error.count("\n") == 1 and says in error, error
    assert not (tmp_path / "results" / "evaluation" / "metrics.json").exists()


def test_records_without_a_label_are_refused(place, monkeypatch):
    listing = Listing("x", "all", [Record("a.png", 0, "real"), Record("b.png", None, "")], "0" * 16, "", ())
    monkeypatch.setattr(evaluate, "open_records", lambda spec, videos: listing)
    with pytest.raises(UserError, match="got 1 without"):
        evaluate.open_labelled(["wild"])
