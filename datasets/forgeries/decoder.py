"""The forgery ``decoder``: a photograph as a small autoencoder reconstructs it.

After X. Zhang, S. Karaman, S.-F. Chang, "Detecting and Simulating Artifacts in GAN Fake Images", WIFS 2019 (arXiv
1907.06515), who train the generator of a GAN to reproduce real images. Deviations: the network is far smaller, is
trained without an adversary (a discriminator would cost more than the rest of the run gains), and takes about a minute
to train: see utils/training/forgery_decoder.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from datasets.forgeries.steps import to_uint8

KEPT_DETAIL = (0.3, 0.8)


@dataclass(frozen=True)
class DecoderForgery:
    """A forgery as in datasets/forgeries/forger.py; picklable for loader workers.

    ``network`` maps images ``(N, 3, H, W)`` float in [0, 1] to reconstructions and is in evaluation mode; ``stride``
    is the grid of its decoder in px.
    """

    network: nn.Module
    stride: int

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Reconstruct the picture and add back a random share of the lost detail, so that blur is not the trace.

        The lost detail is measured on a second reconstruction whose decoder grid is shifted: adding back what the
        first one lacks would weaken its traces as well.
        """
        photo = image.astype(np.float32)
        down, across = divmod(int(rng.integers(1, self.stride**2)), self.stride)
        moved = cv2.copyMakeBorder(photo, down, 0, across, 0, cv2.BORDER_REFLECT_101)
        lost = photo - self.rebuild(moved)[down:, across:]
        forged = to_uint8(self.rebuild(photo) + np.float32(rng.uniform(*KEPT_DETAIL)) * lost)
        return forged, np.ones(image.shape[:2], np.float32)

    @torch.inference_mode()
    def rebuild(self, photo: np.ndarray) -> np.ndarray:
        """Pass grey levels ``(H, W, 3)`` float32 through the network."""
        return 255 * self.network(as_batch(photo[None]))[0].permute(1, 2, 0).numpy()


def as_batch(images: np.ndarray) -> Tensor:
    """Turn grey levels ``(N, H, W, 3)`` into ``(N, 3, H, W)`` float32 in [0, 1], colours last in memory."""
    return torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
