"""Helpers and fixtures that several test files share: tiny image folders, scores, a tiny checkpoint."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads only get in each other's way here
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from utils.args import run_script
from utils.scoring.table import ScoreTable

SIDE = 40  # px
MakeFolder = Callable[[str, dict[str, int]], Path]
FACES_PER_CLASS = {"train": 24, "valid": 12, "test": 12}


def write_image(path: Path, seed: int, fake: bool, height: int = SIDE, width: int = SIDE) -> None:
    """Write a PNG file of smooth colour noise; a fake has a faint checkerboard on it, so that it can be learnt."""
    coarse = np.random.default_rng(seed).integers(40, 216, (4, 5, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    if fake:
        image += 16 * ((np.indices((height, width)).sum(0) % 2)[:, :, None] * 2 - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))


def write_images(*names: str) -> list[str]:
    """Write an image of different content under each name; returns the names."""
    for seed, name in enumerate(names):
        write_image(Path(name), seed, False)
    return list(names)


def make_faces(root: Path, size: int = 40) -> Path:
    """Fill a folder with noise images, a faint grid in the fakes: learnable in a few steps, but not at once."""
    rng = np.random.default_rng(0)
    for split, count in FACES_PER_CLASS.items():
        for name in ("real", "fake"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = rng.normal(128, 30, (size, size, 3))
                image[::4] += 10 if name == "fake" else 0
                file = root / split / name / f"{number:02d}.png"
                cv2.imwrite(str(file), image.clip(0, 255).astype(np.uint8)[:, :, ::-1])
    return root


def make_scores(
    n: int = 400, decimals: int | None = None, seed: int = 0, fraction_fake: float = 0.4
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and overlapping p_fake of two classes; ``decimals`` makes ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < fraction_fake).astype(np.int64)
    p_fake = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.6 * labels - 0.8)))
    return labels, p_fake if decimals is None else np.round(p_fake, decimals)


def make_logits(
    n: int = 500, seed: int = 0, decimals: int | None = None, slope: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and badly calibrated logits of two classes."""
    rng = np.random.default_rng(seed)
    honest = 1.5 * rng.normal(size=n)
    logits = slope * honest**3 / 4 + 1
    labels = (rng.random(n) < 1 / (1 + np.exp(-honest))).astype(int)
    return labels, logits if decimals is None else np.round(logits, decimals)


def make_table(
    paths: Sequence[str], labels: Sequence[int], logits: Sequence[float], tier: str = "clean", dataset: str = "faces"
) -> ScoreTable:
    """A table of scores in one data set and tier; p_fake is the sigmoid of the logits."""
    n, p_fake = len(paths), 1 / (1 + np.exp(-np.array(logits, dtype=np.float64)))
    generators = ["gan <1>" if label else "real" for label in labels]
    return ScoreTable(list(paths), np.array(labels), [dataset] * n, generators, [tier] * n, np.array(logits), p_fake)


def make_scored(table: ScoreTable, **info: Any) -> Any:
    """Wrap a table of one data set and tier with what its JSON file says; the threshold is 0.5 by default."""
    from utils.evaluation.scored_sets import ScoredSet

    known = {"checkpoint": "run", "model": None, "dataset": table.dataset[0], "split": "test", "threshold": 0.5}
    return ScoredSet(table, {**known, "unreadable": [], **info}, table.tier[0])


def exit_and_stderr(
    main: Callable, argv: Sequence[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> tuple[int, str]:
    """Exit code and stderr of a script with these arguments, run inside this process."""
    monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, argv)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_script(main)
    return int(exit_.value.code or 0), capsys.readouterr().err


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let each test, with the fixtures that it is the first to use, begin with the same random numbers.

    Which tests of other files ran before in this process differs from run to run.
    """
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _no_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests compute apart from the user's cache, and take nothing from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFAKE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("DEEPFAKE_FACE_DETECTOR", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _render() -> Iterator[Callable[..., None]]:
    """Write two words in place of each figure: rendering takes longer than most runs here."""
    from matplotlib.figure import Figure

    render = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, file, **_: file.write(b"not rendered"))
        yield render


@pytest.fixture
def rendered(_render: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Render the figures of the test after all."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", _render)


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def no_curves() -> Iterator[None]:
    """Skip the figures of train.py: drawing them takes longer than a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.training.log.save_figure", lambda figure, stem: None)
        patch.setattr("utils.training.log.training_curve_figure", lambda history: None)
        patch.setattr("utils.training.classical.save_figure", lambda figure, stem: None)
        patch.setattr("utils.training.classical.interval_bar_figure", lambda *arguments, **options: None)
        yield


@pytest.fixture(scope="module")
def no_evaluation_figures() -> Iterator[None]:
    """Skip the figures of evaluate.py: drawing them takes longer than scoring a few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.evaluation.report.write_figures", lambda sets, folder: None)
        patch.setattr("utils.evaluation.report.write_severity_figures", lambda rows, by_severity, folder: None)
        yield


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Return a function that fills a folder: ``make_folder("faces", {"train/real": 4, "train/fake": 4})``."""

    def make(name: str, counts: dict[str, int]) -> Path:
        for number, (part, count) in enumerate(counts.items()):
            for index in range(count):
                fake = "fake" in part.split("/")
                write_image(tmp_path / name / part / f"{index:03}.png", 1000 * number + index, fake)
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of make_faces."""
    return make_faces(tmp_path_factory.mktemp("data") / "faces")


@pytest.fixture
def image_folder(make_folder: MakeFolder) -> Path:
    """A set ``faces`` of 40 px PNG files: {train,valid,test}/{real,fake}, 8 training images a class and 4 others."""
    counts = {"train": 8, "valid": 4, "test": 4}
    return make_folder("faces", {f"{split}/{name}": n for split, n in counts.items() for name in ("real", "fake")})


@pytest.fixture(scope="session")
def _tiny_checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from datasets.transforms import Geometry
    from models.registry import create_model
    from utils.checkpoints.file import save_checkpoint

    torch.manual_seed(0)
    model_args = {"width": 4}
    path = tmp_path_factory.mktemp("tiny") / "best.pt"
    description = {
        "model": "cnn",
        "model_args": model_args,
        "state_dict": create_model("cnn", **model_args).state_dict(),
        "geometry": Geometry("crop", 32).to_dict(),
        "thresholds": {"balanced": 0.5, "fpr1": 0.9, "fpr01": 0.95, "unsure_low": 0.4, "unsure_high": 0.6},
        "calibration": {"method": "temperature", "temperature": 2.0},
        "metrics": {},
        "train_args": {},
        "data": [],
        "seed": 0,
        "epoch": 1,
        "git_commit": None,
        "versions": {},
    }
    save_checkpoint(path, description)
    return path


@pytest.fixture
def tiny_checkpoint(_tiny_checkpoint_file: Path, tmp_path: Path) -> Path:
    """A run folder's best.pt: a randomly initialised ``cnn`` of width 4 for 32 px crops, calibrated."""
    folder = tmp_path / "tiny-run"
    folder.mkdir()
    return Path(shutil.copy(_tiny_checkpoint_file, folder / "best.pt"))


@pytest.fixture
def computed(monkeypatch) -> Iterator[list[int]]:
    """The number of images in each call of extract_features."""
    import models.classical

    calls: list[int] = []
    original = models.classical.extract_features

    def counted(images, banks):
        calls.append(len(images))
        return original(images, banks)

    monkeypatch.setattr(models.classical, "extract_features", counted)
    yield calls
