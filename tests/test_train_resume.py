"""train.py: a run that was killed is resumed exactly, and one that ended is not trained further."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

import train
from tests.conftest import exit_and_stderr
from tests.runs import TINY, Killed, assert_same_run
from utils.checkpoints.file import load_checkpoint
from utils.files import ROOT

pytestmark = pytest.mark.usefixtures("no_curves")
FORENSIC = [*TINY, "--augmentation", "forensic"]  # uses all random numbers of training


@pytest.fixture(scope="module")
def whole_run(faces, tmp_path_factory) -> dict:
    """An uninterrupted run: its folder and what main returned."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return {"folder": folder, **train.main([*FORENSIC, "--data", str(faces), "--output-dir", str(folder)])}


def kill_in_epoch_2(patch) -> None:
    steps = iter(range(6 + 3))  # the steps of the first epoch, and half of those of the second
    clip = torch.nn.utils.clip_grad_norm_

    def dying(*args):
        if next(steps, None) is None:
            raise Killed
        return clip(*args)

    patch.setattr(torch.nn.utils, "clip_grad_norm_", dying)


def kill_at_replacing(name: str, time_: int):
    def install(patch) -> None:
        calls, replace = [], os.replace

        def dying(source, target):
            calls.append(Path(target).name)
            if calls.count(name) == time_:
                raise Killed
            replace(source, target)

        patch.setattr(os, "replace", dying)

    return install


def kill_in_finish(patch) -> None:
    def dying(tables, method):
        raise Killed

    patch.setattr("utils.evaluation.finalize.fit_operating_point", dying)


@pytest.mark.parametrize(
    "install",
    [
        pytest.param(kill_in_epoch_2, id="mid-epoch"),
        pytest.param(kill_at_replacing("last.pt", 2), id="between-best-and-last"),
        pytest.param(kill_at_replacing("log.csv", 1), id="first-log"),
        pytest.param(kill_at_replacing("log.csv", 3), id="last-log"),
        pytest.param(kill_in_finish, id="finishing"),
    ],
)
def test_resume_is_exact(install, faces, whole_run, tmp_path):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        install(patch)
        train.main([*FORENSIC, "--data", str(faces), "--output-dir", str(folder)])
    (folder / ".last.pt.0f1e.tmp").write_bytes(b"half")  # what a real kill leaves behind
    torch.manual_seed(1)
    result = train.main(["--resume", "--output-dir", str(folder)])
    assert_same_run(folder, whole_run["folder"])
    assert [row["auc"] for row in result["rows"]] == [row["auc"] for row in whole_run["rows"]]


def start(
    argv: list, folder: Path, script: str = str(ROOT / "train.py"), stdout: int = subprocess.DEVNULL
) -> subprocess.Popen:
    """Start train.py as a separate process, its stderr in a file."""
    with open(folder.parent / "stderr.txt", "w") as stderr:
        return subprocess.Popen(
            [sys.executable, script, *map(str, argv)],
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )


PAUSING = """
import os, signal, train
from utils.args import run_script

replace = os.replace


def pausing(source, target):
    replace(source, target)
    if os.path.basename(target) == "last.pt":
        print("saved", flush=True)
        signal.pause()


os.replace = pausing
run_script(train.main)
"""


def kill_after_an_epoch(argv: list, folder: Path) -> int:
    """Start train.py, kill it when it has just replaced last.pt, and return its exit code."""
    script = folder.parent / "pausing.py"
    script.write_text(PAUSING)
    with start(argv, folder, str(script), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"saved\n"
        finally:
            process.kill()
        return process.wait()


def interrupt_at_last_pt(patch) -> None:
    """Have Ctrl-C arrive when last.pt has just been replaced."""
    replace = os.replace

    def interrupting(source, target):
        replace(source, target)
        if Path(target).name == "last.pt":
            signal.raise_signal(signal.SIGINT)

    patch.setattr(os, "replace", interrupting)


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Undo what a shell does to the tests that it runs in the background: they ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop_when(event, process: subprocess.Popen, signal_: int) -> int:
    """Send a signal as soon as event() is true; returns the exit code."""
    deadline = time.monotonic() + 280
    try:
        while not event():
            assert process.poll() is None, "the run ended before the moment to interrupt it"
            assert time.monotonic() < deadline, "the run never reached the moment to interrupt it"
            time.sleep(0.002)
        process.send_signal(signal_)
        return process.wait(60)
    finally:
        process.kill()
        process.wait()


def change_of(folder: Path, pattern: str):
    """An event: a file whose name matches appears, or is replaced by another one."""

    def files():
        found = os.scandir(folder) if folder.exists() else ()
        return {(entry.name, entry.inode()) for entry in found if fnmatch(entry.name, pattern)}

    before = files()
    return lambda: not files() <= before


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_then_sigkill_of_a_real_process(faces, whole_run, tmp_path, capsys):
    folder = tmp_path / "the run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at_last_pt(patch)
        argv = [*FORENSIC, "--data", faces, "--output-dir", folder]
        code, error = exit_and_stderr(train.main, argv, patch, capsys)
    assert code == 130 and "Traceback" not in error
    assert load_checkpoint(folder / "last.pt")["training"]["epoch"] == 1
    hint = next(line for line in error.splitlines() if "resume with: python train.py" in line)
    resume = shlex.split(hint.partition("train.py")[2])

    assert kill_after_an_epoch(resume, folder) == -signal.SIGKILL
    assert {"curves.png", "curves.pdf"} <= {file.name for file in folder.iterdir()}
    assert load_checkpoint(folder / "last.pt")["training"]["epoch"] == 2
    train.main(resume)
    assert_same_run(folder, whole_run["folder"])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_many_sigkills_of_real_processes(faces, tmp_path):
    # The larger input makes files of 30 MB, so that a kill can hit the writing of them.
    argv = [*FORENSIC, "--model-args", "input_size=64", "--image-size", "64", "--epochs", "8", "--data", str(faces)]
    train.main([*argv, "--output-dir", str(tmp_path / "whole")])
    folder = tmp_path / "run"
    argv += ["--output-dir", str(folder)]
    for pattern in (".best.pt.*", ".last.pt.*", "last.pt", "log.csv", "last.pt", ".last.pt.*", ".best.pt.*"):
        resume = ["--resume"] if (folder / "last.pt").exists() else ["--overwrite"]
        event = change_of(folder, pattern)
        process = start([*argv, *resume], folder)
        assert stop_when(event, process, signal.SIGKILL) == -signal.SIGKILL
    process = start(["--resume", "--output-dir", folder], folder)
    assert process.wait(280) == 0
    assert_same_run(folder, tmp_path / "whole")


def test_interrupted_before_the_first_checkpoint_gives_no_hint(faces, tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_epoch", interrupted)
    code, error = exit_and_stderr(
        train.main, [*TINY, "--data", faces, "--output-dir", tmp_path / "run"], monkeypatch, capsys
    )
    assert code == 130
    assert "--resume" not in error and "Traceback" not in error


def test_finished_early_run_is_not_trained_further_by_resume(faces, tmp_path, monkeypatch):
    aucs = iter([0.6, 0.9, 0.8, 0.7, 0.95, 0.99])
    figures = lambda *args: {"valid_loss": 0.5, "valid_auc": next(aucs)}  # noqa: E731
    monkeypatch.setattr("utils.training.validation.validate", figures)
    folder = tmp_path / "run"
    argv = [*TINY, "--epochs", "6", "--patience", "2", "--data", str(faces), "--output-dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in_finish(patch)
        train.main(argv)
    result = train.main(["--resume", "--output-dir", str(folder)])
    assert [row["valid_auc"] for row in result["history"]] == [0.6, 0.9, 0.8, 0.7]
    best = load_checkpoint(folder / "best.pt")
    assert best["epoch"] == best["metrics"]["best_epoch"] == 2
