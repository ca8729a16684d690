"""The cache of tokens: what decides its folder, and that damage, interruptions and a full disk cost only time."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from datasets.faces.framing import Box
from datasets.listing.splits import open_training_data
from models.foundation import Foundation
from tests.runs import Killed, assert_same_run
from tests.utils.training.token_runs import AUGMENTED, VIEWS, flags, folders, open_tokens
from utils.errors import UserError
from utils.training.tokens import files_digest

pytestmark = pytest.mark.usefixtures("no_curves")


def rows_file(faces: Path) -> Path:
    """The cached tokens of the training images."""
    return max(faces.parent.glob("cache/*/rows.bin"), key=lambda file: file.stat().st_size)


def test_runs_resume_and_share_the_cache(image_folder, tmp_path, capsys, monkeypatch):
    argv = flags(image_folder, *AUGMENTED, "--epochs", "2", "--threads", "1", "--cache", str(tmp_path / "cache"))

    def interrupt(history):
        raise KeyboardInterrupt

    first = train.main([*argv, "--output-dir", str(tmp_path / "whole")])
    computed = capsys.readouterr().err
    assert first["exit_code"] == 0 and f"tokens: {16 * VIEWS + 8} images computed" in computed
    assert "images/s" in computed and "bytes per image" in computed
    with pytest.raises(KeyboardInterrupt):
        train.main([*argv, "--output-dir", str(tmp_path / "run")], on_epoch=interrupt)
    train.main(["--resume", "--output-dir", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")])
    assert "computed" not in capsys.readouterr().err
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "new"),
    [
        (["--token-views", "2"], 1),
        (["--augmentation", "none"], 1),
        (["--train-size", "48"], 1),
        (["--geometry", "resize"], 2),
        (["--model-args", "backbone=test_vit", "blocks=4-6", "tune=norms_2"], 2),
        (["--precision", "bf16"], 2),
        (["--seed", "1"], 2),  # also the random weights
        (["--epochs", "3", "--lr", "0.1", "--batch-size", "2", "--balance"], 0),
    ],
)
def test_what_decides_the_tokens_decides_the_folder(change, new, image_folder):
    open_tokens(image_folder)
    before = folders(image_folder)
    assert len(before) == 2
    open_tokens(image_folder, *change)
    assert len(folders(image_folder) - before) == new


def test_other_weights_or_other_files_have_another_folder(image_folder):
    detector = open_tokens(image_folder)[2].detector
    before = folders(image_folder)
    with torch.no_grad():
        detector.backbone.blocks[5].norm1.weight += 1  # tuned: not part of what is cached
        detector.head.weight += 1
    open_tokens(image_folder, detector=detector)
    assert folders(image_folder) == before
    with torch.no_grad():
        detector.backbone.blocks[0].norm1.weight += 1
    open_tokens(image_folder, detector=detector)
    assert len(folders(image_folder)) == 4
    next(image_folder.glob("train/real/*")).touch()
    open_tokens(image_folder, detector=detector)
    assert len(folders(image_folder)) == 5


def test_faces_and_labels_decide_the_folder_but_not_where_the_data_are(image_folder, tmp_path):
    listing = open_training_data([str(image_folder)]).train[0]
    digest = files_digest(listing)
    first = listing.records[0]
    for other in (replace(first, faces=(Box(0.1, 0.1, 0.9, 0.9),)), replace(first, label=1 - first.label)):
        assert files_digest(replace(listing, records=[other, *listing.records[1:]])) != digest
    moved = Path(shutil.copytree(image_folder, tmp_path / "elsewhere" / "faces"))
    assert files_digest(open_training_data([str(moved)]).train[0]) == digest


def kill_after(images: int, monkeypatch) -> list[int]:
    """Let the frozen part die after this many images; returns the list of its batch sizes."""
    compute, batches = Foundation.frozen_tokens, []

    def dying(self, x):
        if sum(batches) + len(x) > images:
            raise Killed
        batches.append(len(x))
        return compute(self, x)

    monkeypatch.setattr(Foundation, "frozen_tokens", dying)
    return batches


def test_a_killed_build_continues_at_the_row_where_it_stopped(image_folder, monkeypatch):
    monkeypatch.setattr("utils.training.token_cache.BATCH_SIZE", 10)
    detector = open_tokens(image_folder)[2].detector
    file = rows_file(image_folder)
    whole, size = file.read_bytes(), file.stat().st_size // (16 * VIEWS)
    for path in image_folder.parent.glob("cache/*/rows.bin"):
        path.unlink()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(2 + 25, patch)  # two images tell the shapes
        open_tokens(image_folder, detector=detector)
    part = file.with_name("rows.part")
    assert not file.exists() and part.stat().st_size == 20 * size
    with open(part, "ab") as stream:
        stream.write(b"half a row")
    batches = kill_after(1000, monkeypatch)
    open_tokens(image_folder, detector=detector)
    assert file.read_bytes() == whole and not part.exists()
    assert sum(batches) == 2 + 2 + (16 * VIEWS - 20) + 8  # shapes, two rows to compare, the rest, validation


@pytest.mark.parametrize("damage", ["truncated", "zeros", "labels"])
def test_a_damaged_cache_is_repaired(damage, image_folder, capsys):
    open_tokens(image_folder)
    file = rows_file(image_folder)
    whole = file.read_bytes()
    broken = bytearray(whole)
    if damage == "labels":
        broken[:4] = np.float32(1).tobytes() if whole[:4] == bytes(4) else bytes(4)
    file.write_bytes({"truncated": whole[:-1000], "zeros": bytes(len(whole)), "labels": bytes(broken)}[damage])
    capsys.readouterr()
    open_tokens(image_folder)
    assert file.read_bytes() == whole
    assert ("does not hold the tokens of these images" in capsys.readouterr().err) == (damage != "truncated")


def test_a_disk_without_room_is_refused_before_anything_is_computed(image_folder, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("utils.training.tokens.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"MB of free space in .*cache for the tokens, got 0; lower --token-views"):
        open_tokens(image_folder)
    assert not list(image_folder.parent.glob("cache/*/rows*"))


def test_a_disk_that_fills_up_is_one_line(image_folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.training.token_cache.TokenCache._append", full)
    with pytest.raises(UserError, match=r"expected to write tokens to .*rows\.part, got: No space left on device"):
        open_tokens(image_folder)
