"""The forgery ``decoder``: a photograph as a small autoencoder re-creates it, trained on the run's own photographs.

After X. Zhang, S. Karaman, S.-F. Chang, "Detecting and Simulating Artifacts in GAN Fake Images", WIFS 2019 (arXiv
1907.06515), who train the generator of a GAN to reproduce real images. Deviations: the network is far smaller, has no
adversary (a discriminator would cost more than the rest of the run gains) and is trained in about a minute.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from datasets.forgeries.forger import DECODER, Forger
from datasets.forgeries.steps import to_uint8
from datasets.images import UnreadableImage, read_image
from datasets.spec import Record
from models.autoencoder import STRIDE, Autoencoder
from utils.checkpoints.weights import read_weights_file
from utils.distributed import is_first
from utils.errors import UserError
from utils.files import atomic_write_bytes
from utils.training.finetune import warmup_cosine

STEPS, BATCH_SIZE, CROP = 300, 16, 128  # px
POOL = 256  # photographs that are read: the network is too small to learn them by heart
POOL_SIDE = 2 * CROP  # px kept of each, so that large photographs do not fill the memory
LEARNING_RATE = 5e-3
KEPT_DETAIL = (0.3, 0.8)
SALT = 0x4465636F  # sets the draws apart from those of the sampler, which has the same seed


@dataclass(frozen=True)
class DecoderForgery:
    """A forgery as in datasets/forgeries/forger.py, by a network in evaluation mode; picklable for loader workers."""

    network: Autoencoder

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Re-create the picture; a random share of the lost detail is put back, so that blur is not the trace.

        What is lost is read off a second reconstruction that has the grid of the decoder elsewhere: to put back what
        the first one lacks would weaken its traces as well.
        """
        photo = image.astype(np.float32)
        down, across = divmod(int(rng.integers(1, STRIDE**2)), STRIDE)
        moved = cv2.copyMakeBorder(photo, down, 0, across, 0, cv2.BORDER_REFLECT_101)
        lost = photo - self.rebuild(moved)[down:, across:]
        forged = to_uint8(self.rebuild(photo) + np.float32(rng.uniform(*KEPT_DETAIL)) * lost)
        return forged, np.ones(image.shape[:2], np.float32)

    @torch.inference_mode()
    def rebuild(self, photo: np.ndarray) -> np.ndarray:
        """Grey levels ``(H, W, 3)`` float32 through the network."""
        return 255 * self.network(as_batch(photo[None]))[0].permute(1, 2, 0).numpy()


def as_batch(images: np.ndarray) -> Tensor:
    """Grey levels ``(N, H, W, 3)`` to ``(N, 3, H, W)`` float32 in [0, 1], colours last in memory."""
    return torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)


def with_decoder(forger: Forger, records: Sequence[Record], folder: Path, seed: int, resume: bool) -> Forger:
    """Give the forger of a run its decoder, if it asks for one, and keep the weights in ``folder``/decoder.pt.

    A resumed run reads them from there; a new one takes what the forger has or trains on the real images of
    ``records``.

    Raises:
        UserError: the file of a resumed run is gone or damaged, or no real image can be read.
    """
    if DECODER not in forger.names:
        return forger
    file = folder / "decoder.pt"
    if resume:
        return replace(forger, decoder=load_decoder(file))
    network = forger.decoder.network if isinstance(forger.decoder, DecoderForgery) else train_decoder(records, seed)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    atomic_write_bytes(file, buffer.getvalue())
    return replace(forger, decoder=DecoderForgery(network))


def load_decoder(file: str | Path) -> DecoderForgery:
    """The forgery with weights that an earlier run has saved.

    Raises:
        UserError: there is no such file, or it has the weights of something else.
    """
    network = Autoencoder()
    try:
        network.load_state_dict(read_weights_file(file))
    except RuntimeError:
        raise UserError(
            f"expected the decoder.pt of a run with --forgeries {DECODER} at {str(file)!r}, got other weights; "
            "leave out --forgery-decoder to train one"
        ) from None
    return DecoderForgery(network.eval().requires_grad_(False))


def train_decoder(records: Sequence[Record], seed: int) -> Autoencoder:
    """Fit the autoencoder to random crops of the real images, by their mean absolute error.

    Equal seeds, images and threads give equal weights; no other random numbers are touched.

    Raises:
        UserError: no real image can be read.
    """
    rng = np.random.default_rng([seed, SALT])
    pool = photographs(records, rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Autoencoder()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    error = float("nan")
    for step in tqdm(range(STEPS), desc="decoder for forgeries", disable=None, leave=False):
        chosen = [pool[number] for number in rng.integers(len(pool), size=BATCH_SIZE)]
        images = as_batch(np.stack([window(photo, CROP, rng) for photo in chosen]))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warmup_cosine(step, STEPS, STEPS // 20)
        loss = F.l1_loss(network(images), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        error = 255 * loss.item()
    if is_first():
        print(
            f"decoder for forgeries: {STEPS} steps on {len(pool)} real images, mean error {error:.1f} grey levels",
            file=sys.stderr,
        )
    return network.eval().requires_grad_(False)


def photographs(records: Sequence[Record], rng: np.random.Generator) -> list[np.ndarray]:
    """Parts ``(h, w, 3)`` uint8 of POOL real images chosen at random, or of all that can be read.

    Raises:
        UserError: not one can be read.
    """
    reals = [record for record in records if record.label == 0]
    read = getattr(records, "read", read_image)  # records may know where their pixels are kept
    pool: list[np.ndarray] = []
    for index in rng.permutation(len(reals)):
        try:
            pool.append(window(read(reals[index].path), POOL_SIDE, rng, pad=False))
        except UnreadableImage:  # the training loop names it
            continue
        if len(pool) == POOL:
            break
    if not pool:
        raise UserError(f"expected real images to train the forgery {DECODER} on, got none that can be read")
    return pool


def window(image: np.ndarray, side: int, rng: np.random.Generator, pad: bool = True) -> np.ndarray:
    """A copy of a random part of ``side`` px; what a smaller image lacks is reflected with ``pad``, else left out."""
    top, left = (int(rng.integers(max(0, length - side) + 1)) for length in image.shape[:2])
    part = image[top : top + side, left : left + side]
    missing = (side - part.shape[0], side - part.shape[1]) if pad else (0, 0)
    return cv2.copyMakeBorder(part, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101)
