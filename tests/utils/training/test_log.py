"""What the log says about speed, and what TensorBoard gets."""

import sys
import types

import pytest
import torch

from utils.training import log
from utils.training.log import Stopwatch, throughput_line


def test_waiting_is_added_up_and_work_is_not(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0])  # two batches that take 1 and 2 seconds to come, then the end
    monkeypatch.setattr(log, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    watch = Stopwatch(["a", "b"], torch.device("cpu"))
    assert list(watch) == ["a", "b"] and watch.seconds == 3.0


@pytest.mark.parametrize(
    ("waited", "device", "workers", "says"),
    [
        (0.5, "cpu", 0, "100 images/s, 5% of the time waiting for data: the model on the CPU is the bottleneck"),
        (5.0, "cpu", 0, "100 images/s, 50% of the time waiting for data: decoding and augmentation alternate"),
        (5.0, "cuda", 4, "data loading is the bottleneck; --cache DIR"),
        (0.0, "cuda", 4, "the model on the GPU is the bottleneck"),
    ],
)
def test_the_line_names_the_bottleneck(waited, device, workers, says):
    assert says in throughput_line(1000, 10.0, waited, device, workers)


def test_training_on_tokens_decodes_nothing():
    assert "reading the cached tokens is the bottleneck" in throughput_line(1000, 10.0, 5.0, "cpu", 0, on_tokens=True)


@pytest.mark.usefixtures("no_curves")
def test_an_epoch_that_is_written_again_replaces_itself_in_tensorboard(tmp_path, monkeypatch):
    written: list[tuple] = []

    class Board:
        """Like a folder of event files, whose reader drops the rows from ``purge_step`` on."""

        def __init__(self, folder, purge_step):
            written[:] = [row for row in written if row[2] < purge_step]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def add_scalar(self, *row):
            written.append(row)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Board))
    history = [{"epoch": epoch, "valid_auc": 0.5} for epoch in (1, 2)]
    for rows in (history[:1], history, history):  # two epochs, and the run is resumed
        log.write_log(tmp_path, rows)
    assert written == [("valid_auc", 0.5, 1), ("valid_auc", 0.5, 2)]
