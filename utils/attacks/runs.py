"""Run one attack over one data set: craft with one detector, score with one or several, and lay out the cells."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.loading import Batch, ImageDataset, make_loader
from datasets.spec import Listing
from datasets.transforms import EvalTransform
from models.ensemble import member_view
from models.operating_point import apply_calibration
from utils.attacks.cells import Cell, cell_key, is_finished
from utils.attacks.checks import CHECK_IMAGES, check_change, check_detector
from utils.attacks.gradient import DecisionLogit, attackable
from utils.attacks.names import DIRECTIONS, size_name
from utils.attacks.suite import Plan
from utils.attacks.survival import recompressed, rounded
from utils.errors import UserError
from utils.evaluation.evaluate import Candidate
from utils.files import write_json
from utils.scoring.table import ScoreTable

CELL_FORMAT = 1  # raise it when an attack changes its results
VARIANTS = ("clean", "adversarial", "rounded", "jpeg")


@dataclass
class Target:
    """A detector under attack: its threshold as p_fake and as a logit, and its arithmetic."""

    candidate: Candidate
    threshold: float
    boundary: DecisionLogit

    @property
    def name(self) -> str:
        return self.candidate.name


def make_target(candidate: Candidate, dtype: torch.dtype) -> Target:
    """Take the balanced threshold of a checkpoint (0.5 if it has none) as the boundary that an attack has to cross."""
    point = candidate.detector.operating_point
    threshold = point.threshold()
    logit = logit_of_threshold(threshold, point.calibration)
    return Target(candidate, threshold, DecisionLogit(candidate.detector, logit, dtype))


def logit_of_threshold(threshold: float, calibration: dict[str, Any] | None) -> float:
    """The smallest logit whose calibrated p_fake reaches the threshold, by bisection: calibrations only rise."""
    low, high = -1e4, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        if apply_calibration(np.array([middle]), calibration)[0] >= threshold:
            high = middle
        else:
            low = middle
    return high


def batches_of(
    target: Target,
    listing: Listing,
    batch_size: int,
    device: torch.device,
    unreadable: list[dict[str, str]] | None = None,
) -> Iterator[Batch]:
    """The readable images of a listing as the detector sees them, on its device; lists the others in ``unreadable``."""
    transform = EvalTransform(target.candidate.detector.geometry)
    for batch in make_loader(ImageDataset(listing.records, transform), batch_size):
        if unreadable is not None:
            unreadable += [{"path": listing.records[i.index].path, "reason": i.reason} for i in batch.unreadable]
        if len(batch.images):
            batch.images = batch.images.to(device, memory_format=torch.channels_last)
            batch.labels = batch.labels.to(device)
            yield batch


def run_cells(
    source: Target,
    targets: Sequence[Target],
    listing: Listing,
    plan: Plan,
    direction: str,
    batch_size: int,
    device: torch.device,
    export: Callable[[Tensor, Tensor], None] | None = None,
) -> list[Cell]:
    """Attack the images of a listing through ``source`` and score the result with each target.

    A target with another geometry sees its own view cut or resized out of the input of the source, as the member of
    an ensemble does; its clean accuracy is measured on the same view.

    Args:
        export: called with the indices and the adversarial images of each batch.

    Returns:
        One cell per target, without the facts that only the caller knows.
    """
    p_fake: dict[tuple[str, str], list[np.ndarray]] = {(t.name, v): [] for t in targets for v in VARIANTS}
    logits: dict[str, list[np.ndarray]] = {target.name: [] for target in targets}
    facts: dict[str, list[np.ndarray]] = {name: [] for name in ("index", "attacked", "linf", "l2")}
    unreadable: list[dict[str, str]] = []
    failures: set[str] = set()
    seconds, n_attacked = 0.0, 0
    title = f"{source.name} {listing.name} {plan.attack} {size_name(plan.eps)}"
    batches = batches_of(source, listing, batch_size, device, unreadable)
    for batch in tqdm(batches, title, disable=None, leave=False, total=-(-len(listing.records) // batch_size)):
        chosen = torch.isin(batch.labels, torch.tensor(DIRECTIONS[direction], device=device))
        started = time.perf_counter()
        adversarial = attack_batch(source, replace(plan, seed=plan.seed + int(batch.indices[0])), batch, chosen)
        seconds, n_attacked = seconds + time.perf_counter() - started, n_attacked + int(chosen.sum())
        failures.update(check_change(batch.images, adversarial, plan.eps, plan.norm))
        if export:
            export(batch.indices, adversarial)
        change = (adversarial - batch.images).flatten(1)
        for name, values in (
            ("index", batch.indices),
            ("attacked", chosen),
            ("linf", change.abs().amax(1)),
            ("l2", change.norm(dim=1)),
        ):
            facts[name].append(values.cpu().numpy())
        variants = (batch.images, adversarial, rounded(adversarial), recompressed(adversarial))
        for target in targets:
            for variant, images in zip(VARIANTS, variants, strict=True):
                raw = score_view(source, target, images)
                p_fake[target.name, variant].append(target.candidate.detector.operating_point.p_fake(raw))
                if variant == "adversarial":
                    logits[target.name].append(raw)
    if len(unreadable) == len(listing.records):
        raise UserError(f"expected images in {listing.name}, but none of {len(listing.records)} could be read")
    columns = {name: np.concatenate(parts) for name, parts in facts.items()}
    shared = {
        "seconds": seconds,
        "images_per_s": n_attacked / seconds if seconds else None,
        "failed": sorted(failures),
        "unreadable": unreadable,
        "plan": asdict(plan),
        "direction": direction,
        "source": source.name,
        "n_images": len(listing.records),
        "data_fingerprint": listing.fingerprint,
        "split": listing.split,
    }
    return [
        _cell(
            target,
            listing,
            columns,
            np.concatenate(logits[target.name]),
            {variant: np.concatenate(p_fake[target.name, variant]) for variant in VARIANTS},
            shared,
        )
        for target in targets
    ]


def attack_batch(source: Target, plan: Plan, batch: Batch, chosen: Tensor) -> Tensor:
    """Attack the chosen images of a batch and leave the others as they are."""
    adversarial = batch.images.clone()
    if chosen.any():
        with attackable(source.candidate.detector):
            adversarial[chosen] = plan.run(source.boundary, batch.images[chosen], batch.labels[chosen])
    return adversarial


@torch.no_grad()
def score_view(source: Target, target: Target, images: Tensor) -> np.ndarray:
    """Logits ``(N,)`` float64 of a target on images in the geometry of the source."""
    detector = target.candidate.detector
    view = member_view(images, source.candidate.detector.geometry, detector.geometry)
    return (target.boundary(view) + target.boundary.threshold).double().cpu().numpy()


def _cell(
    target: Target,
    listing: Listing,
    columns: dict[str, np.ndarray],
    logits: np.ndarray,
    p_fake: dict[str, np.ndarray],
    shared: dict[str, Any],
) -> Cell:
    records = [listing.records[index] for index in columns["index"]]
    plan = shared["plan"]
    table = ScoreTable(
        path=[record.path for record in records],
        label=np.array([record.label for record in records], dtype=np.int64),
        dataset=[listing.name] * len(records),
        generator=[record.generator for record in records],
        tier=[f"{plan['attack']} {plan['norm']} {size_name(plan['eps'])}"] * len(records),
        logit=logits,
        p_fake=p_fake["adversarial"],
    )
    extra = {
        "attacked": columns["attacked"].astype(float),
        "linf": columns["linf"],
        "l2": columns["l2"],
        **{f"{variant}_p_fake": p_fake[variant] for variant in ("clean", "rounded", "jpeg")},
    }
    info = {
        **shared,
        "checkpoint": target.name,
        "model": target.candidate.checkpoint["model"],
        "dataset": listing.name,
        "threshold": target.threshold,
    }
    return Cell(table, extra, info)


def cell_settings(
    source: Target, target: Target, listing: Listing, plan: Plan, direction: str, batch_size: int
) -> dict[str, Any]:
    """Everything that decides the numbers of a cell."""
    return {
        "format": CELL_FORMAT,
        "source": source.candidate.digest,
        "target": target.candidate.digest,
        "data": [listing.name, listing.split, listing.fingerprint],
        "plan": asdict(plan),
        "direction": direction,
        "batch_size": batch_size,
        "precision": str(source.boundary.dtype),
    }


def cell_name(source: Target, target: Target, listing: Listing, plan: Plan, direction: str) -> str:
    """Name the files of a cell: ``cnn-demo__demo__test__pgd-linf-2_255``, with what is unusual about it."""
    crafted = "" if source is target else f"__from-{source.name}"
    unusual = "" if direction == "both" else f"-{direction}"
    size = size_name(plan.eps).replace("/", "_")
    return f"{target.name}__{listing.name}__{listing.split}__{plan.attack}-{plan.norm}-{size}{unusual}{crafted}"


def check_source(target: Target, listing: Listing, plan: Plan, device: torch.device, folder: Path) -> None:
    """Look for reasons not to believe an attack on a detector, once per data set and threat model.

    CHECK_IMAGES evenly spaced images are used; the result goes to ``folder/checks`` and failures to stderr.
    """
    stem = folder / "checks" / f"{target.name}__{listing.name}__{listing.split}__{plan.norm}"
    key = cell_key(cell_settings(target, target, listing, plan, "both", CHECK_IMAGES))
    if is_finished(stem, key):
        return
    step = max(1, len(listing.records) // CHECK_IMAGES)
    sample = replace(listing, records=listing.records[::step][:CHECK_IMAGES])
    detector = target.candidate.detector
    checks: list[dict[str, Any]] = []
    for batch in batches_of(target, sample, CHECK_IMAGES, device):
        with attackable(detector):
            checks = check_detector(target.boundary, batch.images, batch.labels, plan, detector.has_input_gradient)
    for check in checks:
        if not check["passed"]:
            print(f"{target.name} on {listing.name}: failed: {check['check']} ({check['detail']})", file=sys.stderr)
    write_json(
        stem.with_name(stem.name + ".json"),
        {
            "key": key,
            "checkpoint": target.name,
            "dataset": listing.name,
            "norm": plan.norm,
            "eps": plan.eps,
            "checks": checks,
        },
    )
