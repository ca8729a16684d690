"""Distillation: a small detector learns from the labels and from the logits of a large detector or an ensemble."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from datasets.transforms import Geometry
from models.detector import Detector
from models.ensemble import calibrated_logits, member_view
from utils.checkpoints.file import load_detector
from utils.checkpoints.weights import as_earlier_data

TEACHER_WEIGHT = 0.7  # of the teacher's logits in the loss; the labels have the rest
TEMPERATURE = 2.0


class Teacher:
    """A trained detector with fixed weights that scores training batches."""

    def __init__(self, checkpoint_file: Path, device: torch.device) -> None:
        detector, checkpoint = load_detector(checkpoint_file, device)
        self.detector: Detector = detector.requires_grad_(False)
        self.data = as_earlier_data(checkpoint)  # not unseen for a student either

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return calibrated logits ``(N,)`` float32 of a student's images ``(N, 3, H, W)``."""
        logits = self.detector(self.view(images)).double()
        return calibrated_logits(logits, self.detector.operating_point.calibration).float()

    def view(self, images: Tensor) -> Tensor:
        """Resize a student's images ``(N, 3, H, W)`` to the teacher's input, if it frames faces or takes no other."""
        geometry = self.detector.geometry
        if self.detector.any_size and not geometry.needs_face:
            return images
        return member_view(images, Geometry("crop", images.shape[-1]), Geometry("resize", geometry.size))


def training_loss(logits: Tensor, targets: Tensor, teacher_logits: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of logits ``(N,)`` against smoothed labels and the logits of a teacher.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", NIPS Deep Learning Workshop 2014 (arXiv
    1503.02531), for one logit: cross-entropy at TEMPERATURE, times its square so that the gradients keep their scale.
    """
    if teacher_logits is None:
        return binary_cross_entropy_with_logits(logits, targets)
    softened = torch.sigmoid(teacher_logits.to(logits.device) / TEMPERATURE)
    teaching = binary_cross_entropy_with_logits(logits / TEMPERATURE, softened) * TEMPERATURE**2
    return TEACHER_WEIGHT * teaching + (1 - TEACHER_WEIGHT) * binary_cross_entropy_with_logits(logits, targets)
