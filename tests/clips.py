"""Video clips for tests: portraits of the demo set that move through a scene."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.demo_set.fakes import photograph
from datasets.faces.finder import Face
from datasets.faces.framing import Box
from datasets.transforms import Geometry
from utils.checkpoints.file import load_checkpoint, save_checkpoint

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "MJPG"}
SIDE = 96  # px, of a portrait; the cascade finds the people 0, 2 and 4
WIDTH, HEIGHT = 320, 180


@functools.cache
def portrait(person: int) -> np.ndarray:
    return photograph(np.random.default_rng(person), SIDE).image


def scene(*people: tuple[int, int], width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture ``(H, W, 3)`` RGB with the portraits of people, each with the place of its left side in px."""
    image = np.full((height, width, 3), 90, np.uint8)
    for person, left in people:
        image[20 : 20 + SIDE, left : left + SIDE] = portrait(person)
    return image


def find(image: np.ndarray) -> list[Face]:
    """Find the portraits of the scene, which are not grey as the rest of it, the left one first."""
    is_portrait = (np.abs(image[20 : 20 + SIDE].astype(int) - 90) > 25).any(2).mean(0) > 0.3
    edges = np.flatnonzero(np.diff(np.r_[0, is_portrait, 0]))
    starts = [start for start, end in zip(edges[::2], edges[1::2], strict=True) if end - start > SIDE // 3]
    return [Face(Box(start / WIDTH, 20 / HEIGHT, SIDE / WIDTH, SIDE / HEIGHT), 0.9) for start in starts]


def write_clip(path: Path | str, frames: Iterable[np.ndarray], fps: float = 4) -> Path:
    """Write frames ``(H, W, 3)`` RGB as a video; its suffix chooses container and codec."""
    path, writer = Path(path), None
    path.parent.mkdir(parents=True, exist_ok=True)
    for frame in frames:
        if writer is None:
            size = frame.shape[1], frame.shape[0]
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODECS[path.suffix]), fps, size)
            assert writer.isOpened()
        writer.write(frame[:, :, ::-1])
    writer.release()
    return path


def walk(seconds: float, *people: int, fps: float = 4) -> list[np.ndarray]:
    """Frames of people who move to the right, each in their own half of the picture."""
    steps = [min(50, 2 * at) for at in range(int(seconds * fps))]
    return [scene(*((who, 10 + 160 * n + step) for n, who in enumerate(people))) for step in steps]


def retime(path: Path, durations: Sequence[int]) -> None:
    """Give each frame of an MP4 file its own duration in ticks, which makes the frame rate variable."""
    data = bytearray(path.read_bytes())
    entries = b"".join(struct.pack(">II", 1, duration) for duration in durations)
    table = struct.pack(">I4sII", 16 + len(entries), b"stts", 0, len(durations)) + entries
    at = data.index(b"stts") - 4
    (old,) = struct.unpack_from(">I", data, at)
    data[at : at + old] = table
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        place = data.index(name) - 4
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + len(table) - old)
    data[data.index(b"edts") : data.index(b"edts") + 4] = b"free"  # an edit list would cut the video
    path.write_bytes(data)


def write_framing(checkpoint: Path, folder: Path) -> str:
    """Write the checkpoint to a folder as one of a detector that frames faces; returns its path."""
    geometry = Geometry("face", 32).to_dict()
    save_checkpoint(folder / "best.pt", {**load_checkpoint(checkpoint), "geometry": geometry})
    return str(folder / "best.pt")
