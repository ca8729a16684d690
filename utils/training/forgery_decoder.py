"""Training of the autoencoder behind the forgery ``decoder`` on the real images of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from datasets.forgeries.decoder import DecoderForgery, as_batch
from datasets.forgeries.forger import DECODER, Forger
from datasets.images import UnreadableImage, read_record
from datasets.records import Record
from models.autoencoder import STRIDE, Autoencoder
from utils.checkpoints.weights import read_weights_file
from utils.errors import UserError
from utils.files import atomic_write_bytes
from utils.training.finetune import warmup_cosine
from utils.training.log import log

STEPS, BATCH_SIZE, CROP = 300, 16, 128  # px
POOL = 256  # photographs: the network is too small to memorise them
POOL_SIDE = 2 * CROP  # px kept of each photograph, which bounds the memory
LEARNING_RATE = 5e-3
SALT = 0x4465636F  # separates these draws from those of the sampler, which has the same seed


def with_decoder(forger: Forger, records: Sequence[Record], folder: Path, seed: int, resume: bool) -> Forger:
    """Give the forger its decoder, if it asks for one, and keep the weights in ``folder``/decoder.pt.

    A resumed run reads the weights from there; a new run trains a decoder on the real images of ``records``.

    Raises:
        UserError: the file of a resumed run is missing or damaged, or no real image can be read.
    """
    if DECODER not in forger.names:
        return forger
    file = folder / "decoder.pt"
    if resume:
        return replace(forger, decoder=load_decoder(file))
    decoder = DecoderForgery(train_decoder(records, seed), STRIDE)
    buffer = io.BytesIO()
    torch.save(decoder.network.state_dict(), buffer)
    atomic_write_bytes(file, buffer.getvalue())
    return replace(forger, decoder=decoder)


def load_decoder(file: str | Path) -> DecoderForgery:
    """Return the forgery with the weights of an interrupted run.

    Raises:
        UserError: the file is missing or holds other weights.
    """
    network = Autoencoder()
    try:
        network.load_state_dict(read_weights_file(file))
    except RuntimeError:
        raise UserError(
            f"expected the decoder.pt of a run with --forgeries {DECODER} at {str(file)!r}, got other weights; "
            "start a new run"
        ) from None
    return DecoderForgery(network.eval().requires_grad_(False), STRIDE)


def train_decoder(records: Sequence[Record], seed: int) -> Autoencoder:
    """Fit the autoencoder to random crops of the real images, by their mean absolute error.

    Equal seeds, images and threads give equal weights; the global random state does not change.

    Raises:
        UserError: no real image can be read.
    """
    rng = np.random.default_rng([seed, SALT])
    pool = read_photographs(records, rng)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Autoencoder()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    error = float("nan")
    for step in tqdm(range(STEPS), desc="decoder for forgeries", disable=None, leave=False):
        chosen = [pool[number] for number in rng.integers(len(pool), size=BATCH_SIZE)]
        images = as_batch(np.stack([random_window(photo, CROP, rng) for photo in chosen]))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warmup_cosine(step, STEPS, STEPS // 20)
        loss = F.l1_loss(network(images), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        error = 255 * loss.item()
    log(f"decoder for forgeries: {STEPS} steps on {len(pool)} real images, mean error {error:.1f} grey levels")
    return network.eval().requires_grad_(False)


def read_photographs(records: Sequence[Record], rng: np.random.Generator) -> list[np.ndarray]:
    """Return parts ``(h, w, 3)`` uint8 of POOL random real images, or of all that can be read.

    Raises:
        UserError: none can be read.
    """
    reals = [record for record in records if record.label == 0]
    pool: list[np.ndarray] = []
    for index in rng.permutation(len(reals)):
        try:
            pool.append(random_window(read_record(reals[index]), POOL_SIDE, rng, pad=False))
        except UnreadableImage:  # reported by the training loop
            continue
        if len(pool) == POOL:
            break
    if not pool:
        raise UserError(f"expected real images to train the forgery {DECODER} on, got none that can be read")
    return pool


def random_window(image: np.ndarray, side: int, rng: np.random.Generator, pad: bool = True) -> np.ndarray:
    """Copy a random part of ``side`` px; ``pad`` fills up a smaller image by reflection."""
    top, left = (int(rng.integers(max(0, length - side) + 1)) for length in image.shape[:2])
    part = image[top : top + side, left : left + side]
    missing = (side - part.shape[0], side - part.shape[1]) if pad else (0, 0)
    return cv2.copyMakeBorder(part, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101)
