"""Cells of a benchmark: one engine on one checkpoint, timed in turns with the baseline and scored on a data set."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.benchmarking.subject import Subject
from utils.benchmarking.worker import Worker
from utils.metrics.binary import metrics_row

N_BOOT = 1000  # resamples of an interval
QUALITY_KEYS = ("auc", "auc_ci", "acc", "acc_ci", "ece", "ece_ci")


@dataclass(frozen=True)
class Settings:
    """How to measure an engine."""

    batch_sizes: Sequence[int]
    repeats: int
    threads: int
    device: str


def start(subject: Subject, engine: str, settings: Settings) -> Worker:
    """Start the process of an engine."""
    return Worker(engine, subject.file(engine), settings.threads, settings.device, subject.images[:1])


def measure_cell(
    subject: Subject, engine: str, baseline: Worker | None, settings: Settings, reference: np.ndarray | None
) -> dict[str, Any]:
    """Measure one engine in a process that is started and ended here; returns plain values.

    Args:
        baseline: the running baseline, which takes turns with the engine; None if the engine is the baseline.
        reference: logits of the baseline ``(N,)`` on the test images.
    """
    worker = start(subject, engine, settings)
    try:
        cell: dict[str, Any] = {
            "file_bytes": subject.file(engine).stat().st_size,
            "load_s": worker.load_seconds,
            "first_answer_s": worker.first_answer_seconds,
            **measure_speed(worker, baseline, subject.images, settings),
        }
        cell["peak_memory_bytes"] = worker.ask("peak_memory")
        logits = score(worker, subject.images, max(settings.batch_sizes))
        cell.update(measure_quality(subject, logits, reference))
        if subject.adversarial is not None:
            attacked = score(worker, subject.adversarial, max(settings.batch_sizes))
            point = subject.operating_point
            called_fake = point.p_fake(attacked) >= point.threshold()
            cell["robust_acc"] = float(np.mean(called_fake == (subject.adversarial_labels == 1)))
            cell["n_adversarial"] = len(attacked)
        return {**cell, "logits": logits.tolist()}
    finally:
        worker.close()


def measure_speed(worker: Worker, baseline: Worker | None, images: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Time each batch size in turns with the baseline; a ratio compares neighbouring turns."""
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
    """Score all images; the last batch is padded, because a compiled engine accepts one batch size only."""
    logits = []
    for first in range(0, len(images), batch_size):
        batch = images[np.arange(first, first + batch_size) % len(images)]
        logits.append(worker.ask("score", batch)[: len(images) - first])
    return np.concatenate(logits)


def measure_quality(subject: Subject, logits: np.ndarray, reference: np.ndarray | None) -> dict[str, Any]:
    """Figures of merit at the checkpoint's own calibration and threshold, and how far from the baseline they are."""
    point = subject.operating_point
    p_fake, threshold = point.p_fake(logits), point.threshold()
    row = metrics_row(subject.labels, p_fake, threshold, n_boot=N_BOOT)
    reference = logits if reference is None else reference
    verdicts = point.p_fake(reference) >= threshold
    return {
        **{key: row[key] for key in QUALITY_KEYS},
        "n_images": len(logits),
        "agreement": float(np.mean((p_fake >= threshold) == verdicts)),
        "max_logit_difference": float(np.max(np.abs(logits - reference))),
    }
