"""Certificates by randomised smoothing: a radius within which no attack can change the verdict.

Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019 (arXiv 1902.02918). The
certified classifier is not the detector itself but its majority vote under Gaussian noise, so it is only as good as the
detector is on noisy images; the detector is not retrained with noise here. Verdicts use the threshold of the
checkpoint. Radii are L2, in pixel units.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest, norm
from torch import Tensor
from tqdm import tqdm

from datasets.listing.records import Listing, relative_path
from utils.attacks.cells import current_results, is_finished
from utils.attacks.gradient import LogitOf, attackable
from utils.attacks.runs import Target, batches_of, cell_key, evenly_spaced
from utils.files import read_json, write_json
from utils.metrics.binary import wilson
from utils.scoring.cache import labelled_digest
from utils.tables import columns, write_table

GUESS_DRAWS = 32  # noisy copies that choose the verdict
DRAWS = 256  # further copies that bound how often it is reached
FAILURE = 0.001  # probability that a certificate is wrong
BATCH = 64
RADII = (0.0, 0.5, 1.0, 1.5)  # in units of sigma; DRAWS draws cannot certify more than 1.9 sigma


def certify(logit_of: LogitOf, image: Tensor, sigma: float, generator: torch.Generator) -> tuple[int | None, float]:
    """Certify one image ``(3, H, W)`` in [0, 1] under noise of standard deviation ``sigma`` (pixel units).

    Returns:
        The label of the smoothed detector, None where it abstains, and the L2 radius within which it cannot change.
    """
    guess = int(2 * count_fake(logit_of, image, sigma, GUESS_DRAWS, generator) > GUESS_DRAWS)
    votes = count_fake(logit_of, image, sigma, DRAWS, generator)
    radius = certified_radius(votes if guess else DRAWS - votes, DRAWS, sigma)
    return (guess if radius else None), radius


def certified_radius(votes: int, draws: int, sigma: float) -> float:
    """Radius for ``votes`` out of ``draws``, by the exact lower bound of Clopper and Pearson; 0 means abstain."""
    low = binomtest(votes, draws, alternative="greater").proportion_ci(1 - FAILURE, "exact").low
    return float(sigma * norm.ppf(low)) if low > 0.5 else 0.0


@torch.no_grad()
def count_fake(logit_of: LogitOf, image: Tensor, sigma: float, draws: int, generator: torch.Generator) -> int:
    """Count the fake verdicts among ``draws`` noisy copies. As in the paper, the copies may leave [0, 1]."""
    total = 0
    for start in range(0, draws, BATCH):
        size = (min(BATCH, draws - start), *image.shape)
        noise = torch.randn(size, generator=generator, device=image.device)
        total += int((logit_of((image + sigma * noise).contiguous(memory_format=torch.channels_last)) > 0).sum())
    return total


def write_certificates(
    targets: Sequence[Target], listing: Listing, sigma: float, limit: int, seed: int, folder: Path
) -> None:
    """Certify evenly spaced images of a listing with every detector and write the table ``smoothing``.

    Finished files in ``folder/smoothing`` with the same settings are kept.
    """
    sample = evenly_spaced(listing, limit)
    for target in targets:
        stem = folder / "smoothing" / f"{target.name}__{listing.name}__{listing.split}__{sigma:g}"
        settings = {
            "digest": target.candidate.digest,
            "data": labelled_digest(sample),
            "sigma": sigma,
            "seed": seed,
            "draws": DRAWS,
            "failure": FAILURE,
            "arithmetic": target.arithmetic,
        }
        key = cell_key(**settings)
        if not is_finished(stem, key):
            images = certify_records(target, sample, sigma, seed)
            facts = {
                "digests": {target.name: target.candidate.digest},
                "settings": settings,
                "checkpoint": target.name,
                "dataset": listing.name,
                "images": images,
            }
            write_json(stem.with_name(f"{stem.name}.json"), {"key": key, **facts})
    current = {target.name: target.candidate.digest for target in targets}
    rows = [certified_row(read_json(file)) for file in current_results(folder / "smoothing", current)]
    titles = {f"r{number}": f"at {radius:g} sigma" for number, radius in enumerate(RADII)}
    table = columns(checkpoint="Checkpoint", dataset="Data", sigma="Noise", n="n", **titles)
    caption = (
        f"Certified accuracy under L2 changes of a radius in units of the noise; {DRAWS} draws, failure {FAILURE}."
    )
    write_table(rows, table, folder / "smoothing", caption)


def certify_records(target: Target, listing: Listing, sigma: float, seed: int) -> list[dict[str, Any]]:
    """Certify every image of a listing; returns ``{path, label, certified, radius}`` for each."""
    generator = torch.Generator(target.device).manual_seed(seed)
    results = []
    with attackable(target.candidate.detector):
        for batch in tqdm(batches_of(target, listing, 1), f"smoothing {target.name}", disable=None, leave=False):
            certified, radius = certify(target.boundary, batch.images[0], sigma, generator)
            path = relative_path(listing.records[int(batch.indices[0])].path, listing.root)
            label = int(batch.labels[0])
            results.append({"path": path, "label": label, "certified": certified, "radius": radius})
    return results


def certified_row(entry: dict[str, Any]) -> dict[str, Any]:
    """Certified accuracy at each of RADII, with its interval."""
    sigma, images = entry["settings"]["sigma"], entry["images"]
    row = {"checkpoint": entry["checkpoint"], "dataset": entry["dataset"], "sigma": sigma, "n": len(images)}
    for number, radius in enumerate(RADII):
        right = sum(i["certified"] == i["label"] and i["radius"] >= radius * sigma for i in images)
        row[f"r{number}"], row[f"r{number}_ci"] = right / len(images), wilson(right, len(images))
    return row
