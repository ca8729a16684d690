"""Ensembles and soups: what the members see, how their logits are joined, and the checkpoint that comes of it."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import calibrate
import ensemble
import evaluate
from datasets.listing.spec import open_records
from datasets.listing.splits import open_training_data
from datasets.transforms import EvalTransform, Geometry
from models.operating_point import OperatingPoint
from tests.conftest import exit_and_stderr
from tests.members import join_members, write_classical_member, write_member
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.errors import UserError
from utils.evaluation.member_weights import fit_weights
from utils.scoring.scorer import Job, score
from utils.scoring.table import ScoreTable

pytestmark = pytest.mark.usefixtures("no_evaluation_figures")

SHARP = {"method": "temperature", "temperature": 0.5}
SHIFTED = {"method": "temperature", "temperature": 4.0, "bias": -0.7}


@pytest.fixture
def member(tmp_path):
    return functools.partial(write_member, tmp_path)


@pytest.fixture
def classical_member(tmp_path) -> Path:
    return write_classical_member(tmp_path)


@pytest.fixture
def join(image_folder, tmp_path):
    return functools.partial(join_members, image_folder, tmp_path)


def calibrated(file: Path, records) -> np.ndarray:
    """A member's own calibrated logits, image files in."""
    detector, checkpoint = load_detector(file)
    calibration = checkpoint["calibration"] or {}
    logits = score([Job(detector)], records)[0].logits
    return logits / calibration.get("temperature", 1.0) + calibration.get("bias", 0.0)


def logits_of(file: Path, records) -> np.ndarray:
    return score([Job(load_detector(file)[0])], records)[0].logits


# The joined logits


def test_mean_is_the_mean_of_calibrated_logits(member, join, image_folder):
    files = [member("a", 1, calibration=SHARP), member("b", 2, calibration=SHIFTED), member("c", 3)]
    records = open_records(str(image_folder)).records
    wanted = np.mean([calibrated(file, records) for file in files], axis=0)
    found = logits_of(join("mean", *files), records)
    assert np.allclose(found, wanted, atol=1e-5)
    assert np.std(found) > 0


def test_weights_follow_the_validation_auc(member, join, image_folder, monkeypatch):
    files = [member("a", 1, calibration=SHARP), member("b", 2), member("c", 3)]
    values = iter([0.9, 0.7, 0.2])
    monkeypatch.setattr("utils.evaluation.member_weights.mix_auc", lambda aucs: [next(values)])
    detector, _ = load_detector(join("weighted", *files))
    assert detector.weights.tolist() == pytest.approx([0.4 / 0.61, 0.2 / 0.61, 0.01 / 0.61])
    assert detector.bias == 0
    records = open_records(str(image_folder)).records
    wanted = np.array([0.4, 0.2, 0.01]) / 0.61 @ np.stack([calibrated(file, records) for file in files])
    assert np.allclose(score([Job(detector)], records)[0].logits, wanted, atol=1e-5)


def test_stacking_is_a_logistic_regression_on_validation(member, join, image_folder):
    from sklearn.linear_model import LogisticRegression

    files = [member("a", 1, calibration=SHARP), member("b", 2, calibration=SHIFTED)]
    valid = open_training_data([str(image_folder)]).valid[0].records
    columns = np.stack([calibrated(file, valid) for file in files], axis=1)
    fitted = LogisticRegression(max_iter=1000).fit(columns, [record.label for record in valid])
    detector, _ = load_detector(join("stacked", *files))
    assert np.allclose(detector.weights.numpy(), fitted.coef_[0], atol=1e-3)
    assert np.allclose(detector.bias.item(), fitted.intercept_[0], atol=1e-3)
    test = open_records(str(image_folder)).records
    columns = np.stack([calibrated(file, test) for file in files], axis=1)
    assert np.allclose(score([Job(detector)], test)[0].logits, fitted.decision_function(columns), atol=1e-3)


def test_stacking_on_one_class_sources_weighs_sources(member, image_folder, tmp_path, monkeypatch):
    from sklearn.linear_model import LogisticRegression

    from utils.evaluation.operating_point import image_weights
    from utils.scoring.scorer import score_table

    files = [member("a", 1), member("b", 2)]
    shutil.copytree(image_folder, tmp_path / "photographs")
    specs = [str(image_folder), f"{tmp_path / 'photographs'}@classes=real"]
    listings = open_training_data(specs).valid
    table = ScoreTable.join(
        [
            score_table(x.records, score([Job(load_detector(files[0])[0])], x.records)[0], OperatingPoint(), x.name)
            for x in listings
        ]
    )
    columns = np.stack([np.concatenate([calibrated(file, x.records) for x in listings]) for file in files], axis=1)
    counts = image_weights(table)
    assert len(set(counts.round(6))) > 1
    fitted = LogisticRegression(max_iter=1000).fit(columns, table.label, counts)
    argv = ["--checkpoint", *map(str, files), "--data", *specs, "--method", "stacked", "--device", "cpu"]
    detector, _ = load_detector(Path(ensemble.main([*argv, "--output-dir", str(tmp_path / "mix")])["checkpoint"]))
    assert np.allclose(detector.weights.numpy(), fitted.coef_[0], atol=1e-3)


def test_the_operating_point_of_a_fitted_ensemble_is_that_of_its_own_scores(member, join, image_folder, tmp_path):
    joined = join("stacked", member("a", 1, calibration=SHARP), member("b", 2, calibration=SHIFTED))
    calibrate.main(["--checkpoint", str(joined), "--data", str(image_folder), "--output-dir", str(tmp_path / "again")])
    points = [load_detector(file)[0].operating_point for file in (joined, tmp_path / "again" / "best.pt")]
    assert points[0].thresholds == pytest.approx(points[1].thresholds, abs=1e-4)


def test_perfect_and_useless_members_get_weights():
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[-1.0, 1.0], [-2.0, 2.0], [1.0, -1.0], [2.0, -2.0]])
    weights, bias = fit_weights(logits, labels, "weighted")
    assert weights == pytest.approx([0.5 / 0.51, 0.01 / 0.51])
    assert bias == 0
    assert fit_weights(-np.abs(logits), labels, "weighted")[0] == [0.5, 0.5]  # both below chance


def test_a_member_that_only_tells_sources_apart_gets_little_weight():
    sources, labels = ["a"] * 10 + ["b"] * 10, np.array([0] * 9 + [1] + [0] + [1] * 9)
    by_source = np.repeat([-1.0, 1.0], 10)
    logits = np.stack([by_source, labels - 0.5], axis=1)
    assert fit_weights(logits, labels, "weighted", None, sources)[0] == pytest.approx([0.01 / 0.51, 0.5 / 0.51])


def test_a_soup_is_the_mean_of_the_weights(member, join):
    files = [member("a", 1), member("b", 2), member("c", 3)]
    checkpoint = load_checkpoint(join("soup", *files))
    states = [load_checkpoint(file)["state_dict"] for file in files]
    assert (checkpoint["model"], checkpoint["model_args"]) == ("cnn", {"width": 4})
    for key, value in checkpoint["state_dict"].items():
        assert value.dtype == states[0][key].dtype
        assert torch.allclose(value.double(), torch.stack([state[key].double() for state in states]).mean(0)), key


def test_a_soup_of_one_network_is_that_network(member, join, image_folder):
    files = [member("a", 1), member("b", 1)]
    records = open_records(str(image_folder)).records
    assert np.array_equal(logits_of(join("soup", *files), records), logits_of(files[0], records))


# The checkpoint


@pytest.mark.parametrize("method", ensemble.METHODS)
def test_the_result_needs_its_members_no_more(method, member, join, image_folder):
    files = [member("a", 1, calibration=SHARP), member("b", 2, calibration=SHIFTED)]
    result = join(method, *files)
    before = logits_of(result, open_records(str(image_folder)).records)
    for file in files:
        file.unlink()
    assert np.array_equal(logits_of(result, open_records(str(image_folder)).records), before)
    checkpoint = load_checkpoint(result)
    assert checkpoint["calibration"]["method"] == "temperature"
    assert 0 <= checkpoint["thresholds"]["balanced"] <= 1
    assert checkpoint["train_args"]["method"] == method
    assert {row["split"] for rows in ("valid", "test") for row in checkpoint["metrics"][rows]} == {"valid", "test"}
    assert checkpoint["fitted_on"] == ["faces"]


@pytest.mark.parametrize("method", ["mean", "soup", "views"])
def test_the_training_data_are_those_of_the_members(method, member, join, image_folder, tmp_path):
    """And not the set on which the result was calibrated: that stays unseen, also after another calibration."""
    files = [member("a", 1)] if method == "views" else [member("a", 1), member("b", 2)]
    if method == "views":
        argv = ["--checkpoint", str(files[0]), "--data", str(image_folder), "--views", "flip"]
        result = ensemble.main([*argv, "--output-dir", str(tmp_path / "joined"), "--device", "cpu"])["checkpoint"]
    else:
        result = join(method, *files)
    flags = ["--checkpoint", str(result), "--data", str(image_folder), "--output-dir"]
    recalibrated = calibrate.main([*flags, str(tmp_path / "again")])["checkpoint"]
    for file in (result, recalibrated):
        checkpoint = load_checkpoint(file)
        names = [entry["dataset"] for entry in checkpoint["data"] if entry["split"] == "train"]
        assert names == (["a", "shared"] if method == "views" else ["a", "shared", "b"])
        assert len(names) == len(checkpoint["data"])
        assert checkpoint["fitted_on"] == ["faces"]
    if method == "mean":
        argv = ["--checkpoint", recalibrated, "--data", str(image_folder), "--n-boot", "0", "--no-score-cache"]
        assert evaluate.main([*argv, "--output-dir", str(tmp_path)])["rows"][0]["seen"] == "unseen"


def test_an_ensemble_is_calibrated_on_top_of_its_members(member, join, image_folder):
    result = join("mean", member("a", 1, calibration=SHARP), member("b", 2))
    detector, checkpoint = load_detector(result)
    records = open_records(str(image_folder)).records
    images = torch.stack([EvalTransform(detector.geometry)(read(record.path)) for record in records])
    with torch.no_grad():
        wanted = OperatingPoint(checkpoint["calibration"]).p_fake(detector(images).numpy())
        assert np.allclose(detector.operating_point.p_fake(detector(images).numpy()), wanted)


def read(path: str) -> np.ndarray:
    from datasets.decoding.images import read_image

    return read_image(path)


def test_ensembles_of_ensembles(member, join, image_folder):
    inner = join("mean", member("a", 1, calibration=SHARP), member("b", 2), output="inner")
    outer = join("mean", inner, member("c", 3), output="outer")
    records = open_records(str(image_folder)).records
    wanted = (calibrated(inner, records) + logits_of(member("c", 3), records)) / 2
    assert np.allclose(logits_of(outer, records), wanted, atol=1e-5)


# Gradients


def test_gradient_flows_through_all_members(member, join):
    detector, _ = load_detector(join("mean", member("a", 1), member("b", 2, Geometry("resize", 48))))
    assert detector.has_input_gradient
    images = torch.rand(2, 3, 48, 48, requires_grad=True)
    logits = detector(images)
    assert logits.shape == (2,)
    logits.sum().backward()
    assert (images.grad.abs().amax((1, 2, 3)) > 0).all()
    assert all(part.head.weight.grad.abs().max() > 0 for part in detector.members)


def test_one_classical_member_has_no_gradient(member, classical_member, join, image_folder):
    result = join("mean", member("a", 1), classical_member)
    assert not load_detector(result)[0].has_input_gradient
    records = open_records(str(image_folder)).records
    wanted = (logits_of(member("a", 1), records) + logits_of(classical_member, records)) / 2
    assert np.allclose(logits_of(result, records), wanted, atol=1e-5)


def test_members_of_different_geometry_are_joined(member, join, image_folder):
    files = [member("a", 1), member("b", 2, Geometry("crop", 40)), member("c", 3, Geometry("resize", 40))]
    result = join("mean", *files)
    assert load_checkpoint(result)["geometry"] == Geometry("crop", 40).to_dict()
    assert np.isfinite(logits_of(result, open_records(str(image_folder)).records)).all()


# What is refused


def fails(argv: list, monkeypatch, capsys) -> str:
    code, error = exit_and_stderr(ensemble.main, argv, monkeypatch, capsys)
    assert code == 2 and error.count("\n") == 1
    return error


def test_a_missing_member_is_named(member, image_folder, tmp_path, monkeypatch, capsys):
    argv = ["--checkpoint", member("a"), tmp_path / "none.pt", "--data", image_folder, "--output-dir", tmp_path / "out"]
    assert "none.pt" in fails(argv, monkeypatch, capsys)
    assert not (tmp_path / "out").exists()


def test_one_member_is_no_ensemble(member, image_folder, tmp_path, monkeypatch, capsys):
    argv = ["--checkpoint", member("a"), "--data", image_folder, "--output-dir", tmp_path / "out"]
    assert "expected two or more --checkpoint, got 1" in fails(argv, monkeypatch, capsys)


def test_a_member_is_not_overwritten(member, image_folder, tmp_path, monkeypatch, capsys):
    files = [member("a", 1), member("b", 2)]
    before = files[0].read_bytes()
    argv = ["--checkpoint", *files, "--data", image_folder, "--output-dir", tmp_path / "a"]
    assert "expected --output-dir other than the folder of a member" in fails(argv, monkeypatch, capsys)
    assert files[0].read_bytes() == before


def test_soups_of_different_networks_are_refused(member, classical_member, join):
    with pytest.raises(UserError, match=r"one architecture for a soup, got .*; use --method mean"):
        join("soup", member("a"), member("b", width=8))
    with pytest.raises(UserError, match="one architecture for a soup"):
        join("soup", member("a"), classical_member)
    with pytest.raises(UserError, match="expected networks for a soup, got logistic_regression"):
        join("soup", classical_member, classical_member)
    with pytest.raises(UserError, match=r"one geometry for a soup, got .*size=32.*size=40"):
        join("soup", member("a"), member("b", geometry=Geometry("crop", 40)))


def test_a_member_that_no_longer_sees_the_whole_image_is_named(member, join, capsys):
    join("mean", member("a", 1), member("b", 2, Geometry("resize", 40)))
    assert (
        "note: cnn would see more of a picture alone; here all members see the central 48 px" in capsys.readouterr().err
    )


def test_the_result_is_marked_with_the_strongest_augmentation_of_its_members(member, join):
    files = [member("a"), member("b", 1)]
    for file, augmentation in zip(files, ("light", "forensic"), strict=True):
        checkpoint = load_checkpoint(file)
        save_checkpoint(file, {**checkpoint, "train_args": {"augmentation": augmentation}})
    assert load_checkpoint(join("mean", *files))["train_args"]["augmentation"] == "forensic"
