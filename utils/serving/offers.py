"""Detectors as the server offers them: a score function, an explanation, a decision and a card for readers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.transforms import Geometry
from models.detector import as_inputs
from models.operating_point import OperatingPoint
from utils.checkpoint_files import SOURCES_SUFFIX, check_checkpoint_file, is_export
from utils.checkpoints.file import load_detector
from utils.engines.exported import load_onnx_detector
from utils.evaluation.evaluate import checkpoint_names
from utils.explanations.maps import Question, explain
from utils.explanations.methods.occlusion import occlusion
from utils.explanations.registry import usable_methods
from utils.files import read_json
from utils.runtime import pick_device, pick_precision, set_threads

TEST_FIGURES = ("dataset", "n_real", "n_fake", "auc", "auc_ci", "acc", "acc_ci", "real_acc", "fake_acc")
TIMED = 5  # calls behind the seconds of a card
COST = {"gradcam": 3, "occlusion": 51}  # of an explanation and its score, in forward passes

# A view (size, size, 3) uint8 and the target ("fake" or "real") -> map (size, size), not below 0, and its method.
Explain = Callable[[np.ndarray, str], tuple[np.ndarray, str]]


@dataclass
class Offer:
    """One detector of a server."""

    name: str
    geometry: Geometry
    operating_point: OperatingPoint
    score: Callable[[np.ndarray], np.ndarray]  # views (N, size, size, 3) uint8 to logits (N,) float64
    explain: Explain
    explain_cost: int  # of an explanation, in images
    card: dict[str, Any]

    @property
    def decision(self) -> dict[str, Any]:
        """How the detector decides: the part that all answers share."""
        band = self.operating_point.band
        return {
            "model": self.name,
            "threshold": self.operating_point.threshold(),
            "unsure": list(band) if band else None,
        }

    def answers(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """``{"p_fake", "verdict", "logit"}`` for each of the logits ``(N,)``, as in predict.py."""
        p_fake = self.operating_point.p_fake(logits)
        rows = zip(p_fake.tolist(), self.operating_point.verdicts(p_fake), logits.tolist(), strict=True)
        return [{"p_fake": p, "verdict": verdict, "logit": logit} for p, verdict, logit in rows]


def open_offers(
    files: Sequence[str | Path], device: str = "auto", precision: str = "auto", threads: int | None = None
) -> list[Offer]:
    """Load checkpoints and exports; each is named after its run folder or file.

    Raises:
        UserError: as ``load_detector``, ``load_onnx_detector`` and ``read_sources``.
    """
    paths = [check_checkpoint_file(file) for file in files]
    set_threads(threads)
    sources = [read_sources(path) for path in paths]
    offers = [
        _open_export(name, path, threads) if is_export(path) else _open_checkpoint(name, path, device, precision)
        for name, path in zip(checkpoint_names(paths), paths, strict=True)
    ]
    for offer, rows in zip(offers, sources, strict=True):
        offer.card |= {"seconds": round(_seconds(offer), 4), "sources": rows}
    return offers


def read_sources(checkpoint: Path) -> list[dict[str, Any]]:
    """The test results beside a checkpoint that ``studies/model_card.py`` wrote, one row per source; [] without any.

    Raises:
        UserError: the file is damaged.
    """
    file = checkpoint.with_suffix(SOURCES_SUFFIX)
    return read_json(file, "the test results of a checkpoint") if file.is_file() else []


def _seconds(offer: Offer) -> float:
    """The shortest time to score one face, which other work on the machine changes least."""
    view, times = np.zeros((1, offer.geometry.size, offer.geometry.size, 3), np.uint8), []
    for _ in range(TIMED + 1):  # the first call warms up
        started = time.perf_counter()
        offer.score(view)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _open_checkpoint(name: str, path: Path, device_name: str, precision: str) -> Offer:
    device = pick_device(device_name)
    dtype = pick_precision(precision, device, training=False)
    detector, checkpoint = load_detector(path, device)
    detector.to(memory_format=torch.channels_last)
    method = "gradcam" if "gradcam" in usable_methods(detector) else "occlusion"

    def score(views: np.ndarray) -> np.ndarray:
        return detector.score_views(torch.from_numpy(views), dtype)

    def show(view: np.ndarray, target: str) -> tuple[np.ndarray, str]:
        images = _inputs(view[None], device)
        return explain(detector, images, [method], _sign(target, device), dtype=dtype)[method][0].numpy(), method

    return Offer(
        name, detector.geometry, detector.operating_point, score, show, COST[method], make_card(name, checkpoint)
    )


def _open_export(name: str, path: Path, threads: int | None) -> Offer:
    detector = load_onnx_detector(path, threads=threads)

    def score(views: np.ndarray) -> np.ndarray:
        return detector(np.ascontiguousarray(views.transpose(0, 3, 1, 2), np.float32) / np.float32(255))

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(detector(images.numpy()))

    def show(view: np.ndarray, target: str) -> tuple[np.ndarray, str]:
        question = Question(run, _inputs(view[None], "cpu").contiguous(), _sign(target, "cpu"))  # type: ignore[arg-type]
        return occlusion(question)[0].numpy(), "occlusion"  # an export has no gradient

    card = make_card(name, detector.description)
    return Offer(name, detector.geometry, detector.operating_point, score, show, COST["occlusion"], card)


def _inputs(views: np.ndarray, device: torch.device | str) -> torch.Tensor:
    return as_inputs(torch.from_numpy(views).to(device))


def _sign(target: str, device: torch.device | str) -> torch.Tensor:
    return torch.tensor([1.0 if target == "fake" else -1.0], device=device)


def make_card(name: str, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Facts about a detector for readers: training data, test results and decision.

    Contains names of data sets and figures, never a path or a command of the machine that trained it.
    """
    point = OperatingPoint.from_checkpoint(checkpoint)
    tests = (checkpoint.get("metrics") or {}).get("test") or []
    data = checkpoint.get("data") or []
    return {
        "name": name,
        "model": checkpoint["model"],
        "geometry": checkpoint["geometry"],
        "trained_on": sorted({str(entry["dataset"]) for entry in data if entry.get("split") == "train"}),
        "tests": [{key: row.get(key) for key in TEST_FIGURES} for row in tests if isinstance(row, dict)],
        "threshold": point.threshold(),
        "unsure": list(point.band) if point.band else None,
        "calibrated": point.calibration is not None,
    }
