"""The record of a training run: messages, log.csv, curves, TensorBoard and throughput."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.figures import save_figure, training_curve_figure
from utils.files import atomic_write_text, is_first

if TYPE_CHECKING:
    import torch

BALANCED = 0.15  # largest share of the time spent waiting for data that needs no attention


def log(line: str) -> None:
    """Print a message on stderr, once for all processes of a run."""
    if is_first():
        with contextlib.suppress(BrokenPipeError):  # training goes on when nobody reads its messages any more
            print(line, file=sys.stderr, flush=True)


def write_log(folder: Path, history: list[dict[str, Any]]) -> None:
    """Rewrite log.csv and the curves from the whole history; add the last epoch to TensorBoard if it is installed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    atomic_write_text(folder / "log.csv", text.getvalue())
    save_figure(training_curve_figure(history), folder / "curves")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    epoch = history[-1]["epoch"]
    # A resumed run writes its last epoch again, and --overwrite starts at 1: purge_step hides the older rows.
    with SummaryWriter(str(folder / "tensorboard"), purge_step=epoch) as board:
        for key, value in history[-1].items():
            if key != "epoch":
                board.add_scalar(key, value, epoch)


class Stopwatch:
    """Yields batches and adds up the ``seconds`` in which the device was idle because no batch was ready."""

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        self.batches = batches
        self.device = device
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.batches)
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self._is_idle():
                self.seconds += time.perf_counter() - started
            yield batch

    def _is_idle(self) -> bool:
        """Tell whether the device has finished its work: a GPU may still be busy with earlier steps."""
        if self.device.type != "cuda":
            return True
        import torch

        return torch.cuda.current_stream(self.device).query()


def throughput_line(
    images: int, seconds: float, waited: float, device_type: str, workers: int, on_tokens: bool = False
) -> str:
    """Describe images/s, the share of the time spent waiting for data, and the bottleneck in one line."""
    share = waited / seconds if seconds else 0.0
    if share <= BALANCED:
        verdict = f"the model on the {'GPU' if device_type == 'cuda' else device_type.upper()} is the bottleneck"
    elif on_tokens:
        verdict = "reading the cached tokens is the bottleneck; a faster disk or more memory helps"
    elif device_type == "cpu" and not workers:
        verdict = "decoding and augmentation alternate with the model; --cache DIR saves the decoding"
    else:
        verdict = "data loading is the bottleneck; --cache DIR saves the decoding, --workers adds loader processes"
    return f"{images / seconds:.0f} images/s, {share:.0%} of the time waiting for data: {verdict}"
