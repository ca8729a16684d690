"""Adversarial training that does not collapse: the loss of a batch, the probe of an epoch, and the guard.

Single-step training can overfit catastrophically: accuracy under FGSM stays high while PGD breaks every image (Wong,
Rice, Kolter, "Fast is Better than Free: Revisiting Adversarial Training", ICLR 2020, arXiv 2001.03994). Training can
also end at a constant answer. To prevent both, eps rises slowly from 0 and a share of each batch stays clean. After
each epoch, PGD attacks the validation images, and :func:`has_collapsed` reads the figures.

Batch norm: the attack runs on the network in evaluation mode and does not touch the running averages. The clean and
the attacked images of a batch then pass through the network together, so that there is one set of statistics, of the
mixture, as in evaluation. A second set for attacked images (Xie et al., CVPR 2020, arXiv 1911.09665) would serve clean
images only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.detector import Detector
from utils.attacks.gradient import DecisionLogit, attackable, default_alpha, pgd
from utils.distributed import unwrap
from utils.runtime import autocast
from utils.training.state import TrainingState

RAMP = 0.3  # share of the run in which eps rises
CLEAN_SHARE = 0.3  # of each batch for FGSM and PGD
TRADES_BETA = 3.0
FGSM_STEP = 1.25  # times eps: Wong et al. found that a full step to the corner overfits sooner
FALLBACK_STEPS = 3  # of PGD after single-step training has collapsed
PROBE_STEPS = 10
MAX_CLEAN_LOSS = 0.6  # of an acceptable epoch; a constant 0.5 costs log 2 = 0.693
MAX_DROP = 0.2  # of robust accuracy below its best, and of AUC, before a run counts as collapsed
MAX_GAP = 0.6  # between accuracy under FGSM and PGD at full eps; 0.4 is common without collapse


@dataclass(frozen=True)
class Adversary:
    """Attack on training images: ``steps`` of PGD within ``eps`` (L-infinity, pixel units).

    ``eps`` rises during the first ``ramp`` of the run. ``clean_share`` of each batch is not attacked; TRADES instead
    uses every image in both forms and weights robustness by ``beta``.
    """

    method: str
    eps: float
    steps: int
    ramp: float
    clean_share: float = CLEAN_SHARE
    beta: float = TRADES_BETA

    def current_eps(self, progress: float) -> float:
        """Return eps at ``progress`` in [0, 1] of the run."""
        return self.eps * min(1.0, progress / self.ramp) if self.ramp else self.eps

    def loss(self, detector: Detector, x: Tensor, y: Tensor, progress: float, dtype: torch.dtype) -> Tensor:
        """Return the mean loss of images ``(N, 3, H, W)`` in [0, 1] and targets ``(N,)``, which may be soft."""
        eps = self.current_eps(progress)
        if self.method == "trades":
            return self._trades_loss(detector, x, y, eps, dtype)
        clean = round(self.clean_share * len(x))
        attacked = self._attack(detector, x[clean:], y[clean:], eps, dtype) if clean < len(x) and eps else x[clean:]
        with autocast(x.device, dtype):
            logits = detector(torch.cat([x[:clean], attacked]).contiguous(memory_format=torch.channels_last))
        return F.binary_cross_entropy_with_logits(logits.float(), y)

    def _attack(self, detector: Detector, x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        alpha = FGSM_STEP * eps if self.method == "fgsm" else default_alpha(eps, self.steps)
        steps = 1 if self.method == "fgsm" else self.steps
        detector = unwrap(detector)  # the gradient of an attack is not shared between processes
        with attackable(detector):
            return pgd(DecisionLogit(detector, dtype=dtype), x, (y > 0.5).float(), eps, alpha=alpha, steps=steps)

    def _trades_loss(self, detector: Detector, x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """Return the clean cross-entropy plus beta times the divergence that an attack causes.

        Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019 (arXiv
        1901.08573). With one logit, the divergence grows with the distance from the clean logit in both directions;
        the attack moves across the decision boundary, from a random point of the ball.
        """
        with torch.no_grad(), attackable(unwrap(detector)):
            predicted = (DecisionLogit(unwrap(detector), dtype=dtype)(x) > 0).float()
        attacked = self._attack(detector, x, predicted, eps, dtype) if eps else x
        with autocast(x.device, dtype):
            logits = detector(torch.cat([x, attacked]).contiguous(memory_format=torch.channels_last))
        clean, moved = logits.float().chunk(2)
        return F.binary_cross_entropy_with_logits(clean, y) + self.beta * bernoulli_divergence(clean, moved).mean()


def bernoulli_divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence KL(p || q) of Bernoulli distributions with these logits, ``(N,)``."""
    p = torch.sigmoid(p_logits)
    heads = F.logsigmoid(p_logits) - F.logsigmoid(q_logits)
    tails = F.logsigmoid(-p_logits) - F.logsigmoid(-q_logits)
    return p * heads + (1 - p) * tails


def make_adversary(
    method: str | None, eps: float, steps: int, history: Sequence[Mapping[str, Any]]
) -> Adversary | None:
    """Return the adversary of the next epoch, None for natural training.

    After a collapse in ``history``, single-step training continues with PGD. This depends on the history alone, so a
    resumed run does the same as an uninterrupted one.
    """
    if not method:
        return None
    adversary = Adversary(method, eps, steps, RAMP)
    if method == "fgsm" and any(row["collapsed"] for row in history):
        return replace(adversary, method="pgd", steps=FALLBACK_STEPS)
    return adversary


def probe(
    detector: Detector, images: Tensor, labels: Tensor, eps: float, dtype: torch.dtype, batch_size: int, seed: int
) -> dict[str, float]:
    """Return the accuracy at logit 0 under FGSM and under PGD with PROBE_STEPS steps: ``{"fgsm_acc", "pgd_acc"}``.

    FGSM has a random start as in training, because overfitting is specific to this attack. The random state of the
    training run is unchanged.
    """
    logit_of = DecisionLogit(detector, dtype=dtype)
    right = {"fgsm_acc": 0, "pgd_acc": 0}
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices), attackable(detector):
        torch.manual_seed(seed)
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            x = x.contiguous(memory_format=torch.channels_last)
            for key, steps, alpha in (("fgsm_acc", 1, FGSM_STEP * eps), ("pgd_acc", PROBE_STEPS, None)):
                attacked = pgd(logit_of, x, y, eps, steps=steps, alpha=alpha)
                with torch.no_grad():
                    right[key] += int(((logit_of(attacked) > 0) == (y > 0.5)).sum())
    return {key: count / len(images) for key, count in right.items()}


def selection_score(row: Mapping[str, Any]) -> float:
    """Return what selects the best epoch: AUC, or in adversarial training the accuracy under PGD.

    In adversarial training, epochs with a clean loss up to MAX_CLEAN_LOSS rank above the others, collapsed ones below.
    """
    if "pgd_acc" not in row:
        return row["valid_auc"]
    rank = -1 if row["collapsed"] else int(row["valid_loss"] <= MAX_CLEAN_LOSS)
    return row["pgd_acc"] + rank


def reason_to_stop(patience: int, method: str | None, state: TrainingState) -> str | None:
    """Say why a run ends before its last epoch; None to continue.

    A run survives one collapse of single-step training, which continues with PGD, and no other.
    """
    collapses = sum(bool(row.get("collapsed")) for row in state.history)
    if collapses > (method == "fgsm"):
        return f"collapsed in multi-step training: stopped; best.pt holds epoch {state.best_epoch}"
    if patience and state.epoch - state.best_epoch >= patience:
        return f"no better {'PGD accuracy' if method else 'AUC'} for {patience} epochs: stopped early"
    return None


def has_collapsed(history: Sequence[Mapping[str, Any]], row: Mapping[str, Any], ramp_is_over: bool) -> bool:
    """Tell whether the figures of an epoch show a collapse, compared with the healthy epochs before it.

    Catastrophic overfitting: PGD accuracy is more than MAX_DROP below its best while FGSM accuracy lost less than half
    as much, or the two are MAX_GAP apart at full eps. Constant answer: clean AUC is more than MAX_DROP below its best.
    """
    if ramp_is_over and row["fgsm_acc"] - row["pgd_acc"] >= MAX_GAP:
        return True
    healthy = [earlier for earlier in history if not earlier["collapsed"]]
    if not healthy:
        return False
    best = max(healthy, key=lambda earlier: earlier["pgd_acc"])
    drop = best["pgd_acc"] - row["pgd_acc"]
    overfitted = drop > MAX_DROP and best["fgsm_acc"] - row["fgsm_acc"] < drop / 2
    return overfitted or max(earlier["valid_auc"] for earlier in healthy) - row["valid_auc"] > MAX_DROP
