"""Several processes started by torchrun as one run: who writes, who scores which images, and how results are shared.

    torchrun --nproc-per-node 4 train.py --model tf_efficientnet_b0 --data data/140k

Without torchrun every function here behaves as for a single process. ``--batch-size`` is per process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError

if TYPE_CHECKING:
    import torch

ScoredBatch = tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]

TIMEOUT = timedelta(minutes=10)  # without a message from the others
SIGNS_OF_A_LOST_PEER = ("gloo", "nccl", "connection", "peer", "timed out", "socket")


@dataclass
class Team:
    """This process among the others."""

    rank: int = 0
    size: int = 1


team = Team()


def join_team(device: torch.device) -> None:
    """Connect to the other processes, if torchrun started any; only the first one keeps printing results.

    Raises:
        UserError: the machine has fewer GPUs than processes, or the others cannot be reached.
    """
    if team_size() == 1 or team.size > 1:
        return
    import torch
    from torch import distributed

    if device.type == "cuda":
        if device.index is not None:
            raise UserError(f"expected --device cuda under torchrun, which gives each process its GPU, got {device}")
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(
                f"expected a GPU for each process, found {torch.cuda.device_count()}; lower --nproc-per-node or pass "
                "--device cpu"
            )
        torch.cuda.set_device(local)
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"expected the other processes of torchrun, but {str(error).splitlines()[0]}") from None
    # Without this, gloo's threads may outlive the interpreter and abort the process: pytorch/pytorch#179291.
    atexit.register(distributed.destroy_process_group)
    team.rank, team.size = distributed.get_rank(), distributed.get_world_size()
    if team.rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open until the process ends)


def team_size() -> int:
    """The number of processes that torchrun started; known before they are connected."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def check_enough(n_images: int) -> None:
    """Raise UserError unless each process gets at least two training images, as batch norm requires."""
    if n_images < 2 * team.size:
        raise UserError(
            f"expected at least two training images per process, got {n_images} for {team.size} processes; "
            "lower --nproc-per-node"
        )


def gather(value: Any) -> list[Any]:
    """The values passed by all processes, in the order of their ranks; every process must call this."""
    if team.size == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * team.size
    with expecting_peers():
        distributed.all_gather_object(values, value)
    return values


def share_batches(
    count: int, batch_size: int, score: Callable[[np.ndarray], Iterator[ScoredBatch]]
) -> Iterator[ScoredBatch]:
    """Let each process score every n-th batch of ``count`` images; all of them yield all results, in order.

    Args:
        count: number of images.
        batch_size: images per batch, also of ``score``.
        score: from the indices ``(N,)`` of this process's images to their batches ``(indices, logits, unreadable)``,
            with indices into these images.
    """
    order = np.arange(count)
    blocks = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    own = np.concatenate([order[:0], *blocks[team.rank :: team.size]])
    mine = score(own)
    for _ in range(0, len(blocks), team.size):
        part = next(mine, None)
        if part is not None:
            indices, logits, failures = part
            part = own[indices], logits, [(int(own[index]), reason) for index, reason in failures]
        yield from (found for found in gather(part) if found is not None)


def wait_for_all() -> None:
    """Wait until every process has reached this point: files written by the first one can then be read."""
    gather(None)


def parallel(detector: Any, device: torch.device) -> Any:
    """Wrap the detector so that gradients are averaged over the processes; a single process gets it unchanged.

    Batch norm sees the images of one process only: keep --batch-size, which is per process, at 16 or more.
    """
    if team.size == 1:
        return detector
    from torch.nn.parallel import DistributedDataParallel

    with expecting_peers():
        return DistributedDataParallel(detector, device_ids=[device] if device.index is not None else None)


def accumulating(model: Any, is_active: bool) -> contextlib.AbstractContextManager:
    """While active, keep the gradients of each process to itself, as for all but the last batch of a step."""
    return model.no_sync() if is_active and team.size > 1 else contextlib.nullcontext()


def share_buffers(*modules: torch.nn.Module) -> None:
    """Give all processes the buffers of the first one: each has batch norm averages of its last batch only."""
    if team.size == 1:
        return
    from torch import distributed

    with expecting_peers():
        for buffer in (buffer for module in modules for buffer in module.buffers()):
            distributed.broadcast(buffer, 0)


def unwrap(detector: Any) -> Any:
    """The detector inside the wrapper of :func:`parallel`."""
    return detector.module if team.size > 1 and hasattr(detector, "module") else detector


@contextlib.contextmanager
def expecting_peers() -> Iterator[None]:
    """Turn torch's error for a lost process into one line. Raises UserError."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if team.size == 1 or not any(sign in text for sign in SIGNS_OF_A_LOST_PEER):
            raise
        raise UserError(
            f"expected {team.size} processes to work together, but another one has stopped (see its message); "
            "restart all of them, train.py with --resume"
        ) from None
