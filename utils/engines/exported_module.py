"""An exported ONNX file behind the interface of a Detector, for scripts that score with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.detector import Detector
from utils.engines.exported import load_onnx_detector


class OnnxModule(Detector):
    """Runs an exported detector on the CPU; it has no gradient and no layers to look into."""

    has_input_gradient = False
    any_size = False

    def __init__(self, file: str | Path) -> None:
        exported = load_onnx_detector(file, threads=torch.get_num_threads())
        super().__init__(exported.geometry.size, mean=(0.0,) * 3, std=(1.0,) * 3, geometry=exported.geometry)
        self.operating_point = exported.operating_point
        self.name, self.model_args = exported.description["model"], exported.description.get("model_args") or {}
        self.description: dict[str, Any] = exported.description
        self.exported = exported

    def forward(self, images: Tensor) -> Tensor:
        """Score ``(N, 3, H, W)`` RGB images in [0, 1]; returns logits ``(N,)`` float64 on the images' device."""
        logits = self.exported(images.float().contiguous().cpu().numpy())
        return torch.from_numpy(logits).to(images.device)
