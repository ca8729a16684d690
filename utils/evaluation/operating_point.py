"""What is fitted on validation after training: the calibration, the thresholds and the unsure band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.calibration import apply_calibration, fit_isotonic, fit_temperature
from utils.errors import UserError
from utils.metrics.thresholds import fit_thresholds, unsure_band
from utils.scoring.table import ScoreTable

CALIBRATION_METHODS = ("temperature", "isotonic", "none")


def fit_operating_point(tables: Sequence[ScoreTable], method: str = "temperature") -> dict[str, Any]:
    """Fit ``calibration`` and ``thresholds`` of a checkpoint on its validation scores, all data sets together.

    ``thresholds`` holds p_fake values: ``balanced`` (the default of every script), ``fpr1``, ``fpr01`` and the
    limits ``unsure_low``, ``unsure_high`` of the band in which predict.py says "unsure". ``method`` is one of
    CALIBRATION_METHODS; with "none" the calibration is None and p_fake is the plain sigmoid.

    Raises:
        UserError: an unknown method, one class only, or NaN or infinite logits.
    """
    if method not in CALIBRATION_METHODS:
        raise UserError(f"expected a calibration method of {', '.join(CALIBRATION_METHODS)}, got {method!r}")
    labels = np.concatenate([table.label for table in tables])
    logits = np.concatenate([table.logit for table in tables])
    calibration = fit_calibration(labels, logits, method)
    p_fake = apply_calibration(logits, calibration)
    thresholds = fit_thresholds(labels, p_fake)
    low, high = unsure_band(labels, p_fake, thresholds["balanced"])
    return {"calibration": calibration, "thresholds": {**thresholds, "unsure_low": low, "unsure_high": high}}


def fit_calibration(labels: np.ndarray, logits: np.ndarray, method: str) -> dict[str, Any] | None:
    """Fit the calibration of that name on labels (N,) and logits (N,); None for "none"."""
    if method == "none":
        return None
    if method == "isotonic":
        return fit_isotonic(labels, logits)
    return {"method": "temperature", "temperature": fit_temperature(labels, logits)}
