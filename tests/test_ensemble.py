"""Ensembles and soups: what the members see, how their logits are joined, and the checkpoint that comes of it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ensemble
from datasets.spec import open_records
from datasets.splits import open_training_data
from datasets.transforms import EvalTransform, Geometry
from models.ensemble import common_frame, member_view
from models.operating_point import apply_calibration, sigmoid
from models.registry import create_model
from utils.args import run_script
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.errors import UserError
from utils.explanations.layers import capture
from utils.explanations.maps import Question
from utils.explanations.methods.cam import gradcam
from utils.scoring.scorer import Job, score

SHARP = {"method": "temperature", "temperature": 0.5}
SHIFTED = {"method": "temperature", "temperature": 4.0, "bias": -0.7}


@pytest.fixture
def member(tmp_path):
    """Write the checkpoint of a random ``cnn`` of width 4: ``member("a", seed, geometry, calibration)``."""

    def write(name: str, seed: int = 0, geometry: Geometry | None = None, calibration: dict | None = None, width=4):
        torch.manual_seed(seed)
        file = tmp_path / name / "best.pt"
        save_checkpoint(
            file,
            {
                "model": "cnn",
                "model_args": {"width": width},
                "state_dict": create_model("cnn", width=width).state_dict(),
                "geometry": (geometry or Geometry("crop", 32)).to_dict(),
                "thresholds": None,
                "calibration": calibration,
            },
        )
        return file

    return write


@pytest.fixture
def classical_member(tmp_path) -> Path:
    detector = create_model("logistic_regression", features="color")
    x = detector.features(torch.rand(20, 3, 32, 32) * torch.linspace(0.1, 1, 20).view(-1, 1, 1, 1))
    y = np.arange(20) // 10
    detector.fit((x, y), (x, y), 0)
    save_checkpoint(
        tmp_path / "classical" / "best.pt",
        {
            "model": "logistic_regression",
            "model_args": {"features": "color"},
            "state_dict": detector.state_dict(),
            "geometry": Geometry("crop", 32).to_dict(),
            "thresholds": None,
            "calibration": None,
        },
    )
    return tmp_path / "classical" / "best.pt"


@pytest.fixture
def join(image_folder, tmp_path):
    """Run ensemble.py on checkpoints; returns the path of the result."""

    def run(method: str, *files: Path, output: str = "joined") -> Path:
        argv = ["--checkpoint", *map(str, files), "--data", str(image_folder), "--method", method]
        result = ensemble.main([*argv, "--output-dir", str(tmp_path / output), "--device", "cpu"])
        assert result["exit_code"] == 0
        assert result["rows"][0]["n_real"] == result["rows"][0]["n_fake"] == 4
        return Path(result["checkpoint"])

    return run


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


ISOTONIC = {"method": "isotonic", "x": [-2.0, -0.5, 1.0], "y": [0.1, 0.4, 0.9]}


@pytest.mark.parametrize("calibration", [None, SHARP, SHIFTED, ISOTONIC], ids=["none", "sharp", "shifted", "isotonic"])
def test_member_logits_are_calibrated_as_everywhere_else(calibration):
    description = {"model": "cnn", "model_args": {"width": 4}, "geometry": Geometry("crop", 32).to_dict()}
    joined = create_model("ensemble", members=[{**description, "calibration": calibration}]).eval()
    images = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        logits, found = joined.members[0](images), joined.member_logits(images)[:, 0]
    assert np.allclose(sigmoid(found.numpy()), apply_calibration(logits.numpy(), calibration), atol=1e-9)


def test_maps_of_an_ensemble_are_the_weighted_sum_of_those_of_its_members():
    geometry = Geometry("crop", 64).to_dict()
    cnn = {"model": "cnn", "model_args": {"width": 4}, "geometry": geometry, "calibration": SHARP}
    timm = {"model": "mobilenetv2_050", "model_args": {}, "geometry": geometry, "calibration": None}
    torch.manual_seed(0)
    joined = create_model("ensemble", members=[cnn, timm, cnn | {"geometry": Geometry("crop", 32).to_dict()}]).eval()
    joined.weights.copy_(torch.tensor([0.5, 0.3, 0.2]))
    assert joined.cam_layer == "members.0.trunk members.1.backbone.blocks.6"  # the third sees less of the image
    images, sign = torch.rand(2, 3, 64, 64), torch.ones(2)
    found = capture(joined, images, sign)
    wanted, effects = torch.zeros(()), []
    for number, factor in ((0, 0.5 / SHARP["temperature"]), (1, 0.3)):
        alone = capture(joined.members[number], images, sign)
        signed = (alone.activations * alone.gradients.mean((2, 3), keepdim=True)).sum(1, keepdim=True)
        sides = found.activations.shape[2:]
        share = signed[0].numel() / sides.numel()  # a place that is drawn on many counts as often in each of them
        wanted = wanted + factor * share * torch.nn.functional.interpolate(signed, sides)
        effects.append(factor * (alone.activations * alone.gradients).sum((1, 2, 3)))
    assert torch.allclose(gradcam(Question(joined, images, sign)), wanted[:, 0].relu(), atol=1e-6)
    assert wanted.max() > 1e-4
    assert torch.allclose((found.activations * found.gradients).sum((1, 2, 3)), sum(effects), rtol=1e-4)


def test_weights_follow_the_validation_auc(member, join, image_folder, monkeypatch):
    files = [member("a", 1, calibration=SHARP), member("b", 2), member("c", 3)]
    values = iter([0.9, 0.7, 0.2])
    monkeypatch.setattr("utils.metrics.binary.auc", lambda labels, p_fake: next(values, 0.5))
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


def test_perfect_and_useless_members_get_weights():
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[-1.0, 1.0], [-2.0, 2.0], [1.0, -1.0], [2.0, -2.0]])
    weights, bias = ensemble.fit_weights(logits, labels, "weighted")
    assert weights == pytest.approx([0.5 / 0.51, 0.01 / 0.51])
    assert bias == 0
    assert ensemble.fit_weights(-np.abs(logits), labels, "weighted")[0] == [0.5, 0.5]  # both below chance


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
    assert checkpoint["data"][0]["fingerprint"]


def test_an_ensemble_is_calibrated_on_top_of_its_members(member, join, image_folder):
    result = join("mean", member("a", 1, calibration=SHARP), member("b", 2))
    detector, checkpoint = load_detector(result)
    records = open_records(str(image_folder)).records
    images = torch.stack([EvalTransform(detector.geometry)(read(record.path)) for record in records])
    with torch.no_grad():
        wanted = apply_calibration(detector(images).numpy(), checkpoint["calibration"])
    assert np.allclose(detector.predict_proba(images).numpy(), wanted)


def read(path: str) -> np.ndarray:
    from datasets.images import read_image

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


# What the members see


def prepared(geometry: Geometry, image: np.ndarray) -> torch.Tensor:
    return EvalTransform(geometry)(image)[None]


@pytest.mark.parametrize(
    "sizes", [((32, 48),), ((16, 48),), ((32, 64),), ((48, 32, 16),), ((33, 65, 49),)], ids=lambda sizes: str(sizes[0])
)
def test_a_cropping_member_sees_its_own_view_to_the_bit(sizes):
    """Over image sizes from the frame's on, odd ones included."""
    members = [Geometry("crop", size) for size in sizes[0]]
    frame = common_frame(members)
    assert frame.size == max(sizes[0])
    rng = np.random.default_rng(0)
    for height in [*range(frame.size, frame.size + 37, 3), 250]:
        for width in (frame.size, frame.size + 1, frame.size + 24, 187, 256):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            for wanted in members:
                view = member_view(prepared(frame, image), frame, wanted)
                assert torch.equal(view, prepared(wanted, image)), (height, width, wanted)


def test_other_crop_sizes_are_at_most_one_block_aside():
    frame = common_frame([Geometry("crop", 32), Geometry("crop", 43)])
    for side in range(43, 140):
        rows = np.arange(side, dtype=np.uint8)[:, None, None]
        image = np.broadcast_to(rows, (side, side, 3)).copy()
        view = member_view(prepared(frame, image), frame, Geometry("crop", 32))
        top, own = (round(float(part[0, 0, 0, 0]) * 255) for part in (view, prepared(Geometry("crop", 32), image)))
        assert abs(top - own) in (0, 8)
        assert top % 8 == 0


@pytest.mark.parametrize("resize", [32, 40, 48, 57])
def test_a_resizing_member_does_not_spoil_the_view_of_a_cropping_one(resize):
    crop, other = Geometry("crop", 32), Geometry("resize", resize)
    frame = common_frame([crop, other])
    assert frame.mode == "crop"
    assert frame.size >= resize
    image = np.random.default_rng(0).integers(0, 256, (91, 77, 3), dtype=np.uint8)
    images = prepared(frame, image)
    assert torch.equal(member_view(images, frame, crop), prepared(crop, image))
    view = member_view(images, frame, other)
    assert view.shape == (1, 3, resize, resize)
    assert 0 <= view.min() <= view.max() <= 1


def test_a_resizing_member_sees_the_whole_frame():
    frame = Geometry("crop", 48)
    images = torch.linspace(0, 1, 48).expand(1, 3, 48, 48)
    view = member_view(images, frame, Geometry("resize", 32))
    assert view[0, 0, 0, 0] < 0.03
    assert view[0, 0, 0, -1] > 0.97


def test_members_of_one_geometry_keep_it():
    for geometry in (Geometry("crop", 32), Geometry("resize", 32), Geometry("crop", 32, 40)):
        assert common_frame([geometry, geometry]) == geometry
    assert common_frame([Geometry("resize", 32), Geometry("resize", 48)]) == Geometry("resize", 48)
    assert common_frame([Geometry("crop", 32, 64), Geometry("crop", 48, 64)]) == Geometry("crop", 48, 64)


def test_members_of_different_geometry_are_joined(member, join, image_folder):
    files = [member("a", 1), member("b", 2, Geometry("crop", 40)), member("c", 3, Geometry("resize", 40))]
    result = join("mean", *files)
    assert load_checkpoint(result)["geometry"] == Geometry("crop", 40).to_dict()
    assert np.isfinite(logits_of(result, open_records(str(image_folder)).records)).all()


# What is refused


def fails(argv: list, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", ["ensemble.py", *map(str, argv)])
    with pytest.raises(SystemExit) as exit_:
        run_script(ensemble.main)
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


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
    assert "expected --output-dir to be no member's folder" in fails(argv, monkeypatch, capsys)
    assert files[0].read_bytes() == before


def test_soups_of_different_networks_are_refused(member, classical_member, join):
    with pytest.raises(UserError, match=r"one architecture for a soup, got .*; use --method mean"):
        join("soup", member("a"), member("b", width=8))
    with pytest.raises(UserError, match="one architecture for a soup"):
        join("soup", member("a"), classical_member)
    with pytest.raises(UserError, match="expected networks for a soup, got logistic_regression"):
        join("soup", classical_member, classical_member)


def test_an_ensemble_is_made_of_checkpoints():
    with pytest.raises(UserError, match=r"make one with: python ensemble\.py"):
        create_model("ensemble")


def test_the_result_is_marked_with_the_strongest_augmentation_of_its_members(member, join):
    files = [member("a"), member("b", 1)]
    for file, augmentation in zip(files, ("light", "forensic"), strict=True):
        checkpoint = load_checkpoint(file)
        checkpoint.pop("format_version")
        save_checkpoint(file, {**checkpoint, "train_args": {"augmentation": augmentation}})
    assert load_checkpoint(join("mean", *files))["train_args"]["augmentation"] == "forensic"
