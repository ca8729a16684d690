"""calibrate.py: new thresholds and calibration, the same weights, nothing from the test split."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import calibrate
from datasets.listing.spec import open_records
from models.operating_point import OperatingPoint
from tests.conftest import exit_and_stderr, make_table
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.errors import UserError
from utils.evaluation.evaluate import Candidate, origin
from utils.evaluation.operating_point import fit_operating_point
from utils.scoring.scorer import Job, score, score_table
from utils.scoring.table import ScoreTable, read_scores, write_scores, write_sidecar


def test_weights_stay_and_the_operating_point_is_new(tiny_checkpoint, image_folder, tmp_path, capsys):
    before = load_checkpoint(tiny_checkpoint)
    flags = f"--checkpoint {tiny_checkpoint} --data {image_folder} --output-dir {tmp_path}/new --threads 1"
    result = calibrate.main(flags.split())
    after = load_checkpoint(result["checkpoint"])
    assert result["exit_code"] == 0
    assert all(torch.equal(value, after["state_dict"][key]) for key, value in before["state_dict"].items())
    assert after["thresholds"] != before["thresholds"]
    assert after["metrics"]["valid"][0]["n_real"] == 4
    assert after["data"] == before["data"] and after["fitted_on"] == ["faces"]
    assert [(entry["dataset"], entry["split"]) for entry in after["train_args"]["calibrated_on"]] == [
        ("faces", "valid")
    ]
    assert after["train_args"]["calibrated_by"].startswith("python calibrate.py --checkpoint ")
    assert load_checkpoint(tiny_checkpoint)["thresholds"] == before["thresholds"]
    assert capsys.readouterr().out.splitlines()[-1] == f"checkpoint {tmp_path}/new/best.pt"
    with pytest.raises(UserError, match="expected no checkpoint in"):
        calibrate.main(flags.split())
    shutil.rmtree(image_folder / "train")
    again = load_checkpoint(calibrate.main(flags.replace("/new", "/again").split())["checkpoint"])
    assert again["thresholds"] == after["thresholds"], "training images are not needed"


def test_the_test_images_do_not_matter(tiny_checkpoint, image_folder, tmp_path):
    flags = f"--checkpoint {tiny_checkpoint} --data {image_folder} --threads 1 --calibration isotonic --output-dir"
    first = load_checkpoint(calibrate.main([*flags.split(), f"{tmp_path}/a"])["checkpoint"])
    for record in open_records(str(image_folder), "test").records[1:-1]:
        (tmp_path / record.path).unlink()
    second = load_checkpoint(calibrate.main([*flags.split(), f"{tmp_path}/b"])["checkpoint"])
    assert second["thresholds"] == first["thresholds"]
    assert second["calibration"] == first["calibration"]
    assert second["metrics"]["test"][0]["n_real"] == 1


def test_images_count_as_the_tiers_deliver_them(tiny_checkpoint, image_folder, tmp_path):
    flags = ["--checkpoint", str(tiny_checkpoint), "--data", str(image_folder), "--threads", "1"]
    detector, _ = load_detector(tiny_checkpoint)
    records = open_records(str(image_folder), "valid").records
    scores = score([Job(detector), Job(detector, "web")], records)
    as_is, delivered = (score_table(records, one, OperatingPoint(), "images", "any") for one in scores)
    wanted = {"clean": [as_is], "web": [delivered], "clean web": [as_is, delivered]}
    aucs = set()
    for tiers, tables in wanted.items():
        folder = str(tmp_path / tiers.replace(" ", "-"))
        result = calibrate.main([*flags, "--tiers", *tiers.split(), "--output-dir", folder])
        found = load_checkpoint(result["checkpoint"])
        fitted = fit_operating_point(tables)
        assert (found["calibration"], found["thresholds"]) == (fitted.calibration, fitted.thresholds)
        aucs.add((found["metrics"]["valid"][0]["auc"], found["metrics"]["valid"][0]["tier"]))
    assert len(aucs) == 1 and aucs.pop()[1] == "clean"  # the metrics are of the images as they are
    assert fit_operating_point([as_is]) != fit_operating_point([delivered])
    with pytest.raises(UserError, match="expected --tiers of clean, web"):
        calibrate.main([*flags, "--tiers", "wbe", "--output-dir", str(tmp_path / "no")])


def test_a_set_that_a_detector_was_only_calibrated_on_is_unseen(tiny_checkpoint):
    """Checkpoints of earlier versions list the calibration data next to the training data."""
    detector, checkpoint = load_detector(tiny_checkpoint)
    sets = [("a", "train"), ("a", "valid"), ("b", "valid")]
    checkpoint["data"] = [{"dataset": name, "split": split} for name, split in sets]
    assert origin(Candidate("tiny", detector, checkpoint, "digest"))["trained_on"] == ["a"]


def scores_of(name, label, centre, folder, tier="common", factor=1, **info):
    """Write the scores of a source of one class, as a detector gave them that was not trained on it."""
    rng = np.random.default_rng(len(name))
    table = make_table([f"{i}.jpg" for i in range(80)], [label] * 80, factor * rng.normal(centre, 1, 80), tier, name)
    write_scores(folder / f"{name}.csv.gz", table)
    write_sidecar(folder / f"{name}.csv.gz", **{"checkpoint": "run", "trained_on": ["other"], **info})
    return str(folder / f"{name}.csv.gz")


def test_verdicts_for_sources_that_were_left_out(tiny_checkpoint, tmp_path, capsys):
    files = [scores_of(name, *rest, tmp_path) for name, *rest in (("stock", 0, -2), ("web", 0, 0), ("sdxl", 1, 2))]
    flags = ["--checkpoint", str(tiny_checkpoint), "--from-scores", *files]
    result = calibrate.main([*flags, "--output-dir", f"{tmp_path}/new"])
    found, before = load_checkpoint(result["checkpoint"]), load_checkpoint(tiny_checkpoint)
    assert all(torch.equal(value, found["state_dict"][key]) for key, value in before["state_dict"].items())
    point = fit_operating_point([read_scores(file) for file in files])
    assert OperatingPoint.from_checkpoint(found) == point and found["fitted_on"] == ["stock", "web", "sdxl"]
    assert found["train_args"]["calibrated_on"][1:] == [
        {"dataset": "web", "split": "left-out", "n_real": 80, "n_fake": 0},
        {"dataset": "sdxl", "split": "left-out", "n_real": 0, "n_fake": 80},
    ]
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"stock real n=80 called_fake=0\.0\d\d unsure=0\.\d{3}", lines[0])
    assert len(lines) == 4 and lines[-1] == f"checkpoint {tmp_path}/new/best.pt"
    assert sum(row["fake"] for row in result["rows"][:2]) / 2 <= 0.03 < result["rows"][2]["fake"]
    with pytest.raises(UserError, match="expected scores of the tier web, got common"):
        calibrate.main([*flags, "--tiers", "web", "--output-dir", f"{tmp_path}/no"])
    again = ["--checkpoint", result["checkpoint"], *flags[2:], "--output-dir"]
    calibrate.main([*again, f"{tmp_path}/again"])  # the scores may be those of the checkpoint itself
    own = {"method": "temperature", "temperature": 2.0}
    again[3] = scores_of("stock", 0, -2, tmp_path, calibration=own)
    with pytest.raises(UserError, match=r"expected a checkpoint as it was trained, got .*, which was calibrated on"):
        calibrate.main([*again, f"{tmp_path}/no"])


def test_runs_and_checkpoint_are_related_by_their_calibrations(tiny_checkpoint, tmp_path):
    """A run whose logits are three times as large, and calibrated as such, changes nothing."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    scale = {"method": "temperature", "temperature": 2.0, "bias": 0.5}
    checkpoint.pop("format_version")
    save_checkpoint(tiny_checkpoint, {**checkpoint, "calibration": scale})
    points = []
    for factor in (1, 3):
        own = {"method": "temperature", "temperature": float(factor)}
        files = [
            scores_of(name, label, centre, tmp_path / str(factor), factor=factor, calibration=own)
            for name, label, centre in (("stock", 0, -2), ("web", 0, 0), ("sdxl", 1, 2))
        ]
        flags = ["--checkpoint", str(tiny_checkpoint), "--from-scores", *files, "--output-dir", f"{tmp_path}/c{factor}"]
        points.append(OperatingPoint.from_checkpoint(load_checkpoint(calibrate.main(flags)["checkpoint"])))
    assert dict(points[0].thresholds) == pytest.approx(dict(points[1].thresholds))
    table = ScoreTable.join([read_scores(file) for file in files])
    raw = (table.logit / 3 - 0.5) * 2  # what the checkpoint would have said: the same p_fake under its calibration
    assert points[0].calibration == pytest.approx(fit_operating_point([replace(table, logit=raw)]).calibration)
    isotonic = scores_of("stock", 0, -2, tmp_path, calibration={"method": "isotonic", "x": [0.0], "y": [0.5]})
    with pytest.raises(UserError, match="expected a temperature as the calibration of runs and checkpoint, got iso"):
        calibrate.main([*flags[:3], isotonic, "--output-dir", f"{tmp_path}/no"])


def test_scores_of_a_source_in_training_are_refused(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    file = scores_of("stock", 0, -2, tmp_path, trained_on=["stock", "other"])
    flags = ["--checkpoint", str(tiny_checkpoint), "--output-dir", f"{tmp_path}/new", "--from-scores", file]
    with pytest.raises(UserError, match="those of run, which was trained on stock; pass the files"):
        calibrate.main(flags)
    flags[-1] = scores_of("stock", 0, -2, tmp_path, split="test")
    with pytest.raises(UserError, match="expected no scores of test images, got those of stock"):
        calibrate.main(flags)
    for other in ({"model": "cnn_lstm"}, {"train_command": "python train.py --model another"}):
        flags[-1] = scores_of("stock", 0, -2, tmp_path, **other)
        with pytest.raises(UserError, match=r"expected scores of the checkpoint, a .*, got those of run; pass its own"):
            calibrate.main(flags)
    code, says = exit_and_stderr(calibrate.main, [*flags, "--data", "demo"], monkeypatch, capsys)
    assert code == 2 and "expected either --data SPEC... or --from-scores CSV..." in says
    (tmp_path / "one.csv").write_text("path,label\n")
    with pytest.raises(UserError, match="expected columns path,label"):
        calibrate.main([*flags[:-1], str(tmp_path / "one.csv")])
    with pytest.raises(UserError, match="got 80 real and 0 fake"):
        calibrate.main([*flags[:-1], scores_of("web", 0, 0, tmp_path)])
