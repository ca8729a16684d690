"""Evaluation with tiers and severities: each image is decoded once, and what the tables say of degraded images."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
from datasets.decoding.images import read_image
from datasets.listing.spec import Record, open_records
from datasets.perturbations import SEVERITIES, apply_tier
from datasets.transforms import EvalTransform, Geometry
from tests.conftest import make_scored, make_table
from tests.utils.evaluation.conftest import QUICK, by_tier
from utils.args import run_script
from utils.checkpoints.file import load_detector
from utils.evaluation.curves import coverage
from utils.scoring.scorer import Job, Settings, score, stream
from utils.scoring.table import read_scores, write_scores

# ------------------------------------------------------------------------------------------------ the loop


def test_each_image_is_decoded_once_for_all_checkpoints_and_tiers(run, variant, image_folder, reads, tiny_checkpoint):
    other = variant("other", geometry=Geometry("resize", 24).to_dict())
    result = run("--tiers", "clean", "web", "hard", data=image_folder, checkpoints=[str(tiny_checkpoint), other])
    assert len(reads) == len(set(reads)) == 8
    assert len(result["rows"]) == 6 and len(result["scores"]) == 2
    for number, path in enumerate((tiny_checkpoint, other)):
        detector, _ = load_detector(path if number == 0 else Path(other) / "best.pt")
        records = open_records(str(image_folder)).records
        logits = by_tier(result, number)
        alone = score([Job(detector)], records)[0].logits
        assert [logits["clean"][record.path] for record in records] == alone.tolist()
        transform = EvalTransform(detector.geometry)
        for tier in ("web", "hard"):
            for record in records[::3]:
                image = transform(apply_tier(read_image(record.path), tier))[None]
                assert logits[tier][record.path] == pytest.approx(detector(image).item(), abs=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_many_jobs_give_what_each_gives_alone(tiny_checkpoint, variant, image_folder, workers):
    detector = load_detector(tiny_checkpoint)[0]
    wide = load_detector(Path(variant("wide", geometry=Geometry("crop", 48).to_dict())) / "best.pt")[0]
    records = open_records(str(image_folder), "train").records
    Path(records[5].path).write_bytes(b"no image")
    jobs = [Job(wide, "hard"), Job(detector), Job(wide), Job(detector, "jpeg-30"), Job(detector, "hard")]
    together = score(jobs, records, Settings(4, workers))
    for job, scores in zip(jobs, together, strict=True):
        (alone,) = score([job], records, Settings(4))
        assert np.array_equal(scores.logits, alone.logits)
        assert scores.indices.tolist() == [index for index in range(16) if index != 5]
        assert [index for index, _ in scores.unreadable] == [5]
    assert np.array_equal(together[1].logits, score([Job(detector)], records, Settings(4))[0].logits)
    assert len({tuple(scores.logits) for scores in together}) == 5


def test_the_place_of_an_image_in_the_list_and_its_name_do_not_matter(tiny_checkpoint, image_folder, tmp_path):
    detector = load_detector(tiny_checkpoint)[0]
    records = open_records(str(image_folder), "test").records
    copies = [Record(str(tmp_path / f"copy-{n}.png"), r.label, r.generator) for n, r in enumerate(records)]
    for record, copy in zip(records, copies, strict=True):
        shutil.copy(record.path, copy.path)
    for tier in ("web", "hard", "crop-0.5", "noise-0.1"):
        (first,) = score([Job(detector, tier)], records)
        (again,) = score([Job(detector, tier)], copies[::-1])
        assert np.allclose(first.logits, again.logits[::-1], atol=1e-5), tier


def test_a_tier_smaller_than_the_crop_is_enlarged(tiny_checkpoint, make_folder):
    records = open_records(str(make_folder("set", {"real": 2, "fake": 2}))).records  # 40 px; the crop is 32 px
    detector = load_detector(tiny_checkpoint)[0]
    assert all(apply_tier(read_image(record.path), "hard").shape[0] < 32 for record in records)
    for scores in score([Job(detector, tier) for tier in ("hard", "resize-0.25", "crop-0.5")], records):
        assert len(scores.logits) == 4 and np.all(np.isfinite(scores.logits)) and np.ptp(scores.logits) > 0


def test_a_batch_without_a_readable_image(tiny_checkpoint, image_folder):
    records = open_records(str(image_folder), "test").records
    for record in records[:4]:
        Path(record.path).write_bytes(b"")
    jobs = [Job(load_detector(tiny_checkpoint)[0], tier) for tier in ("clean", "web")]
    batches = list(stream(jobs, records, Settings(4)))
    assert [logits.shape for _, logits, _ in batches] == [(2, 0), (2, 4)]
    assert [len(unreadable) for _, _, unreadable in batches] == [4, 0]


# ------------------------------------------------------------------------------------- tables and figures


def test_severities_give_curves_and_a_table(run, image_folder, tmp_path, figures):
    result = run("--severity", "all", "--tiers", "clean", "web", "--n-boot", "20", data=image_folder)
    assert {f"severity__{kind}" for kind in SEVERITIES} <= set(figures)
    assert "confusion__tiny-run__faces__web" in figures and "confusion__tiny-run__faces__jpeg-75" not in figures
    rows = [row for row in result["rows"] if "severity" in row]
    expected = [(kind, level) for kind, levels in SEVERITIES.items() for level in levels]
    assert [(row["perturbation"], row["severity"]) for row in rows] == expected
    assert [row["tier"] for row in rows[:2]] == ["jpeg-95", "jpeg-85"]
    assert [row["tier"] for row in result["rows"][:2]] == ["clean", "web"]
    lines = list(csv.DictReader((tmp_path / "out" / "severity.csv").open()))
    assert len(lines) == len(expected) and float(lines[0]["auc_low"]) <= float(lines[0]["auc"])
    assert "| jpeg" in (tmp_path / "out" / "severity.md").read_text()
    assert "jpeg-95" not in (tmp_path / "out" / "metrics.md").read_text()

    auc, acc = figures["severity__resize"].axes
    assert [tick.get_text() for tick in auc.get_xticklabels()] == ["0.25", "0.5", "0.75", "clean", "1.5", "2"]
    own = {row["severity"]: row for row in rows if row["perturbation"] == "resize"}
    wanted = [own[0.25], own[0.5], own[0.75], result["rows"][0], own[1.5], own[2]]
    assert auc.lines[0].get_ydata().tolist() == [row["auc"] for row in wanted]
    assert acc.lines[0].get_ydata().tolist() == [row["acc"] for row in wanted]
    assert len(auc.collections) == 1  # the band of the intervals
    again = evaluate.main(["--from-scores", *result["scores"], "--n-boot", "20", "--output-dir", str(tmp_path / "b")])
    assert again["rows"] == result["rows"]
    for name in ("metrics.json", "metrics.md", "severity.tex", "severity.csv"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_severity_of_one_class_and_without_clean(run, image_folder, tmp_path, figures):
    result = run("--severity", "jpeg", "--tiers", "web", data=f"{image_folder}@classes=fake")
    assert all(row["auc"] is None and row["acc"] is not None for row in result["rows"])
    auc, acc = figures["severity__jpeg"].axes
    assert len(auc.lines[0].get_ydata()) == 0 and len(acc.lines[0].get_ydata()) == 6
    assert [tick.get_text() for tick in auc.get_xticklabels()] == ["95", "85", "75", "60", "45", "30"]
    line = next(line for line in (tmp_path / "out" / "metrics.md").read_text().splitlines() if "| web" in line)
    assert "\N{EN DASH}" in line
    only, table = tmp_path / "only.csv", read_scores(result["scores"][0])
    write_scores(only, table.select(np.array(table.tier) != "web"))
    rows = evaluate.main(["--from-scores", str(only), *QUICK, "--output-dir", str(tmp_path / "only")])["rows"]
    assert len(rows) == 6


def test_unseen_sources_come_first(run, make_folder, variant, tmp_path):
    sets = [make_folder(name, {"real": 3, "fake": 3}) for name in ("home", "away", "far")]
    trained = [{"dataset": "home", "split": split, "fingerprint": "x"} for split in ("train", "valid")]
    one = variant("one", data=trained)
    two = variant("two", data=[{**trained[0], "dataset": "away"}], seed=5)
    result = run(data=sets, checkpoints=[one, two])
    assert [(row["checkpoint"], row["dataset"], row["seen"]) for row in result["rows"]] == [
        ("one", "away", "unseen"),
        ("one", "far", "unseen"),
        ("two", "home", "unseen"),
        ("two", "far", "unseen"),
        ("one", "home", "in-domain"),
        ("two", "away", "in-domain"),
    ]
    text = (tmp_path / "out" / "metrics.md").read_text()
    assert "| Seen " in text and text.index("unseen") < text.index("in-domain")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())[:6] == result["rows"]


@pytest.mark.parametrize(("name", "trained_on"), [("140k", "faces140k"), ("faces140k", "140k")])
def test_the_whole_140k_set_and_the_part_in_the_releases_are_one_source(name, trained_on):
    table = make_table(["a.png", "b.png"], [0, 1], [-1.0, 1.0], dataset=name)
    assert make_scored(table, trained_on=[trained_on]).seen == "in-domain"
    assert make_scored(table, trained_on=["dfdc"]).seen == "unseen"


def test_a_source_is_known_by_its_own_name_when_it_was_numbered(run, make_folder, variant):
    sets = [make_folder("a/home", {"real": 2, "fake": 2}), make_folder("b/home", {"real": 3, "fake": 2})]
    trained = variant("net", data=[{"dataset": "home", "split": "train", "fingerprint": "x"}])
    rows = run(data=sets, checkpoints=[trained])["rows"]
    assert [(row["dataset"], row["seen"]) for row in rows] == [("home-1", "in-domain"), ("home-2", "in-domain")]


def test_training_that_overlaps_a_tier_is_marked(run, image_folder, variant, tmp_path):
    checkpoints = [variant(name, train_args={"augmentation": name}) for name in ("forensic", "light")]
    flags = ["--tiers", "clean", "web", "--severity", "crop", "jpeg"]
    rows = run(*flags, data=image_folder, checkpoints=checkpoints)["rows"]
    marked = {(row["checkpoint"], row["tier"]) for row in rows if row["trained_on_tier"]}
    assert marked == {("forensic", "web"), *(("forensic", f"jpeg-{quality}") for quality in SEVERITIES["jpeg"])}
    for table, cell in (("metrics", "web\N{DAGGER}"), ("severity", "jpeg\N{DAGGER}")):
        text = (tmp_path / "out" / f"{table}.md").read_text()
        assert f"{cell} " in text and "\N{DAGGER} degraded in ways" in text.splitlines()[0]
        lines = list(csv.DictReader((tmp_path / "out" / f"{table}.csv").open()))
        assert {line["trained_on_tier"] for line in lines} == {"True", "False"}
        assert "\N{DAGGER}" not in (tmp_path / "out" / f"{table}.csv").read_text()
    run(*flags, data=image_folder, checkpoints=checkpoints[1:])
    assert "\N{DAGGER}" not in (tmp_path / "out" / "metrics.md").read_text()


def test_reliability_and_coverage_figures(run, image_folder, figures):
    result = run("--tiers", "clean", "web", data=image_folder)
    for suffix, name in (("", "tiny-run on faces"), ("__web", "tiny-run on faces (web)")):
        assert [line.get_label() for line in figures[f"coverage{suffix}"].axes[0].lines] == [name]
        curves = figures[f"reliability{suffix}"].axes[0].lines
        assert [line.get_label() for line in curves] == ["perfect calibration", name]
    share, accuracy = figures["coverage"].axes[0].lines[0].get_data()
    assert share[-1] == 1 and accuracy[-1] == result["rows"][0]["acc"]


def test_coverage_is_of_the_images_outside_a_band():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 300)
    p_fake = np.round(1 / (1 + np.exp(-(4 * labels - 2 + rng.normal(0, 3, 300)))), 2)  # with ties
    share, accuracy = coverage(labels, p_fake, 0.4)
    threshold, width = np.log(0.4 / 0.6), 1.5
    with np.errstate(divide="ignore"):
        answered = np.abs(np.log(p_fake / (1 - p_fake)) - threshold) > width
    assert 0 < answered.mean() < 1
    at = np.flatnonzero(np.isclose(share, answered.mean()))
    assert len(at) == 1 and accuracy[at[0]] == pytest.approx(np.mean((p_fake >= 0.4)[answered] == labels[answered]))
    assert np.all(np.diff(share) > 0) and share[-1] == 1 and np.mean((p_fake >= 0.4) == labels) == accuracy[-1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--tiers wbe", "got 'wbe'; did you mean web?"),
        ("--tiers", "expected at least one argument"),
        ("--severity nose", "got 'nose'; did you mean noise?"),
        ("--score-cache x --no-score-cache", "not allowed with"),
    ],
)
def test_bad_flags_are_answered_in_one_line(flags, says, monkeypatch, capsys, tmp_path, image_folder, tiny_checkpoint):
    argv = ["evaluate.py", "--checkpoint", str(tiny_checkpoint), "--data", str(image_folder)]
    monkeypatch.setattr(sys, "argv", [*argv, "--output-dir", str(tmp_path / "out"), *flags.split()])
    with pytest.raises(SystemExit) as exit_:
        run_script(evaluate.main)
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1 and says in error
