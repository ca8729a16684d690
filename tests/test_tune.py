"""tune.py: no finished trial is lost or repeated, and workers share a study."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train
import tune
from tests.runs import Killed
from utils.args import run_script
from utils.errors import UserError
from utils.files import ROOT
from utils.search.report import confirmation_rows
from utils.search.study import import_optuna, is_surplus, open_study, queue_once, run_trials

optuna = import_optuna()
pytestmark = pytest.mark.usefixtures("no_curves")
TINY = shlex.split("--image-size 32 --batch-size 8 --epochs 2 --threads 1")
SETTING = {"search space": ["x in [0, 1]"]}


def all_trials(url: str, name: str) -> list:
    return optuna.load_study(study_name=name, storage=url).get_trials(deepcopy=False)


def finished(trials: list) -> list:
    return [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def fake_training(monkeypatch):
    """Replace the training of a trial by a formula: the nearer the rate is to 0.003, the better."""
    import math

    runs: list[dict] = []

    def run(self, values, seed, folder, on_epoch=None):
        value = 0.9 - 0.1 * abs(math.log10(values["lr"]) - math.log10(0.003)) + seed / 1000
        runs.append({**values, "seed": seed})
        for epoch in (1, 2, 3) if on_epoch else ():
            on_epoch([{"epoch": e, "valid_auc": value - 0.1 / e} for e in range(1, epoch + 1)])
        row = {"dataset": "faces", "auc": value, "acc": 0.8}
        return {"metrics": {"valid_auc": value, "valid": [row], "test": [row]}}

    monkeypatch.setattr(tune.Trainer, "run", run)
    return runs


def search(folder: Path, faces: Path, *flags: str) -> dict:
    base = ["--model", "cnn_baseline", "--model-args", "input_size=32", "--data", str(faces)]
    return tune.main([*base, "--output-dir", str(folder), *flags, "--train", *TINY])


# --------------------------------------------------------------------------------------------- the study as a whole


def test_search_retraining_and_report(tmp_path, image_folder, fake_training, rendered, capsys):
    folder = tmp_path / "study"
    result = search(folder, image_folder, "--trials", "5", "--seeds", "2")
    output = capsys.readouterr()
    assert fake_training[0]["lr"] == 1e-3 and fake_training[0]["augmentation"] == "light"  # the default comes first
    searched = [run for run in fake_training if run["seed"] == 0]
    assert len(searched) == 5 and len({run["lr"] for run in searched}) == 5
    by_setting = {row["setting"]: row for row in result["rows"]}
    assert by_setting["best"]["valid_auc"] > by_setting["default"]["valid_auc"]
    assert by_setting["best"]["seeds"] == 2 and by_setting["best"]["valid_auc_sd"] == pytest.approx(0.001 / 2**0.5)
    assert {run["seed"] for run in fake_training[5:]} == {1, 2}  # seeds that the search has not chosen by
    assert output.out.splitlines()[-1] == f"best {result['command']}" and "| best" in output.out
    parsed = train.get_args_parser().parse_args(shlex.split(result["command"])[2:])
    assert parsed.lr == pytest.approx(result["best"]["lr"], rel=1e-3) and parsed.epochs == 2
    names = {"trials.csv", "tune.json", "confirmation.md", "history.png", "history.pdf", "study.db"}
    assert names <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "tune.json").read_text())["n_trials"] == 5


def test_a_finished_study_is_only_reported_again(tmp_path, image_folder, fake_training):
    first = search(tmp_path / "study", image_folder, "--trials", "3", "--seeds", "1")
    done = len(fake_training)
    again = search(tmp_path / "study", image_folder, "--trials", "3", "--seeds", "1")
    assert len(fake_training) == done and again["best"] == first["best"] and again["rows"] == first["rows"]


def test_a_continued_study_retrains_its_new_best_settings(tmp_path, image_folder, fake_training):
    for trials in ("2", "12"):
        result = search(tmp_path / "study", image_folder, "--trials", trials, "--seeds", "1")
    (best,) = [row for row in result["rows"] if row["setting"] == "best"]
    retrained = [run for run in fake_training if run["seed"] == 1]
    assert sum(run["lr"] == 1e-3 for run in retrained) == 1  # the default settings are not trained again
    assert retrained[-1]["lr"] == result["best"]["lr"]
    value = json.loads((tmp_path / "study" / "tune.json").read_text())["best_valid_auc"]
    assert best["valid_auc"] == pytest.approx(value + 0.001)  # the formula rises with the seed


@pytest.mark.parametrize("how", [Killed, KeyboardInterrupt])
def test_a_killed_study_goes_on_without_loss_or_repetition(how, tmp_path, image_folder, fake_training, monkeypatch):
    whole = search(tmp_path / "whole", image_folder, "--trials", "4", "--seeds", "0")
    expected = [run["lr"] for run in fake_training]
    fake_training.clear()
    run, calls = tune.Trainer.run, iter(range(100))

    def killed(self, *args, **kwargs):
        if next(calls) in (0, 2):
            raise how
        return run(self, *args, **kwargs)

    monkeypatch.setattr(tune.Trainer, "run", killed)
    for _ in range(2):
        with pytest.raises(how):
            search(tmp_path / "killed", image_folder, "--trials", "4", "--seeds", "0")
    resumed = search(tmp_path / "killed", image_folder, "--trials", "4", "--seeds", "0")
    rates = [run["lr"] for run in fake_training]
    assert len(rates) == 4 and len(set(rates)) == 4  # none lost, none run twice
    assert rates[0] == expected[0] == 1e-3 and whole["best"].keys() == resumed["best"].keys()


def test_real_training_end_to_end(tmp_path, image_folder, capsys):
    result = search(tmp_path / "study", image_folder, "--trials", "2", "--seeds", "1", "--search", "lr")
    assert result["exit_code"] == 0 and set(result["best"]) == {"lr"}
    assert (tmp_path / "study" / "confirm" / "default-seed1" / "best.pt").is_file()
    assert not list((tmp_path / "study" / "trials").glob("*"))  # the search leaves no checkpoints behind
    assert "test " not in capsys.readouterr().out.replace("| Test", "")  # and shows no test rows


def test_an_interrupted_trial_resumes_its_own_training(tmp_path, image_folder, monkeypatch):
    """The second epoch of the default trial is killed: the run resumes after its first."""
    fit, seen = train.train_epoch, []

    def killed(recipe, state, *rest):
        seen.append(state.epoch)
        if len(seen) == 2:
            raise Killed
        return fit(recipe, state, *rest)

    monkeypatch.setattr(train, "train_epoch", killed)
    with pytest.raises(Killed):
        search(tmp_path / "study", image_folder, "--trials", "1", "--seeds", "0", "--search", "lr")
    run, given = train.main, []
    monkeypatch.setattr(train, "main", lambda flags, on_epoch: given.append(flags) or run(flags, on_epoch))
    search(tmp_path / "study", image_folder, "--trials", "1", "--seeds", "0", "--search", "lr")
    assert seen == [0, 1, 1]
    assert "--resume" in given[0] and "--threads" in given[0], "a resumed trial runs as --train says"


def test_settings_that_diverge_are_pruned_and_three_in_a_row_end_the_search(
    tmp_path, image_folder, monkeypatch, capsys
):
    def fails(self, *args, **kwargs):
        raise UserError("expected a training loss around 0.7, got nan")

    monkeypatch.setattr(tune.Trainer, "run", fails)
    with pytest.raises(UserError, match="3 trials in a row have failed, the last with: expected a training loss"):
        search(tmp_path / "study", image_folder, "--trials", "9")
    assert "trial 0: expected a training loss around 0.7, got nan" in capsys.readouterr().err
    with pytest.raises(UserError, match="but all failed, the last with: expected a training loss"):
        search(tmp_path / "other", image_folder, "--trials", "2")


def test_flags_that_a_classical_model_ignores_are_refused_before_any_trial(tmp_path, image_folder, capsys):
    argv = ["--model", "lightgbm", "--data", str(image_folder), "--output-dir", str(tmp_path), "--train", "--lr", "0.1"]
    with pytest.raises(UserError, match="expected a neural --model with --lr, got lightgbm; drop --lr"):
        tune.main(argv)
    assert "trial 0" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- several workers

WORKER = """
import sys
sys.path.insert(0, {root!r})
from utils.search.study import open_study, queue_once, run_trials
study = open_study({url!r}, "shared", {setting!r}, seed=0)
queue_once(study, {{"x": 0.5}}, -1)
def objective(trial):
    print("begun", flush=True)
    if {hang}:
        import signal; signal.pause()
    return trial.suggest_float("x", 0, 1)
print(run_trials(study, objective, 12))
"""


def start_worker(url: str, hang: bool = False) -> subprocess.Popen:
    code = WORKER.format(root=str(ROOT), url=url, setting=SETTING, hang=hang)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_workers_share_a_study_and_a_killed_one_is_replaced(url):
    study = open_study(url, "shared", SETTING, seed=0)
    queue_once(study, {"x": 0.5}, -1)
    dead = start_worker(url, hang=True)
    assert dead.stdout.readline() == "begun\n"
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    other = start_worker(url)
    run_trials(study, lambda trial: trial.suggest_float("x", 0, 1), 12)
    other.communicate(timeout=800)
    trials = all_trials(url, "shared")
    done = finished(trials)
    assert len(done) == 12 and sum(trial.params["x"] == 0.5 for trial in done) == 1
    assert len({trial.params["x"] for trial in done}) == 12  # workers with one seed do not repeat each other
    assert [trial.state.name for trial in trials if trial.number == 0] == ["FAIL"]


def test_the_trial_of_a_live_process_is_left_alone(url):
    study = open_study(url, "shared", SETTING, seed=0)
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    trial.set_user_attr("owner", f"{__import__('socket').gethostname()}:{os.getppid()}")
    assert run_trials(study, lambda trial: 1.0, 1) == 1  # somebody else runs the only trial wanted
    assert len(all_trials(url, "shared")) == 1


def test_of_two_trials_begun_for_one_place_the_later_is_surplus():
    study = optuna.create_study()
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    queue_once(study, {"x": 0.5}, -1)
    study.enqueue_trial({"x": 0.5}, user_attrs={"retry_of": -1})  # queued by another worker at the same moment
    numbers = [study.ask(space).number for _ in range(4)]
    assert [is_surplus(study, number, 3) for number in numbers] == [False, True, False, False]
    assert is_surplus(study, 3, 2) and not is_surplus(study, 2, 2)
    study.tell(2, state=optuna.trial.TrialState.FAIL)
    assert not is_surplus(study, 3, 2)  # its place is free again


# ------------------------------------------------------------------------------------------------------- bad input


def test_another_search_space_is_refused(tmp_path, image_folder, fake_training, monkeypatch, capsys):
    search(tmp_path / "study", image_folder, "--trials", "1", "--seeds", "0")
    with pytest.raises(UserError, match="search space differ") as refused:
        search(tmp_path / "study", image_folder, "--trials", "2", "--search", "lr")
    assert "\n" not in str(refused.value) and "choose another --output-dir or --name" in str(refused.value)


@pytest.mark.parametrize(
    "storage", ["sqlite:////no/such/folder/study.db", "postgresql://nobody@127.0.0.1:1/none", "carrier-pigeon"]
)
def test_an_unreachable_storage_is_one_line(storage, tmp_path, image_folder, monkeypatch, capsys):
    flags = ["tune.py", "--model", "cnn_baseline", "--data", str(image_folder), "--output-dir", str(tmp_path / "s")]
    monkeypatch.setattr(sys, "argv", [*flags, "--storage", storage])
    with pytest.raises(SystemExit) as exit_:
        run_script(tune.main)
    message = capsys.readouterr().err
    assert exit_.value.code == 2 and message.count("\n") == 1 and "expected --storage" in message and storage in message


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="the package 'optuna'"):
        import_optuna()


def test_reserved_and_unknown_flags_are_refused_before_any_work(tmp_path, capsys):
    with pytest.raises(UserError, match="does not set, got --seed"):
        tune.main(["--output-dir", str(tmp_path), "--train", "--seed", "3"])
    with pytest.raises(UserError, match="expected --model"):
        tune.main(["--output-dir", str(tmp_path), "--model", "resnet5000"])
    with pytest.raises(UserError, match="expected --output-dir without a question mark"):
        tune.main(["--output-dir", f"{tmp_path}/why?"])


def test_means_and_deviations_are_over_the_seeds():
    def run(setting: str, seed: int, value: float) -> dict:
        figures = [{"dataset": "a", "valid_auc": value, "test_auc": value - 0.1, "test_acc": None}]
        return {"setting": setting, "seed": seed, "figures": figures}

    rows = confirmation_rows([run("best", 1, 0.9), run("best", 2, 0.8), run("default", 1, 0.7)])
    assert rows[0]["valid_auc"] == pytest.approx(0.85) and rows[0]["valid_auc_sd"] == pytest.approx(0.1 / 2**0.5)
    assert rows[0]["test_auc"] == pytest.approx(0.75) and rows[0]["test_acc"] is None
    assert rows[1]["seeds"] == 1 and rows[1]["valid_auc_sd"] is None
