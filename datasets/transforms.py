"""From a decoded image to a model input: the geometry that a checkpoint stores, and training augmentation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from datasets.augmentation import STEPS, augment, is_flipped
from datasets.faces.framing import FACE_MARGIN, MARGIN, Box, cut, square_around
from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

AUGMENTATIONS = tuple(STEPS)
MAX_ASPECT = 8  # of an enlarged image; a 1 x 1,000,000 px strip would fill the memory
JPEG_GRID = 8  # px; crops start on this grid, so that JPEG blocks stay where a model expects them
TRAIN_GRID = 16  # px; the coding units of JPEG with halved chroma span two blocks
MODES = ("crop", "resize", "face")
ZOOM, SHIFT = 0.22, 0.06  # jitter of training frames: of the logarithm of the side, and of the centre in sides


@dataclass(frozen=True)
class Geometry:
    """How an image of any size becomes a square input; chosen in training and kept in the checkpoint.

    ``crop`` scales the shorter side to ``resize_to`` (None keeps the native resolution) and cuts out the central
    ``size`` x ``size`` pixels, which preserves traces at pixel level. ``resize`` squeezes the whole image into
    ``size`` x ``size``. ``face`` frames the largest face, a square of ``margin`` times its longer side, and resamples
    that square; without a face, the central square of the picture.
    """

    mode: str = "crop"
    size: int = 224
    resize_to: int | None = None
    margin: float = MARGIN

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"expected --geometry {', '.join(MODES)}, got {self.mode!r}")
        if not 0.5 <= self.margin <= 5:
            raise UserError(
                f"expected --margin in 0.5..5 (side of the frame : longer side of the face), got {self.margin:g}"
            )
        if not 16 <= self.size <= 4096:
            raise UserError(f"expected --image-size in 16..4096 pixels, got {self.size}")
        if self.resize_to is not None and not self.size <= self.resize_to <= 8192:
            raise UserError(
                f"expected --resize-to in {self.size}..8192 pixels (at least --image-size), got {self.resize_to}"
            )

    def to_dict(self) -> dict:
        """Plain values for the checkpoint."""
        return {key: value for key, value in asdict(self).items() if key != "margin" or self.needs_face}

    @property
    def needs_face(self) -> bool:
        """Whether the view of a picture depends on the face in it."""
        return self.mode == "face"

    def scale(self, image: np.ndarray, at_least: int | None = None) -> np.ndarray:
        """Resample ``(H, W, 3)`` uint8 so that a crop of ``at_least`` (default ``size``) pixels fits inside."""
        if self.mode == "resize":
            return resize_to(image, at_least or self.size, at_least or self.size)
        height, width = image.shape[:2]
        shorter = min(height, width)
        target = max(self.resize_to or shorter, at_least or self.size)
        if target == shorter:
            return image
        if target > shorter:
            longest = MAX_ASPECT * shorter  # the middle of a longer side is kept
            top, left = (max(0, (side - longest) // 2) for side in image.shape[:2])
            image = image[top : top + longest, left : left + longest]
            height, width = image.shape[:2]
        factor = target / shorter
        return resize_to(image, max(target, round(height * factor)), max(target, round(width * factor)))

    def __call__(self, image: np.ndarray, box: Box | None = None) -> np.ndarray:
        """Turn ``(H, W, 3)`` uint8 RGB into ``(size, size, 3)`` uint8 RGB, the same way every time.

        Only the mode ``face`` uses the ``box`` of the face, None if there is no face.
        """
        if self.needs_face:
            return resize_to(cut(image, self.square(image.shape, box)), self.size, self.size)
        image = self.scale(image)
        top, left = ((side - self.size) // 2 // JPEG_GRID * JPEG_GRID for side in image.shape[:2])
        return image[top : top + self.size, left : left + self.size]

    def of_face(self, image: np.ndarray, box: Box) -> np.ndarray:
        """The view of one of several faces: what other modes than ``face`` see of the square around it."""
        return self(image, box) if self.needs_face else self(cut(image, self.square(image.shape, box)))

    def square(self, shape: tuple[int, ...], box: Box | None) -> tuple[int, int, int]:
        """Top, left and side in px of the square around a face that is seen in a picture of this ``(H, W)``."""
        return square_around(shape, box, self.margin if self.needs_face else FACE_MARGIN)


def resize_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resample with area averaging along sides that shrink (no aliasing), then bicubic along sides that grow.

    OpenCV averages areas only if no side grows.
    """
    shrunk = min(height, image.shape[0]), min(width, image.shape[1])
    if shrunk != image.shape[:2]:
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    return image if shrunk == (height, width) else cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def to_tensor(image: np.ndarray) -> Tensor:
    """Turn ``(H, W, 3)`` uint8 RGB into ``(3, H, W)`` float32 in [0, 1]."""
    import torch  # here, because exported detectors use the geometry without torch

    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1).float().div_(255)


def to_bytes(image: np.ndarray) -> Tensor:
    """Turn ``(H, W, 3)`` uint8 RGB into a tensor of the same shape and type; :func:`as_floats` converts batches."""
    import torch

    return torch.from_numpy(np.require(image, requirements=["C", "W"]))


def as_floats(images: Tensor) -> Tensor:
    """Turn a batch ``(N, H, W, 3)`` uint8 into ``(N, 3, H, W)`` float32 in [0, 1], colours last in memory.

    Of a batch of floats only the memory order changes; cached tokens ``(N, R, D)`` float16 become float32.
    """
    import torch

    if images.ndim == 3:
        return images.float()
    if images.dtype == torch.uint8:
        images = images.permute(0, 3, 1, 2)
        if images.device.type == "cpu":  # in one pass; torch takes two
            images = torch.from_numpy(np.divide(images.numpy(), np.float32(255), dtype=np.float32))
        else:
            images = images.float().div_(255)
    return images.contiguous(memory_format=torch.channels_last)


class EvalTransform:
    """The fixed geometry followed by the conversion to a tensor; picklable, so loader workers can carry it."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    @property
    def needs_face(self) -> bool:
        return self.geometry.needs_face

    def __call__(self, image: np.ndarray, seed: int = 0, box: Box | None = None) -> Tensor:
        return to_tensor(self.geometry(image, box))


class TrainTransform:
    """Random augmentation that depends on the ``seed`` of the call only.

    Each item is seeded by (run seed, epoch, position in the epoch), so the augmented images do not depend on the number
    of workers, and a resumed run sees the images it would have seen. Crops start on the JPEG grid: with corners
    anywhere, a network that reads block spectra, such as ``cnn``, sees noise instead of traces.

    ``light`` flips. ``forensic`` also degrades as delivery channels do (datasets/augmentation.py): rescaling by
    0.5..0.95 and back, Gaussian blur of sigma 0.3..2 px, Gaussian noise of up to 4 % of the range, JPEG quality 40..95,
    each with a probability. ``delivery`` first imitates sites and messengers: an enlarged window of the face, scaling
    by 0.4..1 with JPEG or WebP and back, and less of the others. ``wild`` is for photographs of any origin: faces
    without surroundings, other tones, uploads, and fewer of the steps that destroy traces. Wang et al., "CNN-generated
    images are surprisingly easy to spot... for now", CVPR 2020 (arXiv 1912.11035), blur and compress for the same
    purpose.

    With ``as_bytes`` images stay ``(H, W, 3)`` uint8: they are a quarter of their size as floats on the way from a
    loader worker to a GPU, and :func:`as_floats` converts whole batches faster.

    Images are scaled as for evaluation, and crops of ``train_size`` (default: the size of the geometry) taken then.
    Frames of faces vary in margin, by a factor of 0.8..1.25, and in place, by 6 % of their side.

    Raises UserError for an unknown preset.
    """

    def __init__(
        self, geometry: Geometry, augmentation: str = "light", train_size: int | None = None, as_bytes: bool = False
    ) -> None:
        self.finish = to_bytes if as_bytes else to_tensor
        self.geometry = geometry
        self.size = train_size or geometry.size
        if augmentation not in STEPS:
            raise UserError(f"expected --augmentation {', '.join(AUGMENTATIONS)}, got {augmentation!r}")
        self.is_random = augmentation != "none"
        self.steps = STEPS[augmentation]

    @property
    def needs_face(self) -> bool:
        return self.geometry.needs_face

    def __call__(self, image: np.ndarray, seed: int = 0, box: Box | None = None) -> Tensor:
        generator = np.random.default_rng(seed)
        image = self._frame(image, box, generator) if self.needs_face else self.scale(image)
        if self.geometry.mode == "crop":
            top, left = self._corner(image.shape[:2], generator)
            image = image[top : top + self.size, left : left + self.size]
        if self.is_random:
            image = augment(image, self.steps, generator, seed)
        return self.finish(image)

    def scale(self, image: np.ndarray) -> np.ndarray:
        """Resample ``(H, W, 3)`` uint8 to the scale of evaluation; ``resize`` squeezes it to the size of training."""
        is_crop = self.geometry.mode == "crop"
        return self.geometry.scale(image, max(self.size, self.geometry.size) if is_crop else self.size)

    def _frame(self, image: np.ndarray, box: Box | None, generator: np.random.Generator) -> np.ndarray:
        zoom, shift = 1.0, (0.0, 0.0)
        if self.is_random:
            zoom, (across, down) = np.exp(generator.uniform(-ZOOM, ZOOM)), generator.uniform(-SHIFT, SHIFT, 2)
            shift = (float(across), float(down))
        square = square_around(image.shape, box, self.geometry.margin, float(zoom), shift)
        return resize_to(cut(image, square), self.size, self.size)

    def view(self, shape: tuple[int, ...], seed: int) -> tuple[int, int, bool]:
        """Top and left of the crop of an unscaled image ``(H, W)``, and whether it is flipped."""
        top, left = self._corner(shape, np.random.default_rng(seed))
        return top, left, self.is_random and is_flipped(seed)

    def _corner(self, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[int, int]:
        rooms = [side - self.size for side in shape]
        if self.is_random:
            top, left = (TRAIN_GRID * int(generator.integers(room // TRAIN_GRID + 1)) for room in rooms)
        else:
            top, left = (room // 2 // JPEG_GRID * JPEG_GRID for room in rooms)
        return top, left
