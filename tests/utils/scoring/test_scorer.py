"""Scoring: each readable image once, in order, whatever the batches; and the tables built from the scores."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.decoding.images import read_image
from datasets.listing.spec import Record, open_records
from datasets.listing.splits import open_training_data
from datasets.transforms import EvalTransform
from models.operating_point import OperatingPoint, sigmoid
from utils.checkpoints.file import load_detector
from utils.evaluation.evaluate import checkpoint_names
from utils.evaluation.finalize import finalize, measure, summary_line
from utils.evaluation.operating_point import fit_operating_point
from utils.scoring.scorer import Job, Settings, score, score_table, score_together, stream

TEMPERATURE = {"method": "temperature", "temperature": 2.0}


@pytest.fixture
def detector(tiny_checkpoint):
    return load_detector(tiny_checkpoint)[0]


@pytest.fixture
def listing(image_folder):
    return open_records(str(image_folder), "train")  # 8 real, 8 fake


def break_images(records: list[Record], *indices: int) -> None:
    for index in indices:
        Path(records[index].path).write_bytes(b"no image")


def test_a_score_is_the_models_logit_of_the_transformed_image(detector, listing):
    scores = score([Job(detector)], listing.records)[0]
    transform = EvalTransform(detector.geometry)
    for index in (0, 9):
        with torch.no_grad():
            logit = detector(transform(read_image(listing.records[index].path))[None]).item()
        assert scores.logits[index] == pytest.approx(logit, abs=1e-4)
    assert scores.indices.tolist() == list(range(16))
    assert scores.logits.dtype == np.float64
    assert scores.unreadable == []
    assert len(set(scores.logits.tolist())) > 8


def test_listings_scored_together_get_the_scores_of_each(detector, listing, image_folder):
    other = open_records(str(image_folder), "valid")
    break_images(other.records, 0, 3)
    jobs = [Job(detector), Job(detector, "web")]
    found = score_together(jobs, [listing, other], Settings(5, 2))
    assert score_together(jobs, []) == []
    for by_job, records in zip(found, (listing.records, other.records), strict=True):
        for scores, alone in zip(by_job, score(jobs, records, Settings(5)), strict=True):
            assert scores.indices.tolist() == alone.indices.tolist() and scores.unreadable == alone.unreadable
            assert np.allclose(scores.logits, alone.logits, atol=1e-4)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 0), (16, 0), (100, 0), (5, 2)])
def test_batches_and_workers_change_nothing(detector, listing, batch_size, workers):
    break_images(listing.records, 0, 7, 15)
    expected = score([Job(detector)], listing.records, Settings(4))[0]
    scores = score([Job(detector)], listing.records, Settings(batch_size, workers))[0]
    assert scores.indices.tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14]
    assert [index for index, _ in scores.unreadable] == [0, 7, 15]
    assert scores.unreadable == expected.unreadable
    assert np.allclose(scores.logits, expected.logits, atol=1e-4)


def test_scoring_turns_training_off_and_repeats_exactly(detector, listing):
    expected = score([Job(detector)], listing.records)[0].logits
    state = {key: value.clone() for key, value in detector.state_dict().items()}
    detector.train()
    assert np.array_equal(score([Job(detector)], listing.records)[0].logits, expected)
    assert not detector.training
    assert all(torch.equal(value, state[key]) for key, value in detector.state_dict().items())


def test_scoring_keeps_no_graph(detector, listing):
    for parameter in detector.parameters():
        parameter.requires_grad_(True)
    score([Job(detector)], listing.records)
    assert all(parameter.grad is None for parameter in detector.parameters())


def test_images_are_scored_as_the_stream_is_read(detector, listing):
    batches = stream([Job(detector)], listing.records, Settings(6))
    indices, logits, unreadable = next(batches)
    assert indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert logits.shape == (1, 6)
    assert unreadable == []
    break_images(listing.records, *range(6, 16))  # what is broken now was not read ahead
    assert [len(failures) for _, _, failures in batches] == [6, 4]


def test_nothing_readable_and_nothing_at_all(detector, listing):
    break_images(listing.records, *range(16))
    scores = score([Job(detector)], listing.records, Settings(5))[0]
    assert len(scores.indices) == len(scores.logits) == 0
    assert [index for index, _ in scores.unreadable] == list(range(16))
    assert all(reason for _, reason in scores.unreadable)
    empty = score([Job(detector)], [])[0]
    assert (len(empty.indices), len(empty.logits), empty.unreadable) == (0, 0, [])


def test_reduced_precision_stays_close(detector, listing):
    full = score([Job(detector)], listing.records)[0].logits
    half = score([Job(detector)], listing.records, Settings(dtype=torch.bfloat16))[0].logits
    assert np.abs(full - half).max() < 0.2 * max(1.0, np.abs(full).max())


def test_the_table_names_each_scored_image(detector, listing):
    break_images(listing.records, 3)
    scores = score([Job(detector)], listing.records)[0]
    table = score_table(listing.records, scores, OperatingPoint(TEMPERATURE), "faces", "web")
    assert table.path == [record.path for index, record in enumerate(listing.records) if index != 3]
    assert table.label.tolist() == [r.label for r in listing.records if r.path in set(table.path)]
    assert set(table.dataset) == {"faces"}
    assert set(table.tier) == {"web"}
    assert {(g, label) for g, label in zip(table.generator, table.label.tolist(), strict=True)} == {
        ("real", 0),
        ("faces", 1),
    }
    assert np.array_equal(table.p_fake, sigmoid(scores.logits / 2))


# -------------------------------------------------------------------------------------------------- reports


def test_scores_are_measured_at_an_operating_point(detector, listing):
    scores = score([Job(detector)], listing.records)[0]
    table = score_table(listing.records, scores, OperatingPoint(), "faces")
    point = OperatingPoint(TEMPERATURE, {"balanced": 0.0})  # everything is fake
    identity = {"checkpoint": "tiny", "model": detector.name, "dataset": "faces", "split": "train", "unreadable": 2}
    row = measure(table, point, n_boot=10, **identity)
    assert (row["model"], row["n_real"], row["n_fake"], row["threshold"]) == ("cnn", 8, 8, 0.0)
    assert (row["real_acc"], row["fake_acc"], row["acc"], row["unreadable"]) == (0.0, 1.0, 0.5, 2)
    assert measure(table, OperatingPoint(), n_boot=0, dataset="faces")["threshold"] == 0.5


def test_one_class_gets_the_figures_it_can_have(detector, image_folder):
    reals = open_records(f"{image_folder}@split=test,classes=real")
    table = score_table(reals.records, score([Job(detector)], reals.records)[0], OperatingPoint(), "faces")
    row = measure(table, OperatingPoint(), n_boot=10, dataset="faces", split="test")
    assert row["auc"] is row["fake_acc"] is None
    assert row["real_acc"] is not None
    line = summary_line(row)
    assert line.startswith("test faces n_real=4 n_fake=0 ")
    assert "real_acc=" in line
    assert "auc=" not in line


def test_finalize_stores_operating_point_and_metrics(tiny_checkpoint, image_folder, capsys):
    data = open_training_data([str(image_folder)])
    break_images(data.test[0].records, 0)
    rows, unreadable = finalize(tiny_checkpoint, data, Settings(4), torch.device("cpu"))
    assert list(unreadable) == [data.test[0].records[0].path]
    assert (rows[0]["n_real"], rows[0]["n_fake"], rows[0]["unreadable"]) == (4, 3, 1)
    detector, checkpoint = load_detector(tiny_checkpoint)
    point = detector.operating_point
    assert point.fitted_on == ("faces",) and rows[0]["threshold"] == point.threshold()
    assert checkpoint["metrics"]["test"][0]["auc"] == rows[0]["auc"]
    printed = capsys.readouterr()
    assert summary_line(rows[0]) in printed.out
    assert "warning: the validation AUC is" in printed.err and "4 real and 4 fake validation images" in printed.err
    assert set(point.verdicts(np.linspace(0, 1, 5))) == {"unsure"}


def test_summary_line_of_a_full_row():
    row = {
        "split": "test",
        "dataset": "demo",
        "n_real": 2,
        "n_fake": 3,
        "auc": 0.98149,
        "auc_ci": (0.97, 0.99),
        "acc": 0.5,
        "acc_ci": None,
        "real_acc": 0.25,
        "fake_acc": 1.0,
        "threshold": 0.4666,
        "unreadable": 4,
    }
    assert summary_line(row) == (
        "test demo n_real=2 n_fake=3 auc=0.981 [0.970,0.990] acc=0.500 real_acc=0.250 fake_acc=1.000 "
        "threshold=0.467 unreadable=4"
    )


def test_checkpoints_have_different_names():
    paths = [Path("runs/a/best.pt"), Path("runs/b/best.pt"), Path("other/a/last.pt"), Path("mine.pt"), Path("a-1.pt")]
    names = checkpoint_names(paths)
    assert len(set(names)) == len(names)
    assert names[1] == "b"
    assert names[3] == "mine"
    assert names[0].startswith("a-")
    assert names[2].startswith("a-")
    assert checkpoint_names([Path("best.pt")]) == ["best"]


def test_the_operating_point_is_fitted_on_all_validation_sets_together(detector, listing, image_folder):
    """A detector that is right and a detector that is overconfident: thresholds and temperature follow."""
    records = listing.records
    scores = score([Job(detector)], records)[0]
    rng = np.random.default_rng(0)
    logits = np.where([r.label == 1 for r in records], 8.0, -8.0) + rng.normal(0, 8, 16) + 20
    tables = []
    for half in (slice(0, 8), slice(8, 16)):  # one class each: neither could be fitted alone
        part = type(scores)(scores.indices[half], logits[half])
        tables.append(score_table(records, part, OperatingPoint(), "faces"))
    assert {len(set(table.label.tolist())) for table in tables} == {1}
    point = fit_operating_point(tables)
    assert set(point.thresholds) == {"balanced", "fpr1", "fpr01", "unsure_low", "unsure_high"}
    thresholds = point.thresholds
    assert thresholds["unsure_low"] <= thresholds["balanced"] <= thresholds["unsure_high"]
    assert thresholds["balanced"] <= thresholds["fpr1"] <= thresholds["fpr01"]
    assert point.calibration["method"] == "temperature"
    values = [*thresholds.values(), point.calibration["temperature"]]
    assert all(type(value) is float for value in values)  # fit for a safe checkpoint
