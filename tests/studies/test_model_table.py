"""model_table.py: the list, two models end to end, skipping what is finished, and going on after a failure."""

import sys

import pytest

import train
from studies import model_table
from studies.model_table import ENTRIES, Entry
from utils.args import run_script
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.model_names import check_model_name

NAMES = ["logistic_regression", "cnn"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The same two entries, narrower."""
    entries = [
        Entry("logistic_regression", "logistic_regression", ("features=color",)),
        Entry("cnn", "cnn", ("width=4",)),
        Entry("broken", "cnn_lstm", ("reader=gru",)),
    ]
    monkeypatch.setattr(model_table, "ENTRIES", entries)


@pytest.fixture
def argv(image_folder, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)  # the feature cache is below the working folder
    flags = "--image-size 32 --epochs 1 --batch-size 8 --device cpu --threads 1 --runs-dir runs --output-dir table"
    return ["--data", str(image_folder), *flags.split()]


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The models that train.main is called for; it does train them."""
    models: list[str] = []
    original = train.main

    def spy(flags):
        models.append("resumed" if "--resume" in flags else flags[flags.index("--model") + 1])
        return original(flags)

    monkeypatch.setattr(train, "main", spy)
    return models


@pytest.mark.usefixtures("no_curves", "no_evaluation_figures", "rendered")
def test_two_models_end_to_end_and_not_again(argv, trained, tmp_path, capsys):
    result = model_table.main([*argv, "--models", *NAMES])
    assert result["exit_code"] == 0
    assert trained == NAMES
    table = tmp_path / "table"
    for name in ("models.csv", "models.md", "models.tex", "models.pdf", "models.png", "metrics.json"):
        assert (table / name).stat().st_size > 0, name
    out = capsys.readouterr().out
    assert out.endswith((table / "models.md").read_text())

    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() == set(NAMES)
    cnn, classical = rows["cnn"], rows["logistic_regression"]
    assert (cnn["image_size"], cnn["epochs"], cnn["start"]) == (32, 1, "scratch")
    assert (classical["epochs"], classical["start"], classical["parameters"]) == (None, "-", None)
    assert cnn["parameters"] == pytest.approx(sum_of_parameters(tmp_path / "runs" / "cnn" / "best.pt") / 1e6)
    assert cnn["gmacs"] > 0
    for row in rows.values():
        assert row["dataset"] == "faces"
        assert 0 <= row["auc"] <= 1
        assert row["images_per_s"] > 0
        assert row["minutes"] > 0
    assert [row["auc"] for row in result["rows"]] == sorted((row["auc"] for row in rows.values()), reverse=True)

    trained.clear()
    again = model_table.main([*argv, "--models", *NAMES])
    assert not trained
    assert [row["auc"] for row in again["rows"]] == [row["auc"] for row in result["rows"]]


def sum_of_parameters(checkpoint) -> int:
    from models.detector import count_parameters
    from utils.checkpoints.file import load_detector

    return count_parameters(load_detector(checkpoint)[0])


def test_one_failure_does_not_cost_the_others(argv, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_table, "cost", lambda run: {})
    monkeypatch.setattr(model_table, "ENTRIES", model_table.ENTRIES[::-1])  # the broken one comes first
    result = model_table.main(argv)
    assert result["exit_code"] == 1
    assert result["failed"] == ["broken"]
    assert trained == ["cnn_lstm", "cnn", "logistic_regression"]
    assert {row["name"] for row in result["rows"]} == set(NAMES)
    assert "broken: expected --model-args reader=lstm or reader=mean, got 'gru'" in capsys.readouterr().err
    assert "minutes" not in read_json(tmp_path / "runs" / "broken" / "plan.json")


def test_nothing_but_failures_makes_no_table(argv, tmp_path):
    result = model_table.main([*argv, "--models", "broken"])
    assert (result["exit_code"], result["rows"], result["failed"]) == (1, [], ["broken"])
    assert not list((tmp_path / "table").iterdir())


def test_an_interrupted_run_is_resumed(argv, trained, tmp_path, monkeypatch):
    """Killed between the last epoch and the end of the plan: nothing is trained twice."""
    monkeypatch.setattr(model_table, "cost", lambda run: {})
    model_table.main([*argv, "--models", "cnn"])
    plan = tmp_path / "runs" / "cnn" / "plan.json"
    facts = read_json(plan)
    minutes = facts.pop("minutes")
    write_json(plan, facts)
    trained.clear()
    assert model_table.main([*argv, "--models", "cnn"])["exit_code"] == 0
    assert trained == ["resumed"]
    assert read_json(plan)["minutes"] == minutes


def test_a_run_of_other_settings_is_not_mixed_in(argv, trained, tmp_path, capsys):
    model_table.main([*argv, "--models", "cnn"])
    other = [*argv, "--models", "cnn", "--lr", "0.5"]
    assert model_table.main(other)["failed"] == ["cnn"]
    assert "expected the flags of the run in runs/cnn, got others; choose another --runs-dir" in capsys.readouterr().err
    assert trained == ["cnn"] and model_table.main([*other, "--runs-dir", "others"])["failed"] == []
    model_table.main([*argv, "--models", "cnn", "--threads", "2"])  # what changes no figure may differ
    assert trained == ["cnn", "cnn"]


def test_unreadable_images_are_in_the_exit_code(argv, image_folder, monkeypatch):
    monkeypatch.setattr(model_table, "cost", lambda run: {})
    (image_folder / "test" / "real" / "broken.png").write_bytes(b"no image")
    assert model_table.main([*argv, "--models", "cnn"])["exit_code"] == 1


def fails(argv: list[str], monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", ["model_table.py", *argv])
    with pytest.raises(SystemExit) as exit_:
        run_script(model_table.main)
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_wrong_spec_ends_the_run_at_once(argv, trained, tmp_path, monkeypatch, capsys):
    """And is not reported once for every model."""
    argv[1] = str(tmp_path / "nowhere")
    assert "nowhere" in fails(argv, monkeypatch, capsys)
    assert not trained


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "cnn", "resnet"], "got resnet"),
        (["--lr", "fast"], "--lr"),
        (["--image-size", "8"], "--image-size"),
    ],
)
def test_wrong_flags_end_the_run_at_once(flags, message, argv, trained, monkeypatch, capsys):
    assert message in fails([*argv, *flags], monkeypatch, capsys)
    assert not trained


def test_the_list_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(model_table, "ENTRIES", ENTRIES)
    assert model_table.main(["--list"]) == {"rows": [], "exit_code": 0}
    assert capsys.readouterr().out.splitlines() == [entry.name for entry in ENTRIES]
    model_table.main(["--list", "--models", "xception", "cnn"])
    assert capsys.readouterr().out.splitlines() == ["cnn", "xception"]
    with pytest.raises(UserError, match=r"expected --models of random_forest, .*, got vgg"):
        model_table.main(["--list", "--models", "vgg"])


def test_every_entry_names_a_model_and_no_name_is_used_twice():
    names = [entry.name for entry in ENTRIES]
    assert len(names) == len(set(names))
    for entry in ENTRIES:
        check_model_name(entry.model)


def test_weights_are_found_by_their_stem(tmp_path):
    entry = Entry("cnn_mean", "cnn_lstm", (), "tf_efficientnet_b0")
    assert model_table.weights_of(entry, str(tmp_path)) is None
    (tmp_path / "tf_efficientnet_b0.safetensors").touch()
    assert model_table.weights_of(entry, str(tmp_path)) == str(tmp_path / "tf_efficientnet_b0.safetensors")
    assert model_table.weights_of(Entry("cnn", "cnn"), str(tmp_path)) is None
    assert model_table.weights_of(entry, "imagenet") == "imagenet"
    assert model_table.weights_of(entry, None) is None
