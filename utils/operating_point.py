"""What is fitted on validation after training: the calibration, the thresholds and the unsure band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.calibration import apply_calibration, fit_temperature
from utils.scores import ScoreTable
from utils.thresholds import fit_thresholds, unsure_band


def fit_operating_point(tables: Sequence[ScoreTable]) -> dict[str, Any]:
    """Fit ``calibration`` and ``thresholds`` of a checkpoint on its validation scores, all data sets together.

    ``thresholds`` holds p_fake values: ``balanced`` (the default of every script), ``fpr1``, ``fpr01`` and the
    limits ``unsure_low``, ``unsure_high`` of the band in which predict.py says "unsure".
    """
    labels = np.concatenate([table.label for table in tables])
    logits = np.concatenate([table.logit for table in tables])
    calibration = {"method": "temperature", "temperature": fit_temperature(labels, logits)}
    p_fake = apply_calibration(logits, calibration)
    thresholds = fit_thresholds(labels, p_fake)
    low, high = unsure_band(labels, p_fake, thresholds["balanced"])
    return {"calibration": calibration, "thresholds": {**thresholds, "unsure_low": low, "unsure_high": high}}
