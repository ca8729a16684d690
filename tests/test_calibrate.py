"""calibrate.py: new thresholds and calibration, the same weights, nothing from the test split."""

import pytest
import torch

import calibrate
import evaluate
from datasets.spec import open_records
from models.operating_point import OperatingPoint
from utils.checkpoints.file import load_checkpoint, load_detector
from utils.errors import UserError
from utils.evaluation.evaluate import Candidate
from utils.evaluation.operating_point import fit_operating_point
from utils.scoring.scorer import Job, score, score_table


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
    assert evaluate.origin(Candidate("tiny", detector, checkpoint, "digest"))["trained_on"] == ["a"]
