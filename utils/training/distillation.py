"""Distillation: a small detector learns the answers of a large one, or of an ensemble, beside the labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from datasets.transforms import Geometry
from models.detector import Detector
from models.ensemble import calibrated_logits, member_view

TEACHER_WEIGHT = 0.7  # of the teacher's answers in the loss; the labels have the rest
TEMPERATURE = 2.0


class Teacher:
    """A trained detector that answers training batches; it never changes."""

    def __init__(self, checkpoint_file: Path, device: torch.device) -> None:
        from utils.checkpoints.file import load_detector

        self.detector: Detector = load_detector(checkpoint_file, device)[0].requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Calibrated logits ``(N,)`` float32 on the students' images ``(N, 3, H, W)``.

        A teacher that takes any size looks at them as they are, another one at a resized copy.
        """
        detector = self.detector
        if not detector.any_size:
            frame = Geometry("crop", images.shape[-1])
            images = member_view(images, frame, Geometry("resize", detector.geometry.size))
        return calibrated_logits(detector(images).double(), detector.operating_point.calibration).float()


def training_loss(logits: Tensor, targets: Tensor, teacher_logits: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits ``(N,)`` against labels (smoothed or mixed) and, with a teacher, its answers.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", NIPS Deep Learning Workshop 2014 (arXiv
    1503.02531), for one logit: cross-entropy at TEMPERATURE, times its square so that the gradients keep their size.
    """
    if teacher_logits is None:
        return binary_cross_entropy_with_logits(logits, targets)
    softened = torch.sigmoid(teacher_logits / TEMPERATURE)
    teaching = binary_cross_entropy_with_logits(logits / TEMPERATURE, softened) * TEMPERATURE**2
    return TEACHER_WEIGHT * teaching + (1 - TEACHER_WEIGHT) * binary_cross_entropy_with_logits(logits, targets)
