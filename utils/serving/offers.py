"""A detector as the server offers it: a score function, an explanation, an operating point and a card for readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.transforms import Geometry
from models.operating_point import OperatingPoint
from utils.args import check_checkpoint_file
from utils.engines.exported import OnnxDetector, is_onnx
from utils.errors import UserError
from utils.serving.batching import Score

OCCLUSION_GRID = 7  # windows along a side, for detectors without a gradient
TEST_FIGURES = ("dataset", "n_real", "n_fake", "auc", "auc_ci", "acc", "acc_ci", "real_acc", "fake_acc")

# A view (size, size, 3) uint8 and the target ("fake" or "real") -> map (size, size), not below 0, and its method.
Explain = Callable[[np.ndarray, str], tuple[np.ndarray, str]]


@dataclass
class Offer:
    """One detector of a server."""

    name: str
    geometry: Geometry
    operating_point: OperatingPoint
    score: Score
    explain: Explain
    card: dict[str, Any]

    def answers(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """What the API says about logits ``(N,)``: ``{"p_fake", "verdict", "logit"}`` each, as predict.py has them."""
        p_fake = self.operating_point.p_fake(logits)
        names = self.operating_point.verdicts(p_fake)
        rows = zip(p_fake.tolist(), names, logits.tolist(), strict=True)
        return [{"p_fake": p, "verdict": verdict, "logit": logit} for p, verdict, logit in rows]


def open_offers(
    files: Sequence[str | Path], device: str = "auto", precision: str = "auto", threads: int | None = None
) -> list[Offer]:
    """Load checkpoints and exports; each is offered under the name of its run folder or its file.

    Raises:
        UserError: as ``load_detector`` and ``load_onnx_detector``.
    """
    from utils.evaluation.evaluate import checkpoint_names
    from utils.runtime import set_threads

    if not files:
        raise UserError("expected at least one --checkpoint, got none")
    paths = [check_checkpoint_file(file) for file in files]
    set_threads(threads)
    return [
        _open_export(name, path, threads) if is_onnx(path) else _open_checkpoint(name, path, device, precision)
        for name, path in zip(checkpoint_names(paths), paths, strict=True)
    ]


def _open_checkpoint(name: str, path: Path, device_name: str, precision: str) -> Offer:
    import torch

    from datasets.loading import Batch
    from datasets.perturbations import CLEAN
    from utils.checkpoints.file import load_detector
    from utils.explanations.methods import explain, usable_methods
    from utils.runtime import pick_device, pick_precision
    from utils.scoring.scorer import JobViews, score_batch

    device = pick_device(device_name)
    dtype = pick_precision(precision, device, training=False)
    detector, checkpoint = load_detector(path, device)
    detector.to(memory_format=torch.channels_last)
    rows = JobViews([(detector, CLEAN)])
    usable = usable_methods(detector)
    method = "gradcam" if "gradcam" in usable else "occlusion"

    def tensors(views: np.ndarray) -> torch.Tensor:
        return next(rows.split(torch.from_numpy(views.reshape(len(views), -1)).to(device)))[1]

    def score(views: np.ndarray) -> np.ndarray:
        unknown = torch.empty(0)
        return score_batch(detector, Batch(tensors(views), unknown, unknown, []), device, dtype)

    def show(view: np.ndarray, target: str) -> tuple[np.ndarray, str]:
        sign = torch.tensor([1.0 if target == "fake" else -1.0], device=device)
        return explain(detector, tensors(view[None]), [method], sign, dtype=dtype)[method][0].numpy(), method

    return Offer(name, detector.geometry, detector.operating_point, score, show, make_card(name, checkpoint))


def _open_export(name: str, path: Path, threads: int | None) -> Offer:
    from utils.engines.exported import load_onnx_detector

    detector = load_onnx_detector(path, threads=threads)

    def score(views: np.ndarray) -> np.ndarray:
        return detector(np.ascontiguousarray(views.transpose(0, 3, 1, 2), np.float32) / np.float32(255))

    def show(view: np.ndarray, target: str) -> tuple[np.ndarray, str]:
        return _occlude(detector, view, target), "occlusion"

    card = make_card(name, detector.description)
    return Offer(name, detector.geometry, detector.operating_point, score, show, card)


def _occlude(detector: OnnxDetector, view: np.ndarray, target: str) -> np.ndarray:
    """Explain an export, which has no gradient, by blurring one window after the other."""
    import torch

    from datasets.transforms import to_tensor
    from utils.explanations.perturbation import occlusion

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(detector(images.numpy()))

    sign = torch.tensor([1.0 if target == "fake" else -1.0])
    return occlusion(run, to_tensor(view)[None], sign, OCCLUSION_GRID)[0].numpy()  # type: ignore[arg-type]


def make_card(name: str, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a reader should know of a detector: what it learnt from, how it was tested and how it decides.

    It holds names of data sets and figures, never a path or a command of the machine where it was trained.
    """
    data = checkpoint.get("data") or []
    point = OperatingPoint.from_checkpoint(checkpoint)
    tests = (checkpoint.get("metrics") or {}).get("test") or []
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
