"""Classical detectors end to end: training, checkpoints, scores, embeddings, the feature cache, what they refuse."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import predict
import train
from datasets.listing.spec import open_records
from datasets.transforms import Geometry
from models.registry import create_model
from tests.conftest import write_image
from utils.args import run_script
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.errors import UserError
from utils.scoring.scorer import Job, Settings, score
from utils.scoring.table import ScoreTable, read_scores
from utils.training.classical import write_importance

SMALL = {
    "random_forest": ["trees=5"],
    "gradient_boosting": ["rounds=5"],
    "xgboost": ["rounds=5"],
    "lightgbm": ["rounds=5"],
    "logistic_regression": [],
}
WITHOUT_IMPORTANCE = {"gradient_boosting"}
SIZES = {"train": 30, "valid": 8, "test": 6}  # images per class


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "faces"
    for offset, (split, count) in enumerate(SIZES.items()):
        for number in range(2 * count):
            is_fake = number % 2 == 1
            file = folder / split / ("fake" if is_fake else "real") / f"{number:03}.png"
            write_image(file, 1000 * offset + number, is_fake)
    return folder


def flags_of(model: str, faces: Path, folder: Path, *model_args: str) -> list[str]:
    arguments = ["features=color", *SMALL[model], *model_args]
    flags = f"--data {faces} --image-size 32 --device cpu --output-dir {folder} --cache {folder.parent}/cache"
    return ["--model", model, "--model-args", *arguments, *flags.split()]


@pytest.fixture(scope="module")
def runs(faces, tmp_path_factory) -> dict[str, dict]:
    """What train.main returned for each of the five models."""
    folder = tmp_path_factory.mktemp("runs")
    return {model: train.main(flags_of(model, faces, folder / model)) for model in SMALL}


@pytest.fixture(scope="module")
def evaluated(faces, runs, tmp_path_factory) -> dict[str, ScoreTable]:
    """The scores file of each model, written by one call of evaluate.main."""
    folder = tmp_path_factory.mktemp("evaluation")
    checkpoints = [run["checkpoint"] for run in runs.values()]
    argv = ["--checkpoint", *checkpoints, "--data", str(faces), "--output-dir", str(folder), "--n-boot", "0"]
    result = evaluate.main([*argv, "--device", "cpu"])
    return dict(zip(runs, map(read_scores, result["scores"]), strict=True))


def fails(argv: list[str], monkeypatch, capsys) -> str:
    """The one line that train.py leaves on stderr when it exits with 2."""
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_script(train.main)
    assert exit_.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1
    return lines[0]


# From training to scores


@pytest.mark.parametrize("model", SMALL)
def test_training_ends_with_a_test_row_and_a_checkpoint(runs, model):
    run = runs[model]
    checkpoint = load_checkpoint(run["checkpoint"])
    assert run["exit_code"] == 0
    assert (run["rows"][0]["n_real"], run["rows"][0]["n_fake"]) == (6, 6)
    assert run["rows"][0]["auc"] > 0.6  # a checkerboard is easily told from smooth colours
    assert checkpoint["model"] == model
    assert checkpoint["geometry"] == Geometry("crop", 32).to_dict()
    assert checkpoint["calibration"]["method"] == "temperature"
    assert 0 <= checkpoint["thresholds"]["balanced"] <= 1
    assert [entry["n_fake"] for entry in checkpoint["data"]] == [30, 8]


@pytest.mark.parametrize("model", SMALL)
def test_a_checkpoint_gives_the_same_logits_to_the_bit(runs, faces, model, tmp_path):
    """Loaded twice, and saved again in between; scored in bfloat16, which features and learners ignore."""
    records = open_records(str(faces)).records
    detector, checkpoint = load_detector(runs[model]["checkpoint"])
    assert not detector.has_input_gradient
    first = score([Job(detector)], records)[0]
    save_checkpoint(tmp_path / "again.pt", {**checkpoint, "state_dict": detector.state_dict()})
    again = score([Job(load_detector(tmp_path / "again.pt")[0])], records, Settings(dtype=torch.bfloat16))[0]
    assert first.logits.dtype == np.float64
    assert np.array_equal(first.logits, again.logits)


@pytest.mark.parametrize("model", SMALL)
def test_evaluate_and_predict_agree(runs, evaluated, faces, model, tmp_path):
    argv = ["--checkpoint", runs[model]["checkpoint"], str(faces / "test"), "--format", "json", "--device", "cpu"]
    predict.main([*argv, "--output", str(tmp_path / "out.json")])
    predicted = {row["path"]: row for row in json.loads((tmp_path / "out.json").read_text())}
    table = evaluated[model]
    assert len(table) == len(predicted) == 12
    for path, logit, p_fake in zip(table.path, table.logit, table.p_fake, strict=True):
        row = predicted[str(faces / path)]
        assert (row["logit"], row["p_fake"]) == (logit, p_fake)


@pytest.mark.parametrize("model", SMALL)
def test_probabilities_are_not_saturated(evaluated, model):
    p_fake = evaluated[model].p_fake
    assert np.all((p_fake > 0) & (p_fake < 1))
    assert len(set(p_fake)) > 1
    assert np.abs(evaluated[model].logit).max() < 20


@pytest.mark.parametrize("model", SMALL)
def test_importance_is_a_share_of_every_feature(runs, model):
    folder = Path(runs[model]["checkpoint"]).parent
    assert (folder / "importance.csv").exists() == (model not in WITHOUT_IMPORTANCE)
    if model in WITHOUT_IMPORTANCE:
        return
    rows = list(csv.DictReader((folder / "importance.csv").open()))
    shares = [float(row["share"]) for row in rows]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert sorted(row["feature"] for row in rows) == sorted(create_model(model, features="color").feature_names())


def test_importance_is_drawn(runs, tmp_path, rendered):
    write_importance(load_detector(runs["random_forest"]["checkpoint"])[0], tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"importance.csv", "importance.pdf", "importance.png"}


def test_training_twice_gives_the_same_logits(runs, faces, tmp_path):
    records = open_records(str(faces)).records
    for model in ("random_forest", "lightgbm"):
        again = train.main(flags_of(model, faces, tmp_path / model))
        one, other = (load_detector(run["checkpoint"])[0] for run in (runs[model], again))
        assert np.array_equal(score([Job(one)], records)[0].logits, score([Job(other)], records)[0].logits)


# What is refused


def test_an_unknown_feature_bank_is_reported_before_any_feature(faces, tmp_path, computed, monkeypatch, capsys):
    argv = flags_of("xgboost", faces, tmp_path / "run", "features=color,spektrum")
    line = fails(argv, monkeypatch, capsys)
    assert "expected a feature bank, got 'spektrum'; did you mean spectrum?" in line
    assert not computed


@pytest.mark.parametrize(
    ("model", "package"),
    [("xgboost", "xgboost"), ("lightgbm", "lightgbm"), ("random_forest", "skops"), ("logistic_regression", "skops")],
)
def test_a_missing_package_is_named_before_any_feature(model, package, faces, tmp_path, computed, monkeypatch, capsys):
    argv = flags_of(model, faces, tmp_path / "run")
    monkeypatch.setitem(sys.modules, package, None)
    line = fails(argv, monkeypatch, capsys)
    assert f"expected the package '{package}' for --model" in line
    assert model in line
    assert f"pip install {package}" in line
    assert not computed


def test_balanced_epochs_are_for_neural_models(faces, tmp_path, computed, monkeypatch, capsys):
    line = fails([*flags_of("logistic_regression", faces, tmp_path / "run"), "--balance"], monkeypatch, capsys)
    assert "expected a neural --model with --balance, got logistic_regression" in line
    assert not computed


def test_one_class_is_not_enough(make_folder, tmp_path, computed, monkeypatch, capsys):
    folder = make_folder("reals", {"train/real": 4, "valid/real": 2, "valid/fake": 2})
    line = fails(flags_of("logistic_regression", folder, tmp_path / "run"), monkeypatch, capsys)
    assert "expected real and fake images in the train split, got 4 real and 0 fake" in line
    assert not computed


@pytest.mark.parametrize("part", ["train", "valid"])
def test_one_readable_class_is_not_enough(part):
    """The lists hold both classes, but the files of one may all be unreadable."""
    both = np.random.default_rng(0).random((6, 4)).astype(np.float32), np.array([0, 1] * 3, np.float32)
    one = both[0], np.zeros(6, np.float32)
    detector = create_model("logistic_regression", features="color")
    with pytest.raises(UserError, match=f"real and fake images in the {part} split, got one class"):
        detector.fit(one if part == "train" else both, one if part == "valid" else both, 0)
    assert not detector.is_fitted


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(value, faces, tmp_path, monkeypatch, capsys):
    import models.classical

    original = models.classical.extract_features

    def spoilt(images, banks):
        features = original(images, banks)
        features[0, 3] = value
        return features

    monkeypatch.setattr(models.classical, "extract_features", spoilt)
    argv = [*flags_of("xgboost", faces, tmp_path / "run"), "--batch-size", "30"]
    assert "expected finite features, got NaN or infinity for 2 train images" in fails(argv, monkeypatch, capsys)
    assert not (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize(
    ("model", "argument", "message"),
    [
        ("random_forest", "trees=0", "n_estimators"),
        ("xgboost", "depth=-3", "max_depth"),
        ("logistic_regression", "c=-1", "'C' parameter"),
        ("lightgbm", "leaves=1", "num_leaves"),
    ],
)
def test_settings_that_a_learner_refuses_are_the_users_mistake(
    model, argument, message, faces, tmp_path, monkeypatch, capsys
):
    line = fails(flags_of(model, faces, tmp_path / "run", argument), monkeypatch, capsys)
    assert "expected --model-args" in line
    assert message in line


def test_too_few_images_to_hold_any_out(make_folder, tmp_path, monkeypatch, capsys):
    """Gradient boosting stops early by a tenth of the training images: of eight that is less than one a class."""
    folder = make_folder("few", {f"{split}/{name}": 4 for split in ("train", "valid") for name in ("real", "fake")})
    line = fails(flags_of("gradient_boosting", folder, tmp_path / "run"), monkeypatch, capsys)
    assert "expected --model-args that 8 images can be fitted with" in line


def with_payload(checkpoint_file: str, data: bytes, target: Path) -> Path:
    checkpoint = load_checkpoint(checkpoint_file)
    checkpoint["state_dict"]["_extra_state"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    save_checkpoint(target, checkpoint)
    return target


def test_a_payload_of_another_type_is_not_rebuilt(runs, tmp_path, monkeypatch):
    import skops.io

    data = skops.io.dumps({"model": ForeignType()})
    built = []
    monkeypatch.setattr(ForeignType, "__setstate__", lambda self, state: built.append(state), raising=False)
    file = with_payload(runs["random_forest"]["checkpoint"], data, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=r"expected a forest or a linear model .*, found .*ForeignType"):
        load_detector(file)
    assert not built


class ForeignType:
    """A class that is none of scikit-learn's."""

    def __init__(self) -> None:
        self.value = 1


@pytest.mark.parametrize("model", SMALL)
def test_a_damaged_payload_is_named(runs, model, tmp_path):
    data = load_checkpoint(runs[model]["checkpoint"])["state_dict"]["_extra_state"].numpy().tobytes()
    for number, broken in enumerate((b"nonsense", data[: len(data) // 2])):
        file = with_payload(runs[model]["checkpoint"], broken, tmp_path / f"{number}.pt")
        with pytest.raises(UserError, match="expected a fitted learner in the checkpoint"):
            load_detector(file)
