"""From logit to p_fake: a plain sigmoid, or one with a temperature fitted on validation."""

from typing import Any

import numpy as np

from utils.errors import UserError

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0


def check_logits(logits: np.ndarray) -> np.ndarray:
    """Return logits as float64 (N,).

    Raises:
        UserError: some are NaN or infinite; the message has their number.
    """
    logits = np.asarray(logits, dtype=np.float64).reshape(-1)
    bad = int(np.sum(~np.isfinite(logits)))
    if bad:
        raise UserError(
            f"expected finite logits, got {bad} of {len(logits)} NaN or infinite; "
            "the checkpoint is broken or overflows in reduced precision: score in float32"
        )
    return logits


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64, without overflow at either end."""
    logits = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def apply_calibration(logits: np.ndarray, calibration: dict[str, Any] | None) -> np.ndarray:
    """p_fake, float64 (N,) in [0, 1]: sigmoid(logit / temperature + bias), or sigmoid(logit) for None.

    ``calibration`` is {"method": "temperature", "temperature": T, "bias": b}; bias may be left out. Beyond a
    logit of about 37 p_fake is 1.0 in float64, so images that certain are tied.

    Raises:
        UserError: NaN or infinite logits, or a calibration of an unknown kind.
    """
    logits = check_logits(logits)
    if calibration is None:
        return sigmoid(logits)
    method, temperature = calibration.get("method"), calibration.get("temperature")
    if method != "temperature" or not isinstance(temperature, int | float) or not 0 < temperature < np.inf:
        raise UserError(
            f"expected a calibration with method 'temperature' and a temperature above 0, "
            f"got {calibration!r}; the checkpoint was written by another version"
        )
    return sigmoid(logits / temperature + float(calibration.get("bias") or 0.0))


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood of sigmoid(logit / T) on validation.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599.
    In beta = 1 / T the loss is convex, so the sign of its slope is bisected, to the last bit and with the
    same result everywhere (the paper uses L-BFGS). The result is held in [0.01, 100].

    Returns 1.0, no calibration, where no finite positive optimum exists: no image or one class only, all
    images on the right side of 0 (any smaller T would look better still), or logits that rank no better than
    chance.

    Raises:
        UserError: NaN or infinite logits, or another number of labels than of logits.
    """
    logits = check_logits(logits)
    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(labels) != len(logits):
        raise UserError(f"expected one label per logit, got {len(labels)} labels and {len(logits)} logits")
    signed = np.where(labels > 0.5, logits, -logits)
    one_class = len(labels) == 0 or labels.min() == labels.max()
    # signed.sum() <= 0: the slope at beta = 0 already rises, so the best beta is not positive.
    if one_class or signed.min() >= 0 or signed.sum() <= 0:
        return 1.0

    def slope_is_negative(beta: float) -> bool:
        return bool(np.sum(signed * sigmoid(-beta * signed)) > 0)

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        if not low < middle < high:
            break
        low, high = (middle, high) if slope_is_negative(middle) else (low, middle)
    return float(np.clip(1 / np.sqrt(low * high), MIN_TEMPERATURE, MAX_TEMPERATURE))
