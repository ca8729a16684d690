"""Two gloo processes with the environment of torchrun: the data, the gradients and the scores of one process."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
import utils.distributed as distributed
from datasets.loading import Batch, EpochSampler, stand_in
from tests.conftest import write_image
from tests.runs import assert_same_run
from tests.utils.training.distributed_worker import gradients
from utils.distributed import check_enough, expecting_peers
from utils.errors import UserError
from utils.files import ROOT, atomic_write_bytes

TOLERANCE = 1e-6  # of a gradient: a mean of two means against the mean over both, in float32


def torchrun(*command: str, processes: int = 2, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher += ["--local-addr", "127.0.0.1"]  # the name of this machine may have no address
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*launcher, *command], cwd=cwd, capture_output=True, text=True, timeout=800, env=environment)


def two_workers(task: str, folder: Path) -> list[subprocess.CompletedProcess]:
    """Run distributed_worker.py twice with what torchrun sets, but without its own process, which imports torch too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "tests/utils/training/distributed_worker.py", task, str(folder)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=800)[1] for process in processes]
    return [
        subprocess.CompletedProcess(command, process.returncode, stderr=text)
        for process, text in zip(processes, ends, strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """21 training images, one of them broken."""
    folder = tmp_path_factory.mktemp("team")
    for number in range(21):
        name = "fake" if number % 2 else "real"
        write_image(folder / "faces" / "train" / name / f"{number:02}.png", number, name == "fake")
    (folder / "faces/train/real/04.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def reports(folder) -> list[dict]:
    """What each of two processes reports; one start does for all, because to import torch takes the longest."""
    for split, count in {"train": 12, "valid": 6, "test": 4}.items():
        for number in range(2 * count):
            name = "fake" if number % 2 else "real"
            write_image(folder / "balanced" / split / name / f"{number:02}.png", number, name == "fake")
    for done in two_workers("work", folder):
        assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def two(reports) -> list[dict]:
    """What two processes with batches of two do."""
    return [report["one_epoch"] for report in reports]


@pytest.fixture(scope="module")
def one(folder) -> dict:
    """What one process with batches of four does."""
    torch.set_num_threads(1)
    return gradients(folder, batch_size=4)


def test_the_processes_see_the_data_of_one(one, two):
    broken = {index for index, _ in one["unreadable"]}
    for step, *parts in zip(one["steps"], *(rank["steps"] for rank in two), strict=False):
        assert sorted(step["indices"]) == sorted(parts[0]["indices"] + parts[1]["indices"])
    seen = [index for rank in two for step in rank["steps"] for index in step["indices"]]
    assert len(seen) == len(set(seen)) and len(broken) == 1
    assert len(seen) in (19, 20)  # 21 images for two: one sits out, and one is broken


def test_gradients_are_those_of_the_doubled_batch(one, two):
    whole = 0
    for step, *parts in zip(one["steps"], *(rank["steps"] for rank in two), strict=False):
        assert parts[0]["gradient"] == parts[1]["gradient"]
        if len(step["indices"]) == 4:  # of a batch with the broken image the halves differ in weight
            np.testing.assert_allclose(parts[0]["gradient"], step["gradient"], atol=TOLERANCE)
            whole += 1
    assert whole >= 3


def test_the_evaluation_is_that_of_one_process_to_the_last_bit(one, two):
    for rank in two:
        assert rank["scored"] == one["scored"] and rank["logits"] == one["logits"]
        assert rank["unreadable"] == [list(item) for item in one["unreadable"]]
    assert two[0]["ranks"] == [0, 1]


@pytest.mark.slow
def test_a_rank_that_dies_stops_the_others_with_a_message(folder):
    first, second = two_workers("die", folder)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == 2 and "another one has stopped" in first.stderr


@pytest.fixture(scope="module")
def trained(reports) -> list[list[dict]]:
    """What the validations of two processes saw of a network with batch norm and dropout."""
    return [report["validations"] for report in reports]


def test_processes_draw_their_own_random_numbers(trained):
    for first, second in zip(*trained, strict=True):
        assert first["random"] != second["random"]


def test_processes_validate_the_same_network(trained):
    for first, second in zip(*trained, strict=True):
        assert first["buffers"] == second["buffers"] and first["weights"] == second["weights"]
        assert first["valid_auc"] == second["valid_auc"]


def test_gradients_are_averaged_once_per_step(trained):
    """24 images for two processes are 3 batches of 4 in an epoch, and 2 steps: the third batch is a step by itself."""
    assert [(epoch["step"], epoch["unsynchronised"]) for epoch in trained[0][:2]] == [(2, 1), (4, 2)]


def test_resume_is_exact_and_needs_as_many_processes(trained, folder):
    for whole, *again in zip(trained[0][:2], trained[0][2:], strict=True):
        assert all({**epoch, "unsynchronised": 0} == {**whole, "unsynchronised": 0} for epoch in again)
    assert_same_run(folder / "interrupted", folder / "whole")
    with pytest.raises(UserError, match=r"expected the 2 processes .* got 1; resume with torchrun --nproc-per-node 2"):
        train.main(["--resume", "--output-dir", str(folder / "interrupted")])


TINY = "--model cnn_baseline --model-args input_size=32 --image-size 32 --batch-size 4 --epochs 2 --threads 1".split()


@pytest.mark.slow
def test_train_evaluate_and_predict_under_torchrun(image_folder, tmp_path):
    """The scripts as a whole: one run folder, one scores file in the order of one process, resume."""
    run = tmp_path / "run"
    done = torchrun("train.py", *TINY, "--data", str(image_folder), "--output-dir", str(run))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint ") == 1 and done.stderr.count("epoch 2 ") == 1
    rows = list(csv.DictReader((run / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]

    common = ["--checkpoint", str(run), "--data", str(image_folder), "--threads", "1", "--n-boot", "20"]
    pair = torchrun("evaluate.py", *common, "--output-dir", str(tmp_path / "two"), "--batch-size", "3")
    assert pair.returncode == 0, pair.stderr
    import evaluate

    evaluate.main([*common, "--output-dir", str(tmp_path / "one"), "--batch-size", "3", "--no-score-cache"])
    name = "scores/run__faces__test.csv.gz"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()

    scored = torchrun("predict.py", "--checkpoint", str(run), str(image_folder), "--threads", "1")
    assert scored.returncode == 0, scored.stderr
    assert len(scored.stdout.splitlines()) == 1 + 32

    import benchmark
    import predict

    export = str(tmp_path / "fast.onnx")
    benchmark.main(["--checkpoint", str(run), "--export", "onnx", "--output", export])
    shared = torchrun("predict.py", "--checkpoint", export, str(image_folder), "--threads", "1", "--batch-size", "5")
    assert shared.returncode == 0, shared.stderr
    alone = tmp_path / "alone.csv"
    predict.main(
        ["--checkpoint", export, str(image_folder), "--threads", "1", "--batch-size", "5", "--output", str(alone)]
    )
    assert shared.stdout == alone.read_text()


@pytest.mark.slow
def test_more_processes_than_images_is_one_line(make_folder, tmp_path):
    few = make_folder("few", {"train/real": 1, "train/fake": 2, "valid/real": 1, "valid/fake": 1})
    done = torchrun("train.py", *TINY, "--data", str(few), "--output-dir", str(tmp_path / "run"))
    assert done.returncode != 0 and "expected at least two training images per process, got 3" in done.stderr
    assert f'File "{ROOT}/train.py"' not in done.stderr  # torchrun prints a traceback, train.py does not


# ----------------------------------------------------------------------------------------------- without torchrun


@pytest.fixture
def team_of_two(monkeypatch):
    monkeypatch.setattr(distributed.team, "size", 2)


def test_ranks_divide_an_epoch_like_larger_batches():
    for length, size in ((20, 2), (21, 4), (9, 3)):
        whole = list(EpochSampler(length, 5))
        parts = [list(EpochSampler(length, 5, rank, size)) for rank in range(size)]
        assert len({len(part) for part in parts}) == 1 and len(parts[0]) == len(EpochSampler(length, 5, 0, size))
        together = [item for step in zip(*parts, strict=True) for item in step]
        assert together == whole[: length // size * size]  # the same images with the same seeds in the same steps


def test_too_few_images_for_the_processes(team_of_two):
    check_enough(4)
    with pytest.raises(UserError, match="got 3 for 2 processes; lower --nproc-per-node"):
        check_enough(3)


def test_a_process_without_images_takes_part_with_weight_0(team_of_two):
    batch = Batch(torch.rand(1, 3, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.int64), [])
    assert stand_in(batch, 8) == 0 and batch.images.shape == (2, 3, 8, 8) and len(batch.labels) == 2
    full = Batch(torch.rand(2, 3, 8, 8), torch.ones(2), torch.zeros(2, dtype=torch.int64), [])
    assert stand_in(full, 8) == 1 and full.labels.sum() == 2


def test_a_lost_peer_is_one_line_and_a_bug_stays_a_bug(team_of_two):
    with pytest.raises(UserError, match="another one has stopped"), expecting_peers():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]")
    with pytest.raises(RuntimeError, match="shapes"), expecting_peers():
        raise RuntimeError("shapes do not match")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        atomic_write_bytes(tmp_path / "file", rank.encode())
        assert (tmp_path / "file").exists() == (rank == "0")
