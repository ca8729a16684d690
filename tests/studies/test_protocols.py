"""Leave-one-generator-out and few-shot adaptation: the drivers, what they resume, and what they refuse."""

import json

import pytest

import train
from datasets.listing.spec import open_records
from datasets.listing.splits import open_training_data
from studies import few_shot, leave_one_out
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.files import read_json

TRAIN = "--train --model cnn --model-args width=4 --image-size 32 --batch-size 8 --epochs 1 --threads 1"


@pytest.fixture
def two_generators(make_folder):
    counts = {f"{split}/fake/{name}": 6 for split in ("train", "valid", "test") for name in ("gan", "blend")}
    return make_folder("faces", counts | {f"{split}/real": 8 for split in ("train", "valid", "test")})


@pytest.mark.usefixtures("no_curves", "no_evaluation_figures", "rendered")
def test_the_matrix_has_every_run_and_resumes(two_generators, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = f"--data {two_generators} --runs-dir runs --output-dir out --n-boot 20 {TRAIN}".split()
    result = leave_one_out.main(flags)
    assert result["exit_code"] == 0
    cells = {(row["excluded"], row["tested"]): row["seen"] for row in result["rows"]}
    assert cells == {
        ("none", "blend"): "yes",
        ("none", "gan"): "yes",
        ("blend", "blend"): "no",
        ("blend", "gan"): "yes",
        ("gan", "blend"): "yes",
        ("gan", "gan"): "no",
    }
    assert all(row["n_fake"] == 6 and row["n_real"] == 8 for row in result["rows"])
    assert (tmp_path / "out/matrix.pdf").exists()
    assert "mean AUC over 2 generators: seen 0." in capsys.readouterr().out.splitlines()[-1] + " "

    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("a finished run was repeated"))
    assert leave_one_out.main(flags)["rows"] == result["rows"]
    with pytest.raises(UserError, match="the flags of the run in runs/none, got others"):
        leave_one_out.main([*flags, "--seed", "5"])


def test_an_interrupted_run_of_the_matrix_goes_on(two_generators, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = f"--data {two_generators} --runs-dir runs --output-dir out --n-boot 0 {TRAIN}".split()
    original, calls = train.main, []

    def interrupted_once(argv):
        calls.append(argv)
        result = original(argv)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(train, "main", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        leave_one_out.main(flags)
    leave_one_out.main(flags)
    assert calls[1] == ["--resume", "--output-dir", "runs/none"]
    assert len(calls) == 4


def test_initial_weights_must_not_have_seen_the_generators(two_generators, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"dataset": "faces", "split": "train", "fingerprint": "x"}
    save_checkpoint(tiny_checkpoint, {**load_checkpoint(tiny_checkpoint), "data": [entry]})
    with pytest.raises(UserError, match=r"expected --weights that was not trained on the data, .* trained on faces"):
        leave_one_out.main(["--data", str(two_generators), *TRAIN.split(), "--weights", str(tiny_checkpoint)])


def test_generators_without_real_images_to_test_on_are_named(two_generators, make_folder, capsys):
    web = make_folder("web", {f"{split}/fake/sdxl": 2 for split in ("train", "valid", "test")})
    data = open_training_data([str(two_generators), str(web)])
    assert leave_one_out.shared_generators(data) == (["blend", "gan"], ["sdxl"])
    with pytest.raises(UserError, match=r"with real images, found none; python -m studies\.leave_source_out takes"):
        leave_one_out.main(["--data", str(web), str(make_folder("stock", {"train/real": 4, "test/real": 4}))])


@pytest.mark.parametrize(
    ("flags", "message"), [("--train --output-dir x", "does not set, got --output-dir"), ("", "two or more generators")]
)
def test_leave_one_out_refuses(image_folder, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        leave_one_out.main(["--data", str(image_folder), *flags.split()])


def test_a_source_of_one_class_is_kept_by_its_accuracy():
    reals = {"dataset": "stock", "n_real": 4, "n_fake": 0, "auc": None, "acc": 0.75}
    own = {"dataset": "wild", "n_real": 4, "n_fake": 4, "auc": 0.5, "acc": 0.5}
    rows = few_shot.summarise({(0, 0): [own, reals], (8, 0): [own, {**reals, "acc": 0.25}]})
    assert [row["auc"] for row in rows] == [0.5, None, 0.5, None]
    assert rows[3]["acc_ci"] == [0.25, 0.25] and rows[3]["auc_ci"] is None
    assert [line.get_label() for line in few_shot.adaptation_figure(rows).axes[0].lines] == ["wild"]


@pytest.mark.usefixtures("no_curves", "no_evaluation_figures", "rendered")
def test_the_curve_starts_at_the_checkpoint_and_resumes(tiny_checkpoint, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original = train.main
    flags = f"--checkpoint {tiny_checkpoint} --data {image_folder} --shots 6 --seeds 2 --epochs 1 --runs-dir runs"
    result = few_shot.main(f"{flags} --output-dir out --train --threads 1".split())
    assert [(row["shots"], row["seeds"], row["n_fake"]) for row in result["rows"]] == [(0, 1, 4), (6, 2, 4)]
    assert capsys.readouterr().out.count("shots ") == 2
    zero = read_json(tmp_path / "runs/shots0/metrics.json")[0]
    assert result["rows"][0]["auc"] == zero["auc"]
    drawn = [open_records(f"csv:{tmp_path}/runs/shots6-seed{seed}/images.csv", "all").records for seed in (0, 1)]
    test_images = {record.path for record in open_records(str(image_folder), "test").records}
    assert all(len(records) == 6 and not test_images & {r.path for r in records} for records in drawn)
    assert sum(record.label for record in drawn[0]) == 3
    assert {r.path for r in drawn[0]} != {r.path for r in drawn[1]}

    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("a finished run was repeated"))
    assert few_shot.main(f"{flags} --output-dir out --train --threads 1".split())["rows"] == json.loads(
        json.dumps(result["rows"])
    )
    checkpoint = load_checkpoint(tiny_checkpoint)  # trained again at the same path
    checkpoint["state_dict"]["head.weight"] *= -1
    save_checkpoint(tiny_checkpoint, checkpoint)
    monkeypatch.setattr(train, "main", original)
    again = few_shot.main(f"{flags} --output-dir out --train --threads 1".split())["rows"]
    assert again[0]["auc"] == pytest.approx(1 - result["rows"][0]["auc"])
    with pytest.raises(UserError, match="choose another --runs-dir"):
        few_shot.main(f"{flags} --output-dir out --train --threads 1 --lr 1e-3".split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--shots 600", "expected --shots up to the 16 training images, got 600"),
        ("--train --model cnn", "does not set, got --model"),
    ],
)
def test_few_shot_refuses(tiny_checkpoint, image_folder, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        few_shot.main(["--checkpoint", str(tiny_checkpoint), "--data", str(image_folder), *flags.split()])


def test_few_shot_refuses_a_source_without_a_test_split(tiny_checkpoint, make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_folder("x", {"train/real": 4, "train/fake": 4})
    with pytest.raises(UserError, match="train and test splits, found train"):
        few_shot.main(["--checkpoint", str(tiny_checkpoint), "--data", str(folder)])
