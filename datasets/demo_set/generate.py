"""Generate the demo set: procedural portraits, half of them forged, without any download.

Real images are rendered and photographed by a simulated camera (camera.py); fakes show other people, photographed the
same way and then forged by one of three generators (fakes.py, which cites the papers). Every image depends on
(seed, index) only, so the files have the same bytes for any number of workers.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.demo_set.camera import encode_jpeg
from datasets.demo_set.fakes import GENERATORS, forge, photograph
from utils.errors import UserError
from utils.processes import in_processes

DEMO_VERSION = 1
SPLITS = ("train", "valid", "test")
QUALITIES = (70, 95)


@dataclass(frozen=True)
class Job:
    """One image to generate; ``generator`` is None for a real one."""

    folder: str
    seed: int
    index: int
    split: str
    generator: str | None
    size: int


def demo_folder_name(n: int = 2400, size: int = 128, seed: int = 0) -> str:
    """The name of the folder of the demo set with these settings."""
    return f"demo-v{DEMO_VERSION}-n{n}-s{size}-seed{seed}"


def make_demo(
    root: Path, n: int = 2400, size: int = 128, seed: int = 0, workers: int | None = None, progress: bool = True
) -> Path:
    """Generate the demo set under ``root`` unless it is there, and return its folder ``root/demo_folder_name(...)``.

    The folder holds ``{train,valid,test}/{real,fake/<generator>}/*.jpg`` (size x size, RGB), the soft masks of the
    blended fakes, ``masks/<split>/<stem>.png`` (8-bit grey, 255 where the face was replaced), and ``demo.json``.
    It appears only when it is complete.

    Raises:
        UserError: n, size or seed is out of range, or the folder holds something else.
    """
    if n < 60 or size < 64 or size % 2 or seed < 0:
        raise UserError(f"expected n >= 60, an even size >= 64 and a seed >= 0, got n={n}, size={size}, seed={seed}")
    card = {"version": DEMO_VERSION, "seed": seed, "n": n, "size": size}
    root = Path(root)
    folder = root / demo_folder_name(n, size, seed)
    if folder.exists():
        return _reused(folder, card)
    try:
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
    except OSError as error:
        raise UserError(
            f"expected a folder for the demo set that can be written to, got {root}: {error.strerror}; set DEMO_DIR"
        ) from None
    try:
        _make_images(plan(draft, n, size, seed), workers or os.cpu_count() or 1, progress)
        (draft / "demo.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        try:
            draft.rename(folder)
        except OSError:
            # Another process may have generated the same files in the meantime.
            return _reused(folder, card)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _reused(folder: Path, card: dict[str, int]) -> Path:
    try:
        found = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != card:
        raise UserError(f"expected {folder}/demo.json to say {card}, got {found}; move or remove that folder")
    return folder


def plan(folder: Path, n: int, size: int, seed: int) -> list[Job]:
    """List every image: half real, the fakes shared equally by the generators, each group split 70/10/20.

    Indices are assigned at random, so that neither name nor position of a file reveals its label.
    """
    names: list[str | None] = [None] * (n - n // 2) + [list(GENERATORS)[i % len(GENERATORS)] for i in range(n // 2)]
    indices = np.random.default_rng([seed, n, DEMO_VERSION]).permutation(n)
    jobs = []
    for name in (None, *GENERATORS):
        members = [int(index) for index, owner in zip(indices, names, strict=True) if owner == name]
        first, second = round(len(members) * 0.7), round(len(members) * 0.8)
        for place, index in enumerate(members):
            split = "train" if place < first else "valid" if place < second else "test"
            jobs.append(Job(str(folder), seed, index, split, name, size))
    return sorted(jobs, key=lambda job: job.index)


def make_image(job: Job) -> None:
    """Generate and write one image, which depends on (seed, index), the generator and the size only."""
    rng = np.random.default_rng([job.seed, job.index, DEMO_VERSION])
    quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))
    place = Path(job.folder) / job.split / (f"fake/{job.generator}" if job.generator else "real")
    if job.generator is None:
        data, mask = encode_jpeg(photograph(rng, job.size).image, quality), None
    else:
        data, mask, _ = forge(job.generator, rng, job.size, quality)
    (place / f"{job.index:06d}.jpg").write_bytes(data)
    if mask is not None:
        drawn = cv2.imencode(".png", mask)[1].tobytes()
        (Path(job.folder) / "masks" / job.split / f"{job.index:06d}.png").write_bytes(drawn)


def _make_images(jobs: list[Job], workers: int, progress: bool) -> None:
    folder = Path(jobs[0].folder)
    for split in SPLITS:
        for part in (f"{split}/real", f"masks/{split}", *(f"{split}/fake/{name}" for name in GENERATORS)):
            (folder / part).mkdir(parents=True, exist_ok=True)
    made = in_processes(make_image, jobs, workers, chunk=8)
    for _ in tqdm(made, "generating the demo set", len(jobs), unit="image", disable=None if progress else True):
        pass
