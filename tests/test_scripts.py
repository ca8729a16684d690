"""The scripts in a row, each fed with what the one before it wrote: a small version of `make demo`."""

import contextlib
import csv
import importlib
import io
import json
import os
import re
import subprocess
import sys

import pytest

import evaluate
import predict
import train
from utils.checkpoints.file import load_checkpoint
from utils.files import ROOT
from utils.scoring.table import read_scores

SCRIPTS = sorted(file.stem for file in ROOT.glob("*.py"))
DEMO = "demo@n=60,size=64"


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> dict:
    """Run every step in an empty folder; returns the result and the stdout of each."""
    root = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("DEMO_DIR", raising=False)
        steps = {
            "train": (
                train,
                "--model cnn_baseline --model-args input_size=48 --image-size 48 --batch-size 8 --epochs 2"
                f" --threads 1 --data {DEMO} --output-dir run",
            ),
            "evaluate": (evaluate, f"--checkpoint run --data {DEMO} --n-boot 50 --threads 1 --output-dir first"),
            "again": (evaluate, "--from-scores first/scores/run__demo__test.csv.gz --n-boot 50 --output-dir again"),
            "predict": (predict, "--checkpoint run data/demo-v1-n60-s64-seed0/test --threads 1"),
            "json": (predict, "--checkpoint run data/demo-v1-n60-s64-seed0/test/real --format json --output p.json"),
        }
        done: dict = {"root": root}
        for name, (script, flags) in steps.items():
            stdout = io.StringIO()
            with contextlib.redirect_stdout(stdout):
                result = script.main(flags.split())
            done[name] = {**result, "stdout": stdout.getvalue()}
    return done


def test_every_step_succeeds(chain):
    assert {name: chain[name]["exit_code"] for name in chain if name != "root"} == dict.fromkeys(
        ("train", "evaluate", "again", "predict", "json"), 0
    )


def test_train_ends_with_the_test_row_and_the_checkpoint(chain):
    lines = chain["train"]["stdout"].splitlines()
    number = r"\d\.\d{3} \[\d\.\d{3},\d\.\d{3}\]"
    assert re.match(rf"test demo n_real=6 n_fake=6 auc={number} acc={number} .*threshold=\d\.\d{{3}}$", lines[-2])
    assert lines[-1] == "checkpoint run/best.pt"
    rows = list(csv.DictReader((chain["root"] / "run" / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_evaluate_agrees_with_the_test_row_of_train(chain):
    trained, evaluated = chain["train"]["rows"][0], chain["evaluate"]["rows"][0]
    for key in ("n_real", "n_fake", "auc", "acc", "ap", "eer", "brier", "threshold"):
        assert evaluated[key] == trained[key], key
    stored = load_checkpoint(chain["root"] / "run" / "best.pt")["metrics"]["test"][0]
    assert stored["auc"] == trained["auc"]


def test_scores_alone_give_the_same_report(chain):
    for name in ("metrics.json", "metrics.md", "metrics.csv", "metrics.tex", "generators.md"):
        assert (chain["root"] / "again" / name).read_bytes() == (chain["root"] / "first" / name).read_bytes()
    assert chain["again"]["stdout"] == chain["evaluate"]["stdout"]


def test_predict_gives_the_scores_of_evaluate(chain):
    predicted = {row["path"]: row for row in csv.DictReader(io.StringIO(chain["predict"]["stdout"]))}
    scores = read_scores(chain["root"] / "first/scores/run__demo__test.csv.gz")
    assert len(predicted) == len(scores) == 12
    for path, logit, p_fake in zip(scores.path, scores.logit, scores.p_fake, strict=True):
        row = predicted[f"data/demo-v1-n60-s64-seed0/{path}"]
        assert float(row["logit"]) == pytest.approx(logit, abs=1e-5)
        assert float(row["p_fake"]) == pytest.approx(p_fake, abs=1e-5)
    written = json.loads((chain["root"] / "p.json").read_text())
    assert [item["path"] for item in written] == sorted(path for path in predicted if "/real/" in path)


def test_nothing_is_written_elsewhere(chain):
    assert {file.name for file in chain["root"].iterdir()} == {"data", "run", "first", "again", "p.json"}
    assert not [file for file in chain["root"].rglob("*") if file.name.startswith(".")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_flat_and_has_a_parser_that_shows_an_example(name):
    module = importlib.import_module(name)
    parser = module.get_args_parser()
    assert f"python {name}.py" in parser.format_help()
    with pytest.raises(SystemExit) as exit_, contextlib.redirect_stderr(io.StringIO()) as stderr:
        module.main(["--no-such-flag"])
    assert exit_.value.code == 2 and stderr.getvalue().count("\n") == 1


@pytest.mark.slow
def test_processes_find_their_folder_and_hand_on_exit_codes(tmp_path):
    """From another folder, as a user runs them; each process has to load torch."""

    def script(line: str) -> subprocess.CompletedProcess:
        name, *flags = line.split()
        return subprocess.run(
            [sys.executable, str(ROOT / name), *flags],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=800,
        )

    trained = script(
        f"train.py --model cnn_baseline --model-args input_size=48 --image-size 48 --epochs 1 --data {DEMO}"
    )
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.splitlines()[-1] == "checkpoint checkpoints/cnn_baseline-demo/best.pt"
    (tmp_path / "broken.png").write_bytes(b"")
    image = next((tmp_path / "data").rglob("test/real/*.jpg"))
    for line, code in (
        (f"predict.py --checkpoint checkpoints/cnn_baseline-demo {image}", 0),
        (f"predict.py --checkpoint checkpoints/cnn_baseline-demo {image} broken.png", 1),
        (f"predict.py --checkpoint checkpoints/none {image}", 2),
        (f"evaluate.py --checkpoint checkpoints/cnn_baseline-demo --data {DEMO}", 0),
    ):
        done = script(line)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
