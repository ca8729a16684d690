"""What an epoch achieved: its validation figures, on clean and on attacked images, and whether it diverged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from datasets.listing.spec import Listing
from datasets.loading import ImageDataset, make_loader
from datasets.transforms import EvalTransform
from models.detector import Detector
from models.operating_point import sigmoid
from utils.errors import UserError
from utils.metrics.source_pairs import mix_auc, pair_aucs
from utils.scoring.scorer import Job, Scores, Settings, score_together
from utils.training.adversarial import RAMP, has_collapsed, probe
from utils.training.recipe import Recipe
from utils.training.state import TrainingState
from utils.training.token_cache import valid_scorer

DIVERGED = 100.0  # mean cross-entropy of an epoch; NaN counts as diverged too
PROBE_IMAGES = 200  # per dataset: enough to see a collapse, and a PGD probe costs 20 times a clean pass


def validate(recipe: Recipe, listings: Sequence[Listing], state: TrainingState, workers: int) -> dict[str, float]:
    """Score the validation images; in adversarial training, attack some of them and check for a collapse."""
    detector = state.averaged()
    settings = Settings(recipe.batch_size, workers, state.dtype)
    if score_valid := valid_scorer(state.valid_tokens, settings):
        scored = score_valid(detector)
    else:
        scored = [scores for (scores,) in score_together([Job(detector)], listings, settings, "valid")]
    figures = clean_figures(listings, scored)
    if recipe.adversarial:
        images, labels = probe_images(detector, listings, settings, state.device)
        figures |= probe(detector, images, labels, recipe.adv_eps, state.dtype, recipe.batch_size, recipe.seed)
        ramp_is_over = state.epoch + 1 > RAMP * recipe.epochs
        figures["collapsed"] = float(has_collapsed(state.history, figures, ramp_is_over))
    return figures


def check_epoch(mean_loss: float, images: int, unreadable: int, recipe: Recipe, epoch: int) -> None:
    """Raise UserError if an epoch trained on no image, or its loss diverged."""
    if not images:
        raise UserError(
            f"expected batches with two readable training images or more, got none; {unreadable} images are "
            "unreadable: check the data with audit.py"
        )
    if not mean_loss < DIVERGED:
        causes = "--lr, or check --weights and the data" if recipe.weights else "--lr, or check the data"
        raise UserError(
            f"expected a training loss around or below 0.7 (chance), got {mean_loss:.3g} over {images} images in epoch "
            f"{epoch}; lower {causes} with audit.py"
        )


def clean_figures(listings: Sequence[Listing], scored: Sequence[Scores]) -> dict[str, float]:
    """Return ``valid_loss`` over all images and ``valid_auc``, see :func:`utils.metrics.source_pairs.mix_auc`."""
    labels, logits = [], []
    for listing, scores in zip(listings, scored, strict=True):
        labels.append(np.array([listing.records[i].label for i in scores.indices], dtype=np.int64))
        logits.append(scores.logits)
    y, z = np.concatenate(labels), np.concatenate(logits)
    loss = float(np.mean(np.logaddexp(0, np.where(y == 1, -z, z))))
    value = mix_auc(pair_aucs([(own, sigmoid(scores)) for own, scores in zip(labels, logits, strict=True)]))[0]
    return {"valid_loss": loss, "valid_auc": 0.5 if np.isnan(value) else float(value)}


def probe_images(
    detector: Detector, listings: Sequence[Listing], settings: Settings, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return evenly spaced validation images and their labels, the same in every epoch."""
    records = [
        record for listing in listings for record in listing.records[:: -(-len(listing.records) // PROBE_IMAGES)]
    ]
    loader = make_loader(
        ImageDataset(records, EvalTransform(detector.geometry)), settings.batch_size, workers=settings.workers
    )
    batches = [batch for batch in loader if len(batch.images)]
    images, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels"))
    return images.to(device), labels.to(device)
