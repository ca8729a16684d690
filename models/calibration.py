"""From logit to p_fake: a plain sigmoid, one with a temperature, or an isotonic curve, fitted on validation.

Two fitted calibrations exist. A temperature has one parameter and cannot overfit; the isotonic curve takes any rising
shape, and wants a thousand validation images or so (Niculescu-Mizil and Caruana, "Predicting Good Probabilities with
Supervised Learning", ICML 2005). Both keep the order of the images, and with it AUC and every other figure of ranking.
"""

from typing import Any

import numpy as np

from utils.errors import UserError

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
SIGMOID_SHARE = 1e-3  # of the plain sigmoid in an isotonic p_fake: part of the meaning of saved curves, so it stays
MIN_P_FAKE = 1e-6  # an isotonic p_fake stays this far from 0 and 1


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
    """p_fake, float64 (N,) in [0, 1]: sigmoid(logit), or what the calibration makes of the logits.

    ``calibration`` is None, {"method": "temperature", "temperature": T, "bias": b} for sigmoid(logit / T + b), where
    bias may be left out, or {"method": "isotonic", "x": [...], "y": [...]} from ``fit_isotonic``. Beyond a logit of
    about 37 p_fake is 1.0 in float64, so images that certain are tied.

    Raises:
        UserError: NaN or infinite logits, or a calibration of an unknown kind.
    """
    logits = check_logits(logits)
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


def _apply_isotonic(logits: np.ndarray, calibration: dict[str, Any]) -> np.ndarray:
    """Follow the curve, level beyond its ends, and mix SIGMOID_SHARE of sigmoid(logit) in.

    A bare isotonic curve is level wherever it pooled images, which ties them and spoils AUC and any threshold in
    between. The share breaks these ties in the order of the logits and moves no p_fake by more than itself.
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


def fit_isotonic(labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """The rising curve from logit to the fraction of fakes that fits validation best in squared error and likelihood.

    Pool-adjacent-violators (Ayer, Brunk, Ewing, Reid and Silverman, Annals of Mathematical Statistics 26, 1955; as
    calibration: Zadrozny and Elkan, KDD 2002): images in the order of their logits, neighbouring blocks merged while
    the fraction of fakes falls. Returns {"method": "isotonic", "x": [...], "y": [...]} of plain floats, x strictly
    rising, two points per block (its lowest and highest logit) or one; between blocks the curve is straight.

    Unlike the textbook's, no block claims certainty: y stays in [1 / (N + 2), 1 - 1 / (N + 2)], as far from 0 and 1
    as the rule of succession puts an event never seen in N images.

    Raises:
        UserError: NaN or infinite logits, another number of labels than of logits, or one class only.
    """
    logits, labels = check_logits(logits), np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(labels) != len(logits):
        raise UserError(f"expected one label per logit, got {len(labels)} labels and {len(logits)} logits")
    n_fake = int(np.sum(labels > 0.5))
    if n_fake in (0, len(labels)):
        raise UserError(
            f"expected real and fake images to fit an isotonic calibration, got {len(labels) - n_fake} real and "
            f"{n_fake} fake; add images of the missing class to the validation split"
        )
    distinct, group = np.unique(logits, return_inverse=True)
    # A block: [fakes, images, lowest logit, highest logit]; compared by products of whole numbers, so exactly.
    blocks: list[list[float]] = []
    for fakes, images, logit in zip(np.bincount(group, labels > 0.5), np.bincount(group), distinct, strict=True):
        block = [float(fakes), float(images), float(logit), float(logit)]
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            before = blocks.pop()
            block = [before[0] + block[0], before[1] + block[1], before[2], block[3]]
        blocks.append(block)
    margin = 1 / (len(labels) + 2)
    points = {logit: min(max(b[0] / b[1], margin), 1 - margin) for b in blocks for logit in (b[2], b[3])}
    return {"method": "isotonic", "x": list(points), "y": list(points.values())}


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
