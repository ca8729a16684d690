"""Forgeries of real photographs during training, so that a detector learns more than the traces of generators.

    blend      the same face with another colour, sharpness and place, behind a seam. K. Shiohara, T. Yamasaki,
               "Detecting Deepfakes with Self-Blended Images", CVPR 2022 (arXiv 2204.08376)
    splice     an eye, the nose or the mouth with another scale, angle, side or compression history, as in manual
               composites
    upsample   the whole picture through a simulated decoder. X. Zhang, S. Karaman, S.-F. Chang, "Detecting and
               Simulating Artifacts in GAN Fake Images", WIFS 2019 (arXiv 1907.06515)
    smooth     smoothed skin and moved features, as by beauty filters and retouching; S.-Y. Wang et al., "Detecting
               Photoshopped Faces by Scripting Photoshop", ICCV 2019 (arXiv 1906.05856), warp similarly
    decoder    the whole picture through a small autoencoder, which needs weights (datasets/forgeries/decoder.py)

Each takes an image ``(H, W, 3)`` uint8 RGB of 32 px or more and a numpy Generator, and returns the forged image and a
mask ``(H, W)`` float32 in [0, 1]: the weight with which each pixel was replaced, 0 where nothing changed. The face is
expected in the middle (datasets/forgeries/masks.py).

Deviations: a face prior replaces landmarks; self-blended images alter only the inner copy, in both directions (sharper
and softer, brighter and darker), which gives the same contrasts; ``upsample`` simulates the up-sampling of AutoGAN by
random kernels, without training a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.forgeries.masks import face_mask, feature_mask, find_face
from datasets.forgeries.steps import (
    SMOOTHERS,
    UPSAMPLERS,
    change_colour,
    change_sharpness,
    composite,
    liquify,
    mirror,
    move,
    to_uint8,
)
from datasets.framing import Box, cut, square_around
from datasets.perturbations import jpeg
from utils.errors import UserError, closest

SALT = 0x466F7267  # separates these draws from those of the augmentation, which has the same seed
QUALITIES = (70, 95)  # of JPEG after forging; the usual training sets are around 75
CLOSE_UP, MIN_SIDE = 2.0, 32  # side of the forged part : longer side of the face, and px that a forgery needs
BLEND_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)

Forgery = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def blend(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Replace the face by a slightly moved and scaled copy with another colour or sharpness."""
    copy = change_colour(image, rng) if rng.random() < 0.7 else image
    copy = change_sharpness(copy, rng) if copy is image or rng.random() < 0.6 else copy
    copy = move(copy, rng, shift=0.03, scale=0.05, degrees=2.0)
    mask = face_mask(image.shape, find_face(image, rng), rng) * np.float32(rng.choice(BLEND_RATIOS))
    return composite(image, copy, mask), mask


def splice(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Replace a feature as if by that of another picture of the person: scaled, turned, mirrored or compressed."""
    face = find_face(image, rng)
    mask = feature_mask(image.shape, face, rng)
    copy = mirror(image, face) if rng.random() < 0.3 else image
    copy = move(copy, rng, shift=0.02, scale=0.15, degrees=8.0)
    history = rng.random()
    if history < 0.4:
        copy = jpeg(copy, int(rng.integers(30, 70)))
    elif history < 0.8:
        copy = change_sharpness(copy, rng)
    if rng.random() < 0.5:
        copy = change_colour(copy, rng)
    return composite(image, copy, mask), mask


def upsample(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rebuild the picture from half, sometimes a quarter, of its size by the up-sampling layers of generators.

    A random share of the detail lost by scaling is added back, so that blur is not the trace to learn.
    """
    height, width = image.shape[:2]
    levels = 2 if rng.random() < 0.25 else 1
    factor = 2**levels
    padded = cv2.copyMakeBorder(image, 0, -height % factor, 0, -width % factor, cv2.BORDER_REFLECT_101)
    photo = padded.astype(np.float32)
    low = cv2.resize(photo, (photo.shape[1] // factor, photo.shape[0] // factor), interpolation=cv2.INTER_AREA)
    rebuilt, step = low, UPSAMPLERS[rng.integers(len(UPSAMPLERS))]
    for _ in range(levels):
        rebuilt = step(rebuilt, rng, float(np.exp(rng.uniform(np.log(0.012), np.log(0.05)))))
    lost = photo - cv2.resize(low, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    forged = to_uint8(rebuilt + np.float32(rng.uniform(0.2, 0.9)) * lost)[:height, :width]
    return forged, np.ones((height, width), np.float32)


def smooth(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Smooth the face but not its edges, or move one or two of its features, or both."""
    face = find_face(image, rng)
    kind = rng.random()
    mask = np.zeros(image.shape[:2], np.float32)
    forged = image
    if kind < 0.75:
        mask = face_mask(image.shape, face, rng) * np.float32(rng.uniform(0.5, 1.0))
        forged = composite(image, SMOOTHERS[rng.integers(len(SMOOTHERS))](image, rng), mask)
    if kind > 0.25:
        for _ in range(rng.integers(1, 3)):
            forged, moved = liquify(forged, face, rng)
            mask = np.maximum(mask, moved)
    return forged, mask


FORGERIES: dict[str, Forgery] = {"blend": blend, "splice": splice, "upsample": upsample, "smooth": smooth}
DECODER = "decoder"  # not a pure function: it needs the weights of a network
KINDS = (*FORGERIES, DECODER)


# ------------------------------------------------------------------------------------------------ in training


@dataclass(frozen=True)
class Forger:
    """Turns a ``share`` of the real training images into fakes of the kinds ``names``; picklable for loader workers.

    Forged images are compressed as JPEG again, since missing JPEG traces would give them away. To keep double
    compression from becoming a clue, the same share of the remaining real images is compressed again as there are
    forgeries among all fakes, assuming as many fakes as reals: ``share / (1 + share)``. Labelled fakes do not change.
    The draws depend on the seed of the item and do not affect those of the augmentation.

    ``decoder`` is the forgery of that name, required if ``names`` contains it.
    """

    names: tuple[str, ...]
    share: float
    decoder: Forgery | None = None

    def __call__(
        self, image: np.ndarray, label: int | None, seed: int, box: Box | None = None
    ) -> tuple[np.ndarray, int | None]:
        """Return the image ``(H, W, 3)`` uint8 RGB, forged or not, and its label: 1 if it was forged.

        Of a picture whose face is known only the square of CLOSE_UP times the face is forged.
        """
        if label != 0:
            return image, label
        rng = np.random.default_rng([seed, SALT])
        is_forged = rng.random() < self.share
        is_compressed = is_forged or rng.random() < self.share / (1 + self.share)
        if is_forged:
            forgery = self.forgery(self.names[rng.integers(len(self.names))])
            square = square_around(image.shape, box, CLOSE_UP)
            part = cut(image, square) if box and square[2] >= MIN_SIDE else image
            forged = forgery(part, rng)[0]
            if part is image:
                image = forged
            else:
                image = image.copy()
                cut(image, square)[:] = forged
            label = 1
        return (jpeg(image, int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))) if is_compressed else image), label

    def forgery(self, name: str) -> Forgery:
        """The function that makes fakes of this kind."""
        return self.decoder if self.decoder and name == DECODER else FORGERIES[name]


def make_forger(names: str, share: float) -> Forger:
    """Return the forger for the text ``blend,splice``. Raises UserError if a name is unknown."""
    chosen = tuple(names.split(","))
    for name in chosen:
        if name not in KINDS:
            raise UserError(f"expected --forgeries of {', '.join(KINDS)}, got {name!r}{closest(name, KINDS)}")
    return Forger(chosen, share)
