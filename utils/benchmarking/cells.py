"""One cell of the benchmark: an engine on a checkpoint, timed in turns with the baseline and scored on a data set."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.operating_point import OperatingPoint
from utils.benchmarking.worker import Worker
from utils.engines.registry import ENGINES
from utils.errors import UserError
from utils.metrics.binary import metrics_row

QUALITY_KEYS = ("auc", "auc_ci", "acc", "acc_ci", "ece", "ece_ci")


@dataclass
class TestSet:
    """Decoded test images ``(N, 3, S, S)`` uint8, their labels, and adversarial ones (float32) with labels."""

    __test__ = False  # for pytest, which collects classes by their name

    images: np.ndarray
    labels: np.ndarray
    adversarial: np.ndarray | None = None
    adversarial_labels: np.ndarray | None = None


@dataclass
class Subject:
    """What is benchmarked: a checkpoint's files by kind (pt, onnx, int8), its operating point, its test set."""

    files: dict[str, Path]
    operating_point: OperatingPoint
    test: TestSet

    def file(self, engine: str) -> Path:
        """The file that an engine is built from. Raises UserError: this checkpoint could not be exported to it."""
        source = ENGINES[engine].source
        if source not in self.files:
            raise UserError(f"this detector has no {source} export")
        return self.files[source]


@dataclass
class Settings:
    """How to measure."""

    batch_sizes: Sequence[int]
    repeats: int
    threads: int
    device: str
    n_boot: int


def start(subject: Subject, engine: str, settings: Settings) -> Worker:
    """Start the process of an engine."""
    return Worker(engine, subject.file(engine), settings.threads, settings.device, subject.test.images[:1])


def measure_cell(
    subject: Subject, engine: str, baseline: Worker | None, settings: Settings, reference: np.ndarray | None
) -> dict[str, Any]:
    """Measure one engine; its process is started and ended here.

    Args:
        baseline: the running baseline, which takes turns with the engine; None when the engine is the baseline.
        reference: the baseline's logits ``(N,)`` on the test images.

    Returns:
        Plain values, ``logits`` among them.
    """
    worker = start(subject, engine, settings)
    try:
        cell: dict[str, Any] = {
            "file_bytes": subject.file(engine).stat().st_size,
            "load_s": worker.load_seconds,
            "first_answer_s": worker.first_answer_seconds,
            **measure_speed(worker, baseline, subject.test.images, settings),
        }
        cell["peak_memory_bytes"] = worker.ask("peak_memory")
        logits = score(worker, subject.test.images, max(settings.batch_sizes))
        cell.update(measure_quality(subject, logits, reference, settings.n_boot))
        if subject.test.adversarial is not None:
            attacked = score(worker, subject.test.adversarial, max(settings.batch_sizes))
            point = subject.operating_point
            called_fake = point.p_fake(attacked) >= point.threshold()
            cell["robust_acc"] = float(np.mean(called_fake == (subject.test.adversarial_labels == 1)))
            cell["n_adversarial"] = len(attacked)
        return {**cell, "logits": logits.tolist()}
    finally:
        worker.close()


def measure_speed(worker: Worker, baseline: Worker | None, images: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Time every batch size in turns with the baseline; the ratio of a turn is of neighbours in time."""
    batches = []
    for size in settings.batch_sizes:
        batch = images[np.arange(size) % len(images)]
        for process in (baseline, worker):
            if process is not None:
                process.ask("prepare", batch)
        turns, ratios = [], []
        for _ in range(settings.repeats):
            before = baseline.ask("time") if baseline else None
            turns.append(worker.ask("time"))
            if before is not None:
                ratios.append(statistics.median(before) / statistics.median(turns[-1]))
        calls = sorted(seconds for turn in turns for seconds in turn)
        rates = [size / statistics.median(turn) for turn in turns]
        batches.append(
            {
                "batch_size": size,
                "latency_p50_ms": 1000 * float(np.quantile(calls, 0.5)),
                "latency_p95_ms": 1000 * float(np.quantile(calls, 0.95)),
                "images_per_s": statistics.median(rates),
                "images_per_s_ci": [min(rates), max(rates)],
                "ratio": statistics.median(ratios) if ratios else 1.0,
                "ratio_ci": [min(ratios), max(ratios)] if ratios else None,
                "turns": settings.repeats,
                "calls": len(calls),
            }
        )
    return {"batches": batches}


def score(worker: Worker, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Score all images; the last batch is filled up, because a compiled engine knows one batch size only."""
    logits = []
    for first in range(0, len(images), batch_size):
        batch = images[np.arange(first, first + batch_size) % len(images)]
        logits.append(worker.ask("score", batch)[: len(images) - first])
    return np.concatenate(logits)


def measure_quality(subject: Subject, logits: np.ndarray, reference: np.ndarray | None, n_boot: int) -> dict[str, Any]:
    """Figures of merit at the checkpoint's own calibration and threshold, and how far from the baseline they are."""
    point = subject.operating_point
    p_fake, threshold = point.p_fake(logits), point.threshold()
    row = metrics_row(subject.test.labels, p_fake, threshold, n_boot=n_boot)
    reference = logits if reference is None else reference
    verdicts = point.p_fake(reference) >= threshold
    return {
        **{key: row[key] for key in QUALITY_KEYS},
        "n_images": len(logits),
        "agreement": float(np.mean((p_fake >= threshold) == verdicts)),
        "max_logit_difference": float(np.max(np.abs(logits - reference))),
    }
