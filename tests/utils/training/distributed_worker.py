"""What one of two processes does in test_distributed.py: started by torchrun, it writes a JSON file per rank.

torchrun --nproc-per-node 2 tests/utils/training/distributed_worker.py TASK FOLDER
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from datasets.listing.spec import open_records
from datasets.loading import EpochSampler, ImageDataset, make_loader, stand_in
from datasets.transforms import EvalTransform, Geometry
from models.detector import Detector
from utils.args import run_script
from utils.distributed import expecting_peers, gather, join_team, parallel, team, wait_for_all


class Small(Detector):
    """A network without batch norm, whose gradient over two halves of a batch is exactly that over the whole."""

    def __init__(self) -> None:
        super().__init__(input_size=32)
        torch.manual_seed(0)
        self.body = torch.nn.Conv2d(3, 4, 3, stride=2)
        self.head = torch.nn.Linear(4, 1)

    def forward(self, images):
        return self.head(torch.relu(self.body(self.normalize(images))).mean((2, 3))).squeeze(1)


def gradients(folder: Path, batch_size: int) -> dict:
    """Indices and gradients of every step of one epoch, and the figures of an evaluation."""
    from utils.scoring.scorer import Job, Settings, score

    listing = open_records(f"{folder / 'faces'}@split=train")
    dataset = ImageDataset(listing.records, EvalTransform(Geometry("crop", 32)))
    sampler = EpochSampler(len(listing.records), 7, team.rank, team.size)
    detector = Small()
    detector.geometry = Geometry("crop", 32)
    model = parallel(detector, torch.device("cpu"))
    steps = []
    for batch in make_loader(dataset, batch_size, sampler):
        weight = stand_in(batch, 32)
        loss = weight * binary_cross_entropy_with_logits(model(batch.images), batch.labels)
        detector.zero_grad()
        with expecting_peers():
            loss.backward()
        grads = torch.cat([p.grad.flatten() for p in detector.parameters()])
        steps.append({"indices": batch.indices.tolist(), "gradient": grads.tolist(), "weight": weight})
    scores = score([Job(detector)], listing.records, Settings(3))[0]
    return {
        "steps": steps,
        "scored": scores.indices.tolist(),
        "logits": scores.logits.tolist(),
        "unreadable": scores.unreadable,
        "ranks": gather(team.rank),
    }


def train_twice(folder: Path) -> list[dict]:
    """Train without and with an interruption after the first epoch; returns what each validation saw."""
    import train
    from utils.training import log, validation

    validate, no_sync = validation.validate, torch.nn.parallel.DistributedDataParallel.no_sync
    seen: list[dict] = []
    unsynchronised: list[int] = []

    def digest(tensors) -> str:
        return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()

    def record(recipe, listings, state, workers):
        result = validate(recipe, listings, state, workers)
        seen.append(
            {
                "random": digest([torch.get_rng_state()]),
                "buffers": digest([*state.detector.buffers(), *state.averaged().buffers()]),
                "weights": digest(state.detector.parameters()),
                "unsynchronised": len(unsynchronised),
                "step": state.step,
                **result,
            }
        )
        return result

    def interrupt(history):
        raise KeyboardInterrupt

    validation.validate = record
    log.save_figure = log.training_curve_figure = lambda *args: None
    torch.nn.parallel.DistributedDataParallel.no_sync = lambda self: (unsynchronised.append(1), no_sync(self))[1]
    flags = "--model test_resnet --model-args head=dense512 dropout=0.5 --image-size 32 --batch-size 4 --accumulate 2 "
    flags += f"--epochs 2 --threads 1 --device cpu --augmentation none --data {folder / 'balanced'} --output-dir"
    train.main([*flags.split(), str(folder / "whole")])
    with contextlib.suppress(KeyboardInterrupt):
        train.main([*flags.split(), str(folder / "interrupted")], on_epoch=interrupt)
    wait_for_all()  # last.pt is written
    train.main(["--resume", "--output-dir", str(folder / "interrupted")])
    return seen


def main(argv=None) -> dict:
    """Join the others and do the task."""
    task, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    join_team(torch.device("cpu"))
    if task == "die" and team.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    result = {"one_epoch": gradients(folder, batch_size=2), "validations": train_twice(folder)}
    (folder / f"rank{team.rank}.json").write_text(json.dumps(result))
    return {"exit_code": 0}


if __name__ == "__main__":
    run_script(main)
