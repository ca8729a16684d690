"""Specialists in ensembles: they count above their threshold fpr01 only, whatever scores the others."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import ensemble
from datasets.listing.records import Record
from datasets.listing.spec import open_records
from datasets.listing.splits import open_training_data
from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from models.registry import create_model
from tests.conftest import exit_and_stderr, make_table
from tests.members import write_member
from tests.test_ensemble import calibrated
from tests.utils.engines.exporting import export
from utils.checkpoints.file import describe_checkpoint, load_checkpoint, load_detector, save_checkpoint
from utils.errors import UserError
from utils.scoring.scorer import Job, score
from utils.scoring.table import read_scores, write_scores, write_sidecar

pytestmark = pytest.mark.usefixtures("no_evaluation_figures")

THRESHOLDS = {"balanced": 0.5, "fpr1": 0.6, "fpr01": 0.7, "unsure_low": 0.45, "unsure_high": 0.55}
FLOOR = math.log(0.7 / 0.3)
LEFT_OUT = {"stock": "real", "sdxl": "fake"}
SEEN = "shared"  # every member says that it was trained on a set of this name


@pytest.fixture
def specialist(tmp_path) -> Path:
    """A network with thresholds, calibrated so that some images lie above its floor and others below."""
    file = write_member(tmp_path, "specialist", 5, calibration={"method": "temperature", "temperature": 0.05})
    save_checkpoint(file, {**load_checkpoint(file), "thresholds": THRESHOLDS})
    return file


@pytest.fixture
def left_out(make_folder, specialist, tmp_path) -> list[str]:
    """The flags that add the specialist to a member by its scores of sources that were left out, and of another one."""
    sets = {name: make_folder(name, {f"train/{label}": 6, f"valid/{label}": 4}) for name, label in LEFT_OUT.items()}
    sets[SEEN] = make_folder(
        SEEN, {f"{split}/{label}": 3 for split in ("train", "valid") for label in ("real", "fake")}
    )
    rng = np.random.default_rng(0)
    for part, names, splits in (("left-out", LEFT_OUT, ("train", "valid")), ("valid", [SEEN], ("valid",))):
        images = {key: record for name in names for key, record in records_of(sets[name], splits).items()}
        labels = [record.label for record in images.values()]
        table = make_table([path for _, path in images], labels, rng.normal(labels))
        table.dataset[:] = [name for name, _ in images]
        file = tmp_path / "scores" / f"stock+sdxl__{part}.csv.gz"
        write_scores(file, table)
        calibration = {"method": "temperature", "temperature": 1.0}
        facts = {"left_out": "stock,sdxl", "trained_on": [SEEN], "calibration": calibration}
        write_sidecar(file, checkpoint="run", split=part, unreadable=[], thresholds={}, threshold=0.5, **facts)
    member = write_member(tmp_path, "member", 1)
    flags = ["--checkpoint", str(member), "--specialists", str(specialist), "--method", "stacked", "--device", "cpu"]
    scores = ["--scores", str(tmp_path / "scores"), "--output-dir", str(tmp_path / "joined")]
    return [*flags, *scores, "--data", *map(str, sets.values())]


def records_of(root: Path, splits=("train", "valid")) -> dict[tuple[str, str], Record]:
    """Return the images of a data set by its name and their paths in it."""
    records = [record for split in splits for record in open_records(f"{root}@split={split}").records]
    return {(root.name, str(Path(record.path).relative_to(root))): record for record in records}


def evidence(file: Path, records) -> np.ndarray:
    return np.logaddexp(0, calibrated(file, records) - FLOOR)


def test_a_specialist_adds_what_exceeds_its_floor():
    plain = {
        "model": "cnn",
        "model_args": {"width": 4},
        "geometry": Geometry("crop", 32).to_dict(),
        "calibration": None,
    }
    torch.manual_seed(0)
    joined = create_model("ensemble", members=[plain, {**plain, "floor": 0.2}]).eval()
    joined.members[1].load_state_dict(joined.members[0].state_dict())
    images = torch.rand(6, 3, 32, 32, requires_grad=True)
    logits, added = joined.evidence(images).unbind(1)
    assert torch.allclose(added, torch.log1p((logits - 0.2).exp()))
    assert torch.equal(joined.evidence(images, slice(1, None))[:, 0], added)
    joined(images).sum().backward()
    assert images.grad.abs().max() > 0


@pytest.mark.slow
def test_an_export_adds_the_same(specialist, tmp_path):
    pytest.importorskip("onnxscript")
    member = load_detector(write_member(tmp_path, "member", 1))[0]
    joined = ensemble.combine([member, load_detector(specialist)[0]], [None, FLOOR])
    save_checkpoint(tmp_path / "both.pt", {**describe_checkpoint(joined, {}, []), "state_dict": joined.state_dict()})
    parity = export(tmp_path / "both.pt", tmp_path / "both.onnx", "--export", "onnx")["parity"]
    assert parity["max_logit_difference"] < 1e-4


def test_a_specialist_takes_the_frame_of_the_others():
    face, crop = Geometry("face", 32, margin=1.3), Geometry("crop", 48, 64)
    member = {"model": "cnn", "model_args": {"width": 4}, "geometry": face.to_dict(), "calibration": None}
    joined = create_model("ensemble", members=[member, {**member, "geometry": crop.to_dict(), "floor": 1.0}]).eval()
    assert joined.geometry == face
    assert joined.cam_layer == "members.0.trunk members.1.trunk"  # it sees the whole frame, so its evidence is drawn
    assert joined(torch.rand(2, 3, 32, 32)).shape == (2,)


def test_weights_are_fitted_on_validation_images(image_folder, specialist, tmp_path):
    member = write_member(tmp_path, "member", 1)
    flags = ["--checkpoint", str(member), "--specialists", str(specialist), "--method", "stacked", "--device", "cpu"]
    result = ensemble.main([*flags, "--data", str(image_folder), "--output-dir", str(tmp_path / "joined")])
    valid, test = open_training_data([str(image_folder)]).valid[0].records, open_records(str(image_folder)).records
    columns = [np.stack([calibrated(member, part), evidence(specialist, part)], axis=1) for part in (valid, test)]
    assert np.ptp(columns[0][:, 1]) > 0.1  # on both sides of the floor
    fitted = LogisticRegression(max_iter=1000).fit(columns[0], [record.label for record in valid])
    detector, _ = load_detector(result["checkpoint"])
    assert score([Job(detector)], test)[0].logits == pytest.approx(fitted.decision_function(columns[1]), abs=2e-3)


def test_weights_are_fitted_on_left_out_sources(left_out, specialist, tmp_path):
    detector, checkpoint = load_detector(ensemble.main(left_out)["checkpoint"])
    for part, names in (("left-out", LEFT_OUT), ("valid", [SEEN])):
        file = f"stock+sdxl__{part}.csv.gz"
        before, after = read_scores(tmp_path / "scores" / file), read_scores(tmp_path / "joined" / "scores" / file)
        images = {key: record for name in names for key, record in records_of(tmp_path / name).items()}
        known = dict(zip(images, evidence(specialist, list(images.values())), strict=True))
        added = np.array([known[key] for key in zip(before.dataset, before.path, strict=True)])
        wanted = np.stack([before.logit, added], axis=1) @ detector.weights.numpy() + detector.bias.numpy()
        assert after.logit == pytest.approx(wanted, abs=1e-4)
    assert sorted(checkpoint["fitted_on"]) == sorted(LEFT_OUT)
    assert checkpoint["train_args"]["checkpoint"][-1] == str(specialist)


def test_a_source_that_the_specialist_knows_was_not_left_out(left_out, specialist):
    checkpoint = load_checkpoint(specialist)
    checkpoint["data"].append({"dataset": "sdxl", "split": "train", "fingerprint": "sdxl"})
    save_checkpoint(specialist, checkpoint)
    with pytest.raises(UserError, match="expected left-out sources with reals and with fakes, got only real images"):
        ensemble.main(left_out)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_threshold_at_the_end_of_the_scale_is_a_floor_too(specialist, threshold):
    detector, _ = load_detector(specialist)
    detector.operating_point = OperatingPoint(None, {"fpr01": threshold})
    assert math.isfinite(ensemble.floor_of("specialist.pt", detector))


def test_wrong_use_is_refused(left_out, specialist, tmp_path, monkeypatch, capsys):
    at = left_out.index("--data")
    degraded = read_scores(tmp_path / "scores" / "stock+sdxl__valid.csv.gz")
    for wrong, message in (
        ([*left_out, "--method", "mean"], "expected --method stacked with --specialists, got --method mean"),
        (left_out[:at], "expected --data with the data sets of the scores, for the --specialists to score; got none"),
        (left_out[:-1], "expected --data with all images of the scores, 6 of them are missing, such as valid/fake/"),
    ):
        code, says = exit_and_stderr(ensemble.main, wrong, monkeypatch, capsys)
        assert code == 2 and message in says
    degraded.tier[:] = ["web"] * len(degraded)
    write_scores(tmp_path / "scores" / "stock+sdxl__valid.csv.gz", degraded)
    with pytest.raises(UserError, match="expected scores of the tier clean with --specialists, got web"):
        ensemble.main(left_out)
    save_checkpoint(specialist, {**load_checkpoint(specialist), "thresholds": None})
    with pytest.raises(UserError, match=r"expected a specialist with thresholds, got .* without; run calib"):
        ensemble.main(left_out)
