"""utils/processes.py: results in order, and no waiting for a process that is gone."""

import os
import signal
import subprocess
import sys

import cv2
import pytest

from utils.errors import UserError
from utils.files import ROOT
from utils.processes import in_processes


def square(number: int) -> int:
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    threads = cv2.getNumThreads()
    assert list(in_processes(square, range(20), workers, chunk=3)) == [n * n for n in range(20)]
    assert cv2.getNumThreads() == threads


def test_the_processes_end_with_one_that_is_killed():
    code = (
        "import os, signal; from utils.processes import in_processes\n"
        "def work(n):\n    print(os.getpid(), flush=True)\n    signal.pause()\n"
        "list(in_processes(work, [1, 2], 2, 1))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        started = [parent.stdout.readline(), parent.stdout.readline()]
        parent.kill()
        assert all(started) and parent.stdout.read() == ""  # its end: nobody can write to it any more


def test_a_process_that_dies_is_reported():
    with pytest.raises(UserError, match="expected all processes to finish, but one died"):
        list(in_processes(square, [1, -1, *range(100)], 2, chunk=1))
