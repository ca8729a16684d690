"""The command line: one line for a mistake, early checks, and answers before torch is imported."""

import argparse
import errno
import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from utils.args import add_device_group, add_seed, check_output_dir, float_in, int_in, key_value, make_parser
from utils.checkpoint_files import check_checkpoint_file, check_weights_source
from utils.errors import UserError
from utils.files import ROOT


def parser() -> argparse.ArgumentParser:
    result = make_parser("What it does.\n\n  an example   kept as it is\n", "tool.py")
    result.add_argument("--epochs", type=int_in(1, 9))
    result.add_argument("--rate", type=float_in(0, 1, "(pixel units)"))
    result.add_argument("--model-args", type=key_value, nargs="+", default=[])
    add_device_group(result)
    add_seed(result)
    return result


def usage_error(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(argv)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("tool.py: ")
    return output.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense (see"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3; did you mean --epochs?"),  # no abbreviations
        (["--epoch=3"], "unrecognized arguments: --epoch=3; did you mean --epochs?"),
        (["--epochs"], "expected one argument"),
        (["--epochs", "0"], "expected an integer in 1..9, got 0"),
        (["--epochs", "10"], "expected an integer in 1..9, got 10"),
        (["--epochs", "two"], "expected an integer in 1..9, got 'two'"),
        (["--epochs", "1.5"], "expected an integer in 1..9, got '1.5'"),
        (["--rate", "8"], "expected a number in [0, 1] (pixel units), got 8"),
        (["--rate", "nan"], "expected a number in [0, 1] (pixel units), got nan"),
        (["--rate", "inf"], "got inf"),
        (["--rate=-1e-9"], "got -1e-09"),
        (["--rate", "much"], "got 'much'"),
        (["--seed", "-1"], "expected an integer in 0..2147483647, got -1"),
        (["--workers", "-1"], "expected an integer in 0..256, got -1"),
        (["--threads", "0"], "expected an integer in 1..1024, got 0"),
        (["--precision", "fp64"], "fp64"),
        (["--model-args", "width"], "expected key=value, got 'width'"),
        (["--model-args", "a-b=3"], "expected key=value, got 'a-b=3'"),
    ],
    ids=" ".join,
)
def test_usage_errors_are_one_line(capsys, argv, message):
    assert message in usage_error(capsys, *argv)


def test_limits_are_inside_the_range():
    args = parser().parse_args(["--epochs", "9", "--rate", "0"])
    assert (args.epochs, args.rate) == (9, 0.0)
    assert parser().parse_args(["--epochs", "1", "--rate", "1"]).rate == 1.0


def test_defaults_of_the_shared_flags():
    args = parser().parse_args([])
    assert (args.device, args.precision, args.workers, args.threads, args.seed) == ("auto", "auto", None, None, 0)


def test_the_docstring_is_the_help_text():
    assert "  an example   kept as it is\n" in parser().format_help()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", 3),
        ("a=-3", -3),
        ("a=0.5", 0.5),
        ("a=1e3", 1000.0),
        ("a=True", True),
        ("a=false", False),
        ("a=x=y", "x=y"),
    ],
)
def test_model_args_have_types(text, value):
    assert key_value(text) == ("a", value)
    assert type(key_value(text)[1]) is type(value)


# ---------------------------------------------------------------------------------------------- early checks


def test_output_folders_are_made_and_left_clean(tmp_path):
    folder = check_output_dir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    assert check_output_dir(str(folder)) == folder


@pytest.mark.parametrize("below", ["", "sub"])
def test_an_output_folder_that_is_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"expected --output-dir to be a writable folder, got .*file"):
        check_output_dir(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("method", "code"), [("mkdir", errno.EROFS), ("write_bytes", errno.EACCES), ("write_bytes", errno.ENOSPC)]
)
def test_an_output_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch, method, code):
    def refuse(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(UserError, match=rf"\({os.strerror(code)}\); choose another one"):
        check_output_dir(tmp_path / "new")


def test_checkpoints_are_checked_by_their_outer_form(tmp_path, tiny_checkpoint):
    assert check_checkpoint_file(tiny_checkpoint) == tiny_checkpoint
    assert check_checkpoint_file(str(tiny_checkpoint.parent)) == tiny_checkpoint
    with pytest.raises(UserError, match=r"found none at '.*missing\.pt'; check the path"):
        check_checkpoint_file(tmp_path / "missing.pt")
    for content, found in ((b"", "an empty file"), (b"text", "a truncated file or one of another kind")):
        (tmp_path / "odd.pt").write_bytes(content)
        with pytest.raises(UserError, match=found):
            check_checkpoint_file(tmp_path / "odd.pt")


def test_weights_are_imagenet_or_a_file(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    for source in (None, "imagenet", str(tmp_path / "a.pth")):
        check_weights_source(source)
    for source in ("ImageNet", str(tmp_path / "b.pth"), str(tmp_path)):
        with pytest.raises(UserError, match=r"expected --weights imagenet or a .*file, found no file"):
            check_weights_source(source)


# -------------------------------------------------------------------------------------------------- scripts


def answer_without_torch(script: str, argv: list[str]) -> subprocess.CompletedProcess:
    """Run a script's main in a fresh interpreter; fails if it has imported torch or another slow library."""
    code = (
        f"import sys; sys.argv[:] = [{script!r} + '.py', *{argv!r}]\n"
        f"import {script}; from utils.args import run_script\n"
        "try:\n"
        f"    run_script({script}.main)\n"
        "finally:\n"
        "    slow = {'torch', 'timm', 'albumentations', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "    print('slow:', sorted(slow))\n"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=800)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "terminated"),
        ("print('x' * 10**6)", 141, ""),
        ("return {}", 0, ""),
    ],
)
def test_an_unfinished_run_has_no_success_to_report(body, status, says):
    """The reader of its output ends at once."""
    code = f"import os, signal; from utils.args import run_script\ndef main(argv):\n    {body}\nrun_script(main)"
    shell = f"{shlex.join([sys.executable, '-c', code])} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert (done.returncode, done.stderr.strip()) == (status, says)


@pytest.mark.parametrize("script", ["train", "evaluate", "predict"])
def test_help_needs_no_torch(script):
    result = answer_without_torch(script, ["--help"])
    assert result.returncode == 0, result.stderr
    assert "slow: []" in result.stdout
    assert f"python {script}.py" in result.stdout


@pytest.mark.parametrize(
    ("script", "argv", "message"),
    [
        ("train", ["--modle", "cnn"], "unrecognized arguments: --modle"),
        ("train", ["--model", "cnm"], "did you mean"),
        ("train", ["--data", "no/such/folder", "--output-dir", "{tmp}/run"], "no such folder"),
        ("train", ["--weights", "missing.pth"], "found no file 'missing.pth'"),
        ("evaluate", ["--checkpoint", "missing.pt", "--data", "demo", "--output-dir", "{tmp}/out"], "found none at"),
        ("predict", ["--checkpoint", "missing.pt", "a.jpg"], "found none at 'missing.pt'"),
        ("calibrate", ["--checkpoint", "a.pt", "--output-dir", "{tmp}/out"], "expected either --data SPEC... or"),
        ("studies.leave_source_out", ["--groups", "a", "--output-dir", "{tmp}/out"], "expected either --data SPEC..."),
        ("studies.reconstruct", ["--data", "demo", "--autoencoder", "missing.pth"], "got 'missing.pth', which is no"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_answered_in_one_line_without_torch(script, argv, message, tmp_path):
    result = answer_without_torch(script, [word.format(tmp=tmp_path) for word in argv])
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == "slow: []\n"


@pytest.mark.parametrize("script", ["calibrate", "studies.few_shot", "ensemble", "benchmark"])
def test_an_export_is_refused_where_weights_are_needed(script, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not read at all")
    file = str(tmp_path / "model.onnx")
    flags = {
        "calibrate": ["--checkpoint", file, "--data", "demo", "--output-dir", str(tmp_path)],
        "studies.few_shot": ["--checkpoint", file, "--data", "demo"],
        "ensemble": ["--checkpoint", file, file, "--data", "demo", "--output-dir", str(tmp_path)],
        "benchmark": ["--checkpoint", file, "--data", "demo"],
    }
    with pytest.raises(UserError, match=r"got the export .*; pass the checkpoint it was made from"):
        importlib.import_module(script).main(flags[script])
