"""utils/processes.py: results in order, and no waiting for a process that is gone."""

import os
import signal

import cv2
import pytest

from utils.errors import UserError
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


def test_a_process_that_dies_is_reported():
    with pytest.raises(UserError, match="expected all processes to finish, but one died"):
        list(in_processes(square, [1, -1, *range(100)], 2, chunk=1))
