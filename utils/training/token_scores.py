"""Scores from cached tokens: detectors with the same frozen part compute it only once.

Leave-one-source-out scores the same images with a dozen detectors on one frozen tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.faces.framing import Box
from datasets.listing.records import Listing
from datasets.perturbations import CLEAN, apply_tier
from datasets.transforms import EvalTransform, Geometry
from models.detector import Detector
from utils.args import check_output_dir
from utils.scoring.scorer import Scores, Settings
from utils.training.token_cache import score_tokens
from utils.training.tokens import check_room, detector_facts, frozen_part, plain_cache, token_shape


class Delivered(EvalTransform):
    """Images as a tier delivers them, then framed for evaluation."""

    def __init__(self, geometry: Geometry, tier: str) -> None:
        super().__init__(geometry)
        self.tier = tier

    def __call__(self, image: np.ndarray, seed: int = 0, box: Box | None = None) -> Tensor:
        return super().__call__(apply_tier(image, self.tier), seed, box)


def score_by_tokens(
    detector: Detector,
    dtype: torch.dtype,
    listings: Sequence[Listing],
    tiers: Sequence[str],
    root: Path,
    settings: Settings,
) -> list[list[Scores]]:
    """Score listings, each as every tier delivers it, from the caches below ``root``, which are completed first.

    The tokens are those of training in the arithmetic ``dtype``, so the clean validation images of a run are known.

    Returns:
        The scores of each listing, one per tier.

    Raises:
        UserError: the disk lacks room, or cannot be written to.
    """
    check_output_dir(root, "--cache")
    detector.eval()
    facts, shape = detector_facts(detector, dtype), token_shape(detector, detector.geometry.size)
    views = {tier: {} if tier == CLEAN else {"tier": tier} for tier in tiers}
    caches = [
        plain_cache(root, {**facts, **view}, listing, Delivered(detector.geometry, tier), shape)
        for listing in listings
        for tier, view in views.items()
    ]
    check_room(caches, root)
    tokens_of = frozen_part(detector, dtype, sum(cache.missing for cache in caches))
    for cache in caches:
        cache.build(lambda images: (tokens_of(images), None), settings.workers)
    found = [score_tokens(detector, cache, settings) for cache in caches]
    return [found[start : start + len(tiers)] for start in range(0, len(found), len(tiers))]
