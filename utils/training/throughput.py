"""How fast an epoch was, and what held it up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BALANCED = 0.15  # share of the time in which waiting for data is no cause for concern


class Stopwatch:
    """Passes batches on and adds up the ``seconds`` in which nothing could be computed for want of one."""

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
        """A GPU works on its own: waiting costs nothing as long as it is still busy with the steps before."""
        if self.device.type != "cuda":
            return True
        import torch

        return torch.cuda.current_stream(self.device).query()


def throughput_line(images: int, seconds: float, waited: float, device_type: str, workers: int) -> str:
    """One line for the log: images/s, the share of the time spent waiting for data, and the bottleneck."""
    share = waited / seconds if seconds else 0.0
    if share <= BALANCED:
        verdict = f"the model on the {'GPU' if device_type == 'cuda' else device_type.upper()} is the bottleneck"
    elif device_type == "cpu" and not workers:
        verdict = "decoding and augmentation take turns with the model; --cache DIR saves the decoding"
    else:
        verdict = "the data are the bottleneck: --cache DIR saves the decoding, more --workers share the rest"
    return f"{images / seconds:.0f} images/s, {share:.0%} of the time waiting for data: {verdict}"
