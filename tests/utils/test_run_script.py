"""The exit of a script: its code, one line for a mistake, and streams that are full or closed."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from utils.args import run_script
from utils.errors import UserError
from utils.files import ROOT


def exit_of(main) -> int:
    with pytest.raises(SystemExit) as caught:
        run_script(main)
    return caught.value.code


@pytest.mark.parametrize(("result", "code"), [({}, 0), ({"exit_code": 0}, 0), ({"exit_code": 1}, 1)])
def test_the_result_decides_the_exit_code(result, code):
    assert exit_of(lambda argv: result) == code


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("expected a checkpoint, got soup", "expected a checkpoint, got soup"),
        ("timm cannot build it:\n  because\n\tof this", "timm cannot build it: because of this"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(message, line, capsys, monkeypatch):
    def main(argv):
        raise UserError(message)

    monkeypatch.setattr(sys, "argv", ["some/where/tool.py"])
    assert exit_of(main) == 2
    assert capsys.readouterr().err == f"tool.py: {line}\n"


def test_ctrl_c_is_no_traceback(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert exit_of(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda argv: {"exit_code": 1 // 0})
    with pytest.raises(FileNotFoundError):
        run_script(lambda argv: Path("no/such/file").read_bytes())


@pytest.mark.skipif(os.name != "posix", reason="needs pipes of a POSIX system")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_traceback(unbuffered):
    """`tool.py | head`: whether the line is written at once or when the script ends."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = "from utils.args import run_script\nrun_script(lambda argv: print('a line') or {})"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=write_end, stderr=subprocess.PIPE, text=True
    )
    os.close(write_end)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("streams", "code", "out", "error"),
    [
        (">/dev/full", 2, "", "expected room for the output, got: No space left on device"),
        ("2>/dev/full", 2, "a line\n", ""),
        (">/dev/full 2>&1", 2, "", ""),
        ("<&-", 0, "a line\n", "a note"),
        (">&-", 0, "", "a note"),
        ("2>&-", 0, "a line\n", ""),
        ("<&- >&- 2>&-", 0, "", ""),
    ],
)
def test_full_and_closed_streams_are_no_traceback(streams, code, out, error, unbuffered):
    tool = "print(sys.stdin.read() + 'a line') or print('a note', file=sys.stderr) or {}"
    command = [sys.executable, "-c", f"import sys; from utils.args import run_script; run_script(lambda argv: {tool})"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    shell = ["bash", "-c", f"{shlex.join(command)} {streams}"]
    result = subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True, input="")
    assert (result.returncode, result.stdout) == (code, out)
    assert error in result.stderr and not {"Traceback", "Exception"} & {*result.stderr.split()}
