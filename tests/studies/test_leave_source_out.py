"""Leave one source out: what each run trains on and scores, what is resumed and refused."""

import json

import pytest
import torch

import calibrate
import train
from datasets.listing.spec import open_records, parse_spec
from datasets.listing.splits import open_training_data
from studies import leave_source_out
from studies.leave_source_out import check_unseen, kept_specs, left_out_listings, named_specs, parse_group
from studies.left_out_scores import Scoring, score_listings
from tests.conftest import exit_and_stderr, write_image
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.evaluation.evaluate import load_candidates
from utils.files import read_json
from utils.scoring.table import read_sidecar

TRAIN = "--train --model cnn --model-args width=4 --image-size 32 --batch-size 8 --epochs 1 --threads 1 --balance"
SOURCES = {"pairs": ("real", "fake"), "swaps": ("real", "fake"), "flux": ("fake",), "stock": ("real",)}


@pytest.fixture
def sources(make_folder, tmp_path, monkeypatch, no_curves):
    """Four data sets, two of them of one class, in the current folder: 4 training and 3 validation images a class."""
    for name, classes in SOURCES.items():
        make_folder(name, {f"{split}/{label}": n for split, n in (("train", 4), ("valid", 3)) for label in classes})
    for number in range(3):
        write_image(tmp_path / "pairs" / "test" / "fake" / f"{number}.png", number, fake=True)
    monkeypatch.chdir(tmp_path)
    return list(SOURCES)


# ------------------------------------------------------------------------------------------------- what is left out


def test_a_group_may_hold_one_class_of_a_set(sources):
    specs = named_specs([*sources[:3], "stock@limit=6"])
    group = parse_group("stock,swaps:real", specs)
    assert group.name == "stock+swaps-real"
    kept = kept_specs(group, specs)
    assert kept == ["pairs@use=train+valid", "swaps@use=train+valid,classes=fake", "flux@use=train+valid"]
    found = {
        (listing.name, listing.split): [r.label for r in listing.records] for listing in left_out_listings(group, specs)
    }
    assert found == {
        ("swaps", "train"): [0] * 4,
        ("swaps", "valid"): [0] * 3,
        ("stock", "train"): [0] * 4,
        ("stock", "valid"): [0] * 3,
    }
    data = open_training_data(kept)
    assert data.test == [] and {listing.name for listing in data.train} == {"pairs", "swaps", "flux"}
    whole = kept_specs(parse_group("swaps", specs), specs)
    assert [parse_spec(text).location for text in whole] == ["pairs", "flux", "stock"]
    helped = named_specs(["pairs", "stock", "swaps@use=train"])
    assert {listing.name for listing in left_out_listings(parse_group("stock,swaps", helped), helped)} == {"stock"}
    assert kept_specs(parse_group("stock", helped), helped) == ["pairs@use=train+valid", "swaps@use=train"]
    nothing = parse_group("flux:real", specs)
    assert len(kept_specs(nothing, specs)) == 4
    with pytest.raises(UserError, match="expected --groups that leave images out, got 'flux:real'"):
        left_out_listings(nothing, specs)


def test_a_listing_that_stays_is_the_same_whatever_is_left_out(sources):
    """So that what is cached of it is found again."""
    specs = named_specs(sources)
    runs = [open_training_data(kept_specs(parse_group(text, specs), specs)) for text in ("flux", "stock", "swaps:real")]
    pairs = [listing for data in runs for listing in (*data.train, *data.valid) if listing.name == "pairs"]
    assert len(pairs) == 6 and pairs[0] == pairs[2] == pairs[4] and pairs[1] == pairs[3] == pairs[5]


# --------------------------------------------------------------------------------------------------------- the runs


def test_the_protocol_trains_scores_and_resumes(sources, tmp_path, monkeypatch, capsys):
    flags = ["--data", *sources, "--groups", "pairs", "stock,swaps:real", "--limit", "4", "--n-boot", "20"]
    flags += ["--tiers", "clean", "common", "--runs-dir", "runs", "--output-dir", "out", *TRAIN.split()]
    result = leave_source_out.main(flags)
    assert result["exit_code"] == 0
    sizes = {(row["source"], row["tier"]): (row.get("n_real"), row.get("n_fake")) for row in result["rows"]}
    expected = {"pairs": (4, 4), "stock": (7, 0), "swaps": (7, 0), "all": (None, None)}
    assert sizes == {(name, tier): n for tier in ("clean", "common") for name, n in expected.items()}
    kept = load_checkpoint("runs/stock+swaps-real/best.pt")["data"]
    assert {(entry["dataset"], entry["n_real"] > 0) for entry in kept} == {
        ("pairs", True),
        ("swaps", False),
        ("flux", False),
    }
    scores = sorted(path.name for path in (tmp_path / "out/scores").glob("*.csv.gz"))
    assert scores == [
        f"{run}__{part}.csv.gz" for run in ("pairs", "stock+swaps-real") for part in ("left-out", "valid")
    ]
    info = read_sidecar(tmp_path / "out/scores/stock+swaps-real__left-out.csv.gz")
    assert info["trained_on"] == ["flux", "pairs"] and info["left_out"] == "stock,swaps:real"
    printed = capsys.readouterr().out
    assert "clean: fakes 0." in printed and "test pairs" not in printed, "no test split is looked at"

    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("a finished run was repeated"))
    monkeypatch.setattr("studies.left_out_scores.write_part", lambda *_: pytest.fail("scores were made again"))
    assert leave_source_out.main(flags)["rows"] == result["rows"]
    files = [str(tmp_path / "out/scores" / name) for name in scores]
    again = leave_source_out.main(["--from-scores", *files, "--n-boot", "20", "--output-dir", "again"])
    assert again["rows"] == result["rows"] and again["means"] == result["means"]
    for suffix in ("json", "csv", "md", "tex"):
        assert (tmp_path / f"out/sources.{suffix}").read_bytes() == (tmp_path / f"again/sources.{suffix}").read_bytes()
    assert json.loads(json.dumps(result["means"])) == read_json(tmp_path / "out/sources.json")["means"]
    left_out = [file for file in files if "left-out" in file]
    fitted = calibrate.main(
        ["--checkpoint", "runs/pairs", "--from-scores", *left_out, "--tiers", "clean", "--output-dir", "new"]
    )
    assert load_checkpoint(fitted["checkpoint"])["fitted_on"] == ["pairs", "swaps", "stock"]


def test_other_images_are_scored_again_and_by_their_faces(sources, tmp_path, monkeypatch):
    flags = ["--data", *sources, "--groups", "flux", "--n-boot", "0", "--runs-dir", "runs", "--output-dir", "out"]
    flags += [*TRAIN.split(), "--geometry", "face"]
    first = leave_source_out.main(flags)
    (tmp_path / "flux/train/fake/000.png").unlink()
    original = train.main
    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("the run does not depend on what it leaves out"))
    second = leave_source_out.main(flags)
    assert (first["rows"][0]["n_fake"], second["rows"][0]["n_fake"]) == (7, 6)
    assert "auc_fakes_ci" not in second["rows"][0]
    monkeypatch.setattr(train, "main", original)
    with pytest.raises(UserError, match="the flags of the run in runs/flux, got others"):
        leave_source_out.main([*flags, "--seed", "1"])


def test_runs_are_averaged_in_place_of_training(sources, monkeypatch):
    flags = ["--data", *sources, "--groups", "stock,swaps:real", "--n-boot", "0", "--tiers", "clean"]
    for seed in "01":
        leave_source_out.main([*flags, "--runs-dir", f"runs{seed}", *TRAIN.split(), "--seed", seed])
    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("trained"))
    souped = [*flags, "--soup", "runs0", "runs1", "--runs-dir", "runs", "--output-dir", "out"]
    result = leave_source_out.main(souped)
    assert {row["source"] for row in result["rows"]} == {"stock", "swaps", "all"}
    files = [f"{folder}/stock+swaps-real/best.pt" for folder in ("runs", "runs0", "runs1")]
    mean, *members = [load_checkpoint(file)["state_dict"]["head.weight"] for file in files]
    torch.testing.assert_close(mean, (members[0] + members[1]) / 2)
    info = read_sidecar("out/scores/stock+swaps-real__left-out.csv.gz")
    assert info["trained_on"] == ["flux", "pairs"] and "--method soup" in info["train_command"]

    monkeypatch.setattr("ensemble.main", lambda argv: pytest.fail("averaged again"))
    assert leave_source_out.main(souped)["rows"] == result["rows"]


def test_runs_on_tokens_share_them(sources, monkeypatch, capsys):
    """Each image goes through the frozen part once, whatever is left out."""
    monkeypatch.setattr("utils.scoring.scorer._score", lambda *_: pytest.fail("an image was scored again"))
    flags = ["--data", *sources, "--groups", "flux", "stock", "--n-boot", "0", "--runs-dir", "runs"]
    flags += "--tiers clean common --output-dir out --train --model foundation --image-size 32 --batch-size 4".split()
    flags += "--epochs 1 --threads 1 --precision fp32 --token-views 2 --cache tokens".split()
    flags += "--model-args backbone=test_vit blocks=3-6 tune=norms_2".split()
    result = leave_source_out.main(flags)
    assert {(row["source"], row["tier"]) for row in result["rows"]} >= {("flux", "clean"), ("stock", "common")}
    said = capsys.readouterr().err
    assert "tokens: 55 images computed" in said, "two views of 20 training images, one of 15 validation images"
    assert "tokens: 8 images computed" in said, "the views of flux; its validation images are known from their scores"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data pairs flux --groups flus", "names of the data (pairs, flux), got 'flus'; did you mean flux?"),
        ("--data pairs flux --groups flux:fakes", "got 'flux:fakes'"),
        ("--data pairs stock --groups pairs", "expected real and fake images in the train split"),
        ("--data pairs ./pairs", "different names, got pairs twice"),
        ("--data pairs", "expected two or more --data SPEC"),
        ("--data pairs flux --tiers wbe", "expected --tiers of"),
        ("--data pairs flux --train --data x", "does not set, got --data"),
        ("--data pairs flux --soup runs", "expected --soup with two or more folders of runs"),
        ("--data pairs flux --soup runs more --train --model cnn", "and no --train or --from-scores"),
        ("--data pairs flux stock --groups flux --soup a b", "with the run flux, found no a/flux/best.pt; train"),
    ],
)
def test_mistakes_are_found_before_any_training(flags, message, sources, monkeypatch, capsys):
    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("trained"))
    code, says = exit_and_stderr(leave_source_out.main, flags.split(), monkeypatch, capsys)
    assert code == 2 and message in says and says.count("\n") == 1


@pytest.mark.parametrize("flag", ["--weights", "--teacher", "--model-args features=embedding:FILE"])
def test_what_a_run_learns_from_must_not_have_seen_what_is_left_out(flag, sources, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("trained"))
    entry = {"dataset": "flux", "split": "train", "fingerprint": "x"}
    save_checkpoint(tiny_checkpoint, {**load_checkpoint(tiny_checkpoint), "data": [entry]})
    given = flag.replace("FILE", "").split() if "FILE" in flag else [flag, ""]
    given[-1] += str(tiny_checkpoint)
    flags = ["--data", *sources, "--groups", "stock", "flux", *TRAIN.split(), *given]
    with pytest.raises(UserError, match=rf"expected {flag} without .*, which was trained on flux; choose"):
        leave_source_out.main(flags)


def test_averaged_runs_that_have_seen_what_is_left_out_are_refused(sources, tiny_checkpoint, tmp_path):
    entry = {"dataset": "swaps", "split": "train", "fingerprint": "x", "n_real": 4, "n_fake": 0}
    content = {**load_checkpoint(tiny_checkpoint), "data": [entry]}
    for folder in ("a/swaps", "b/swaps"):
        (tmp_path / folder).mkdir(parents=True)
        save_checkpoint(tmp_path / folder / "best.pt", content)
    flags = ["--data", *sources, "--groups", "swaps", "--soup", "a", "b"]
    with pytest.raises(UserError, match=r"expected --soup without .*, got a/swaps/best.pt, which was trained"):
        leave_source_out.main(flags)
    fakes = parse_group("swaps:fake", named_specs(sources))
    check_unseen(fakes, "--soup", "a/swaps/best.pt")  # it has seen the reals only


def test_a_student_of_cached_tokens_is_scored_on_its_images(image_folder, tiny_checkpoint):
    recipe = {"token_views": 2, "precision": "fp32", "batch_size": 4}
    save_checkpoint(tiny_checkpoint, {**load_checkpoint(tiny_checkpoint), "train_args": recipe})
    (candidate,) = load_candidates([tiny_checkpoint], torch.device("cpu"))
    listing = open_records(str(image_folder), "valid")
    (table,), unreadable = score_listings(candidate, [listing], Scoring(["clean"], None, None), 0)
    assert len(table) == 8 and not unreadable


def test_each_student_has_the_teacher_of_its_own_run(sources, tmp_path):
    flags = ["--data", *sources, "--groups", "flux", "swaps:fake", "--n-boot", "0"]
    leave_source_out.main([*flags, "--runs-dir", "teachers", "--output-dir", "out", *TRAIN.split()])
    distil = [*TRAIN.split(), "--teacher", "teachers/{run}/best.pt"]
    leave_source_out.main([*flags, "--runs-dir", "students", "--output-dir", "again", *distil])
    for name in ("flux", "swaps-fake"):
        recipe = load_checkpoint(tmp_path / f"students/{name}/best.pt")["train_args"]
        assert recipe["teacher"] == f"teachers/{name}/best.pt"
