"""From logit to verdict: the calibration, the thresholds and the unsure band of a detector.

Needs no torch, so that an exported detector can be run without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from utils.errors import UserError

DEFAULT_THRESHOLD = 0.5  # on p_fake, until thresholds are fitted
SIGMOID_SHARE = 1e-3  # of the plain sigmoid in an isotonic p_fake; saved curves depend on it
MIN_P_FAKE = 1e-6  # an isotonic p_fake stays this far from 0 and 1

Calibration = dict[str, Any] | None


@dataclass(frozen=True)
class OperatingPoint:
    """How a detector turns logits into p_fake and p_fake into verdicts.

    Attributes:
        calibration: None for sigmoid(logit), {"method": "temperature", "temperature": T, "bias": b} for
            sigmoid(logit / T + b) with an optional bias, or {"method": "isotonic", "x": [...], "y": [...]}.
        thresholds: p_fake by name: ``balanced``, ``fpr1``, ``fpr01``, and the limits ``unsure_low`` and ``unsure_high``
            of the unsure band. Empty until they are fitted.
        fitted_on: names of the data sets on which both were fitted; empty for checkpoints that do not record it.
    """

    calibration: Calibration = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    fitted_on: tuple[str, ...] = ()

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> OperatingPoint:
        """Read the operating point of a checkpoint or of the description of an export. Raises UserError."""
        thresholds, fitted_on = checkpoint.get("thresholds") or {}, checkpoint.get("fitted_on") or ()
        for name, value in thresholds.items():
            if not isinstance(value, int | float) or not np.isfinite(value):
                raise UserError(
                    f"expected numbers as thresholds of a checkpoint, got {name} {value!r}; calibrate again"
                )
        return cls(checkpoint.get("calibration"), dict(thresholds), tuple(fitted_on))

    def to_checkpoint(self) -> dict[str, Any]:
        """Return the entries of a checkpoint that hold the operating point."""
        thresholds = dict(self.thresholds) or None
        return {"calibration": self.calibration, "thresholds": thresholds, "fitted_on": list(self.fitted_on)}

    @property
    def band(self) -> tuple[float, float] | None:
        """The unsure band ``(low, high)``: p_fake in [low, high) is unsure. None if none was fitted."""
        if {"unsure_low", "unsure_high"} <= set(self.thresholds):
            return self.thresholds["unsure_low"], self.thresholds["unsure_high"]
        return None

    def p_fake(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated p(fake), float64 ``(N,)`` in [0, 1], of logits ``(N,)``.

        Above a logit of about 37 p_fake is 1.0 in float64, so such images are tied.

        Raises:
            UserError: NaN or infinite logits, or an unknown or damaged calibration.
        """
        logits, calibration = check_logits(logits), self.calibration
        if calibration is None:
            return sigmoid(logits)
        method, temperature = calibration.get("method"), calibration.get("temperature")
        if method == "isotonic":
            return _apply_isotonic(logits, calibration)
        if method != "temperature" or not isinstance(temperature, int | float) or not 0 < temperature < np.inf:
            raise UserError(
                f"expected a calibration with method 'temperature' and a temperature above 0, or method 'isotonic', "
                f"got {calibration!r}; the checkpoint was written by another version"
            )
        return sigmoid(logits / temperature + float(calibration.get("bias") or 0.0))

    def threshold(self, wanted: str | float = "balanced") -> float:
        """Return the threshold on p_fake of that name; a number stands for itself.

        Without fitted thresholds, ``balanced`` is 0.5.

        Raises:
            UserError: no threshold of that name was fitted.
        """
        if not isinstance(wanted, str):
            return float(wanted)
        if wanted == "balanced":
            return self.thresholds.get("balanced", DEFAULT_THRESHOLD)
        if wanted not in self.thresholds:
            raise UserError(
                f"expected a checkpoint with the threshold {wanted}, found {', '.join(self.thresholds) or 'none'}; "
                "finish its training with train.py --resume, or pass a number"
            )
        return self.thresholds[wanted]

    def verdicts(self, p_fake: np.ndarray, threshold: str | float | None = None) -> list[str]:
        """Return "fake", "real" or "unsure" for each p_fake ``(N,)``.

        With a ``threshold``, or if no band was fitted, p_fake >= threshold is fake and the rest real.
        """
        p_fake = np.asarray(p_fake, dtype=np.float64).reshape(-1)
        low, high = self.limits(threshold)
        return np.where(p_fake >= high, "fake", np.where(p_fake < low, "real", "unsure")).tolist()

    def limits(self, threshold: str | float | None = None) -> tuple[float, float]:
        """Return where unsure and where fake begin on p_fake; the same number twice if nothing is unsure."""
        if threshold is None and self.band:
            return self.band
        value = self.threshold("balanced" if threshold is None else threshold)
        return value, value

    def leans_to_fake(self, p_fake: np.ndarray) -> np.ndarray:
        """Whether each p_fake is fake or, where the verdict is unsure, at least the balanced threshold."""
        value = self.threshold()
        return np.asarray(p_fake) >= np.clip(value, *(self.band or (value, value)))  # which may be outside the band


def check_logits(logits: np.ndarray) -> np.ndarray:
    """Return logits as float64 ``(N,)``. Raises UserError if any is NaN or infinite."""
    logits = np.asarray(logits, dtype=np.float64).reshape(-1)
    bad = int(np.sum(~np.isfinite(logits)))
    if bad:
        raise UserError(
            f"expected finite logits, got {bad} of {len(logits)} NaN or infinite; "
            "the checkpoint is broken or overflows in reduced precision: score in float32"
        )
    return logits


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)) in float64, without overflow."""
    logits = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def _apply_isotonic(logits: np.ndarray, calibration: dict[str, Any]) -> np.ndarray:
    """Interpolate the curve, which is constant beyond its ends, and mix in SIGMOID_SHARE of sigmoid(logit).

    The bare curve is constant wherever fitting pooled images. The share breaks these ties in the order of the logits,
    which keeps AUC, and changes no p_fake by more than itself.
    """
    x, y = (np.asarray(calibration.get(key, []), dtype=np.float64).reshape(-1) for key in ("x", "y"))
    rises = np.all(np.diff(x) > 0) and np.all(np.diff(y) >= 0)
    if len(x) == 0 or len(x) != len(y) or not rises or not np.all((y >= 0) & (y <= 1)) or not np.all(np.isfinite(x)):
        raise UserError(
            f"expected an isotonic calibration with a rising curve of one or more points x, y, "
            f"got {len(x)} x and {len(y)} y; the checkpoint is damaged"
        )
    mixed = (1 - SIGMOID_SHARE) * np.interp(logits, x, y) + SIGMOID_SHARE * sigmoid(logits)
    return np.clip(mixed, MIN_P_FAKE, 1 - MIN_P_FAKE)
