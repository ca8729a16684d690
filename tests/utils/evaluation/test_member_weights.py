"""Weights and operating point of an ensemble, fitted on scores of sources that its members were not trained on."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import ensemble
from models.operating_point import OperatingPoint
from models.registry import create_model
from studies import leave_source_out
from tests.conftest import exit_and_stderr, make_table
from utils.checkpoints.file import load_checkpoint, load_detector, save_checkpoint
from utils.errors import UserError
from utils.evaluation.operating_point import fit_operating_point
from utils.scoring.table import ScoreTable, read_scores, read_sidecar, write_scores, write_sidecar

CENTRES = {"stock": -2.0, "web": -1.0, "sdxl": 1.5, "flux": 1.0}  # of the logits; above 0 are fakes
SEEN = "140k"  # the source that all runs were trained on, here with the logits of a source of reals and one of fakes
BOTH = ("web", "sdxl")
N = 60


def write_member(folder, temperature):
    """Write the checkpoint of a random network with a calibration."""
    torch.manual_seed(int(temperature))
    model = create_model("cnn", width=4)
    checkpoint = {
        "model": "cnn",
        "model_args": {"width": 4},
        "state_dict": model.state_dict(),
        "geometry": {**model.geometry.to_dict(), "size": 32},
        "thresholds": None,
        "calibration": {"method": "temperature", "temperature": temperature},
        "train_args": {},
        "data": [{"dataset": SEEN, "split": "train", "fingerprint": "x"}],
    }
    save_checkpoint(folder / "best.pt", checkpoint)
    return str(folder / "best.pt")


def source(name, seed):
    """Return the scores of a source of one class."""
    logits = np.random.default_rng([seed, len(name)]).normal(CENTRES[name], 1, N)
    return make_table([f"{name}/{i}.jpg" for i in range(N)], [int(CENTRES[name] > 0)] * N, logits, "clean", name)


def seen_source(seed):
    """Return the scores of the source of both classes that all runs were trained on, half as many for each class."""
    return ScoreTable.join(
        [replace(source(name, seed).take(range(N // 2)), dataset=[SEEN] * (N // 2)) for name in BOTH]
    )


def write_member_scores(folder, seed, temperature):
    """Write what two runs of a recipe say about the sources that each left out, and about one of its training."""
    for out in (("stock", "sdxl"), ("web", "flux")):
        for part, tables in (("left-out", [source(name, seed) for name in out]), ("valid", [seen_source(seed)])):
            file = folder / f"{'+'.join(out)}__{part}.csv.gz"
            write_scores(file, ScoreTable.join(tables))
            trained_on = [name for name in (*CENTRES, SEEN) if name not in out]
            own = {"method": "temperature", "temperature": temperature}
            facts = {
                "calibration": own,
                "left_out": ",".join(out),
                "trained_on": trained_on,
                "thresholds": {},
                "threshold": 0.5,
            }
            write_sidecar(file, checkpoint="+".join(out), split=part, unreadable=[], **facts)
    return str(folder)


@pytest.fixture
def flags(tmp_path):
    """Return the flags that join two members by their scores."""
    paths = [write_member(tmp_path / name, 1.5) for name in ("a", "b")]
    scores = [write_member_scores(tmp_path / f"scores-{seed}", seed, float(seed)) for seed in (1, 2)]
    return ["--checkpoint", *paths, "--method", "stacked", "--output-dir", f"{tmp_path}/both", "--scores", *scores]


def test_weights_follow_all_sources_and_verdicts_those_that_were_left_out(flags, tmp_path, capsys):
    result = ensemble.main(flags)
    tables = [ScoreTable.join([source(name, seed) for name in ("stock", "sdxl", "web", "flux")]) for seed in (1, 2)]
    calibrated = np.stack([tables[0].logit, tables[1].logit / 2], axis=1)
    seen = [ScoreTable.join([seen_source(seed)] * 2) for seed in (1, 2)]  # scored by both runs
    both = np.concatenate([calibrated, np.stack([seen[0].logit, seen[1].logit / 2], axis=1)])
    labels, counts = np.concatenate([tables[0].label, seen[0].label]), np.repeat([0.75, 1.5], [4 * N, 2 * N])
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(both, labels, counts)
    detector, checkpoint = load_detector(result["checkpoint"])
    assert detector.weights.tolist() == pytest.approx(fitted.coef_[0].tolist(), rel=1e-3)
    joined = calibrated @ detector.weights.numpy() + detector.bias.numpy()
    order = ["stock", "sdxl", "web", "flux"]
    expected = fit_operating_point([replace(tables[0], logit=joined)])
    assert dict(detector.operating_point.thresholds) == pytest.approx(dict(expected.thresholds))
    assert sorted(checkpoint["fitted_on"]) == sorted(order)
    assert [row["dataset"] for row in checkpoint["train_args"]["calibrated_on"]] == order
    assert "stock real n=60 called_fake=" in capsys.readouterr().out
    scores = read_scores(tmp_path / "both" / "scores" / "stock+sdxl__left-out.csv.gz")
    assert scores.logit == pytest.approx(joined[: 2 * N])
    assert scores.p_fake == pytest.approx(detector.operating_point.p_fake(joined[: 2 * N]))
    files = [str(file) for file in (tmp_path / "both" / "scores").glob("*.csv.gz")]
    table = leave_source_out.main(["--from-scores", *files, "--n-boot", "0", "--output-dir", f"{tmp_path}/table"])
    assert {row["source"] for row in table["rows"]} == {*CENTRES, "all"}
    again = ["--checkpoint", result["checkpoint"], *flags[2:-4], f"{tmp_path}/again", *flags[-3:]]
    with pytest.raises(UserError, match="expected a checkpoint as it was trained, got"):
        ensemble.main(again)


def test_scores_of_the_sources_trained_on_are_needed_too(flags, tmp_path):
    for file in (tmp_path / "scores-2").glob("*__valid.csv.gz"):
        file.unlink()
    with pytest.raises(UserError, match=r"expected both files of each run, .*, found no image of a source"):
        ensemble.main(flags)


def test_images_that_a_member_lacks_do_not_count(flags, tmp_path):
    file = tmp_path / "scores-2" / "stock+sdxl__left-out.csv.gz"
    write_scores(file, read_scores(file).take(range(N, 2 * N)))
    checkpoint = load_checkpoint(ensemble.main(flags)["checkpoint"])
    assert OperatingPoint.from_checkpoint(checkpoint).fitted_on == ("sdxl", "web", "flux")
    with pytest.raises(UserError, match="expected no checkpoint in"):
        ensemble.main(flags)
    shutil.rmtree(flags[flags.index("--output-dir") + 1])
    write_scores(file, source("stock", 2))  # reals alone, in both files that all members have
    other = tmp_path / "scores-2" / "web+flux__left-out.csv.gz"
    write_scores(other, source("web", 2))
    with pytest.raises(UserError, match="expected left-out sources with reals and with fakes, got only real images"):
        ensemble.main(flags)
    facts = read_sidecar(file)
    write_sidecar(file, **{**facts, "split": "test"})
    with pytest.raises(UserError, match="expected no scores of test images in --scores, got"):
        ensemble.main(flags)
    write_sidecar(file, **{**facts, "calibration": None})
    with pytest.raises(UserError, match="expected scores of a run with a calibration, got"):
        ensemble.main(flags)
    for file in (tmp_path / "scores-2").glob("*__left-out.csv.gz"):
        file.unlink()
    with pytest.raises(UserError, match="expected scores of the same left-out images by all members, got none in"):
        ensemble.main(flags)


def test_wrong_scores_are_refused_at_once(flags, tmp_path, monkeypatch, capsys):
    at = flags.index("--scores")
    for wrong, message in (
        ([*flags[:-1]], "expected --scores with one folder for each of 2 members, got 1"),
        ([*flags, "--data", "demo"], "no --data or --face-detector with --scores, got --method stacked and one"),
        ([*flags, "--face-detector", "x.onnx"], "no --data or --face-detector with --scores, got --method stacked"),
        ([*flags, "--method", "mean"], "expected --method stacked and no --data or --face-detector with --scores, got"),
        ([*flags[: at + 2], str(tmp_path)], f"expected --scores with folders of *.csv.gz, got {tmp_path}; pass"),
    ):
        code, says = exit_and_stderr(ensemble.main, wrong, monkeypatch, capsys)
        assert code == 2 and message in says
