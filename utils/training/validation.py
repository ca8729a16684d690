"""The figures of an epoch: how well the validation images are told apart, clean and attacked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from datasets.loading import ImageDataset, make_loader
from datasets.spec import Listing
from datasets.transforms import EvalTransform
from models.detector import Detector
from models.operating_point import sigmoid
from utils.metrics.binary import auc
from utils.scoring.scorer import Job, Settings, score
from utils.training.adversarial import probe

PROBE_IMAGES = 200  # of each data set: enough to see a collapse, and a PGD probe costs 20 times a clean pass


def clean_figures(
    detector: Detector, listings: Sequence[Listing], batch_size: int, dtype: torch.dtype
) -> dict[str, float]:
    """``valid_loss`` over all images, and ``valid_auc``, its mean over the data sets that hold both classes."""
    aucs, labels, logits = [], [], []
    for listing in listings:
        scores = score([Job(detector)], listing.records, Settings(batch_size, dtype=dtype), "valid")[0]
        labels.append(np.array([listing.records[i].label for i in scores.indices]))
        logits.append(scores.logits)
        value = auc(labels[-1], sigmoid(scores.logits)) if len(scores.logits) else None
        aucs += [value] if value is not None else []
    y, z = np.concatenate(labels), np.concatenate(logits)
    loss = float(np.mean(np.logaddexp(0, np.where(y == 1, -z, z))))
    return {"valid_loss": loss, "valid_auc": float(np.mean(aucs)) if aucs else 0.5}


def robust_figures(
    detector: Detector, listings: Sequence[Listing], eps: float, batch_size: int, dtype: torch.dtype, seed: int
) -> dict[str, float]:
    """``fgsm_acc`` and ``pgd_acc`` on evenly spaced validation images, the same ones in every epoch."""
    records = [
        record for listing in listings for record in listing.records[:: -(-len(listing.records) // PROBE_IMAGES)]
    ]
    batches = list(make_loader(ImageDataset(records, EvalTransform(detector.geometry)), batch_size))
    device = next(detector.parameters()).device
    images = torch.cat([batch.images for batch in batches if len(batch.images)]).to(device)
    labels = torch.cat([batch.labels for batch in batches if len(batch.images)]).to(device)
    return probe(detector, images, labels, eps, dtype, batch_size, seed)
