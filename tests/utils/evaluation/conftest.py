"""Runs of evaluate.py on a tiny checkpoint, and what they read and draw."""

from pathlib import Path

import pytest

import evaluate
from datasets.decoding.images import read_image
from utils.checkpoints.file import load_checkpoint, save_checkpoint
from utils.scoring.table import read_scores, read_sidecar

QUICK = ["--n-boot", "0", "--threads", "1"]


@pytest.fixture
def figures(monkeypatch) -> dict:
    """The figures that are asked for, by the stem of their file; none is written."""
    drawn: dict = {}
    monkeypatch.setattr(
        "utils.evaluation.report.save_figure", lambda figure, stem: drawn.update({Path(stem).name: figure})
    )
    return drawn


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The images that are decoded while a test runs."""
    paths: list[str] = []

    def spy(path, *rest):
        paths.append(str(path))
        return read_image(path, *rest)

    monkeypatch.setattr("datasets.decoding.images.read_image", spy)
    return paths


@pytest.fixture
def variant(tiny_checkpoint, tmp_path):
    """Return a function that writes the tiny checkpoint again with other contents, as ``<name>/best.pt``."""

    def write(name: str, **changes) -> str:
        checkpoint = {**load_checkpoint(tiny_checkpoint), **changes}
        save_checkpoint(tmp_path / name / "best.pt", checkpoint)
        return str(tmp_path / name)

    return write


@pytest.fixture
def run(tmp_path, tiny_checkpoint, monkeypatch, figures):
    """Return a function that runs evaluate.py on the tiny checkpoint, with a score cache of the test's own."""
    monkeypatch.setattr(evaluate, "SCORE_CACHE", str(tmp_path / "cache"))

    def call(*flags, data, checkpoints=None, out: str = "out") -> dict:
        data = [data] if isinstance(data, str | Path) else data
        what = ["--checkpoint", *(checkpoints or [str(tiny_checkpoint)]), "--data", *map(str, data)]
        return evaluate.main([*what, *QUICK, *map(str, flags), "--output-dir", str(tmp_path / out)])

    return call


def by_tier(result: dict, number: int = 0) -> dict[str, dict[str, float]]:
    """tier -> path of the image -> logit of a scores file."""
    table = read_scores(result["scores"][number])
    root = read_sidecar(result["scores"][number])["root"]
    logits: dict[str, dict[str, float]] = {}
    for path, tier, logit in zip(table.path, table.tier, table.logit.tolist(), strict=True):
        logits.setdefault(tier, {})[f"{root}/{path}"] = logit
    return logits
