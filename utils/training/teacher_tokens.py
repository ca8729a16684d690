"""Distillation from a mostly frozen teacher: its tower sees each view of an image once, for all heads and epochs.

The student trains on the images of ``--token-views`` views and on the logits of the teacher, whose tokens are cached as
in utils/training/tokens.py. Another head on the same tower, or another student of the same input, finds the cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.listing.splits import TrainingData
from datasets.loading import Batch, ImageDataset, Unreadable, collate
from datasets.transforms import TrainTransform, as_floats
from models.ensemble import calibrated_logits
from utils.args import check_output_dir
from utils.scoring.scorer import Settings
from utils.training.log import log
from utils.training.recipe import Recipe
from utils.training.state import TrainingState
from utils.training.token_cache import score_tokens
from utils.training.tokens import check_room, detector_facts, frozen_part, token_shape, training_caches


class AnsweredImages(Dataset):
    """Training images with the answers of a teacher; yields whole batches.

    The seed of an item, which would determine its augmentation, chooses one of its views.

    Attributes:
        images: the images of all listings, augmented by the seed of a view.
        seeds: of the views, ``(N, views)``.
        answers: the teacher's calibrated logits ``(N, views)`` float32.
    """

    def __init__(self, images: ImageDataset, seeds: np.ndarray, answers: np.ndarray) -> None:
        self.images, self.seeds, self.answers = images, seeds, answers
        self.records = images.records

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """Return the batch of these ``(index, seed)`` pairs."""
        views = [(index, seed % self.seeds.shape[1]) for index, seed in keys]
        batch = collate([self._item(index, view) for index, view in views])
        failed = {item.index for item in batch.unreadable}
        good = [pair for pair in views if pair[0] not in failed]
        batch.answers = torch.tensor([float(self.answers[pair]) for pair in good])
        return batch

    def _item(self, index: int, view: int) -> Any:
        """One view of an image, unless it could not be read when its answer was computed."""
        if np.isnan(self.answers[index, view]):
            return Unreadable(index, "unreadable when the teacher's answers were cached; repeat with another --cache")
        return self.images[index, int(self.seeds[index, view])]


def cache_answers(
    recipe: Recipe, state: TrainingState, data: TrainingData, transform: TrainTransform, root: Path, workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the answers of ``state.teacher``, which is removed, to all views of the training images.

    Returns:
        The seeds of the views and the answers, both ``(N, views)``; NaN for unreadable images.

    Raises:
        UserError: the disk lacks room, or cannot be written to.
    """
    check_output_dir(root, "--cache")
    teacher = state.teacher
    assert teacher is not None
    detector = teacher.detector
    facts = {**detector_facts(detector, state.dtype), "student_geometry": transform.geometry.to_dict()}
    side = teacher.view(torch.zeros(1, 3, transform.size, transform.size)).shape[-1]
    caches = training_caches(root, facts, recipe, data, transform, token_shape(detector, side))
    check_room(caches, root)
    with torch.random.fork_rng(devices=[]):  # a run is the same whether its tokens were cached before or not
        started = time.perf_counter()
        tokens_of = frozen_part(detector, state.dtype, sum(cache.missing for cache in caches))
        view = teacher.view
        images = sum(cache.build(lambda x: (tokens_of(view(as_floats(x))), None), workers) for cache in caches)
    if images:
        log(f"teacher: {images:,} images computed, {images / (time.perf_counter() - started):.1f} images/s")
    answers = []
    for cache in caches:
        logits = np.full(cache.seeds.size, np.nan, np.float32)
        scores = score_tokens(detector, cache, Settings(dtype=state.dtype))
        calibration = detector.operating_point.calibration
        logits[scores.indices] = calibrated_logits(torch.from_numpy(scores.logits), calibration).numpy()
        answers.append(logits.reshape(cache.seeds.shape))
    state.teacher = None
    return np.concatenate([cache.seeds for cache in caches]), np.concatenate(answers)
