"""Attack one data set: craft with one detector, score with one or several, and lay out the cells."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.listing.spec import Listing
from datasets.loading import Batch, ImageDataset, make_loader
from datasets.transforms import EvalTransform
from models.ensemble import member_view
from models.operating_point import OperatingPoint
from utils.attacks.cells import Cell
from utils.attacks.export import recompressed, rounded
from utils.attacks.gradient import DecisionLogit, attackable, change_size, check_change
from utils.attacks.registry import run_attack
from utils.attacks.threat_model import DIRECTIONS, NORMS, Plan, size_name, unusual_settings
from utils.errors import UserError
from utils.evaluation.evaluate import Candidate
from utils.runtime import versions
from utils.scoring.cache import labelled_digest
from utils.scoring.scorer import Scores, score_table
from utils.source import code_digest

VARIANTS = ("adversarial", "rounded", "jpeg")  # of an attacked image, as tensors and as files
CELL_CODE = ("models/**/*.py", "utils/attacks/methods/*.py", "utils/attacks/runs.py", "utils/attacks/smoothing.py")
Export = Callable[[Tensor, Tensor], None]  # receives the indices and the adversarial images of a batch


@dataclass(frozen=True)
class Target:
    """A detector under attack, and its logit minus the threshold that the attack has to cross."""

    candidate: Candidate
    boundary: DecisionLogit
    device: torch.device

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def arithmetic(self) -> str:
        """Kind of device and precision, such as ``cpu float32``."""
        return f"{self.device.type} {str(self.boundary.dtype).removeprefix('torch.')}"

    @property
    def point(self) -> OperatingPoint:
        return self.candidate.detector.operating_point


def make_target(candidate: Candidate, device: torch.device, dtype: torch.dtype) -> Target:
    """Prepare a detector for attacks; its boundary is the balanced threshold."""
    detector = candidate.detector.to(device).eval()
    return Target(candidate, DecisionLogit(detector, boundary_logit(detector.operating_point), dtype), device)


def boundary_logit(point: OperatingPoint) -> float:
    """Find the smallest logit whose p_fake reaches the balanced threshold, by bisection."""
    low, high = -1e4, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        if point.p_fake(np.array([middle]))[0] >= point.threshold():
            high = middle
        else:
            low = middle
    return high


def evenly_spaced(listing: Listing, n: int) -> Listing:
    """At most ``n`` records from the whole length of a listing, which is sorted, so that all classes occur."""
    chosen = np.linspace(0, len(listing.records) - 1, min(n, len(listing.records))).round().astype(int)
    return replace(listing, records=[listing.records[index] for index in chosen])


def batches_of(
    target: Target, listing: Listing, batch_size: int, unreadable: list[dict[str, str]] | None = None
) -> Iterator[Batch]:
    """Yield the readable images as the detector sees them, on its device; ``unreadable`` collects the others."""
    transform = EvalTransform(target.candidate.detector.geometry)
    for batch in make_loader(ImageDataset(listing.records, transform), batch_size):
        if unreadable is not None:
            unreadable += [{"path": listing.records[i.index].path, "reason": i.reason} for i in batch.unreadable]
        if len(batch.images):
            batch.images = batch.images.to(target.device, memory_format=torch.channels_last)
            batch.labels = batch.labels.to(target.device)
            yield batch


@dataclass(frozen=True)
class CleanScores:
    """The scores before any attack: positions ``(N,)`` of the readable images, and p_fake ``(N,)`` by target."""

    indices: np.ndarray
    p_fake: dict[str, np.ndarray]
    unreadable: list[dict[str, str]]


@dataclass(frozen=True)
class Trial:
    """The detector that crafts attacks, the targets that they are tried on, and the images.

    A target with another geometry sees its own view, cropped or resized out of the input of the source, as a member of
    an ensemble does; its clean accuracy is measured on the same view.
    """

    source: Target
    targets: Sequence[Target]
    listing: Listing
    direction: str
    batch_size: int

    @cached_property
    def clean(self) -> CleanScores:
        """Score the images once for all attacks and sizes. Raises UserError: no image can be read."""
        parts: dict[str, list[np.ndarray]] = defaultdict(list)
        unreadable: list[dict[str, str]] = []
        for batch in batches_of(self.source, self.listing, self.batch_size, unreadable):
            parts[""].append(batch.indices.numpy())
            for target in self.targets:
                parts[target.name].append(self._logits(target, batch.images))
        if not parts:
            n = len(self.listing.records)
            raise UserError(f"expected images in {self.listing.name}, but none of {n} could be read")
        p_fake = {target.name: target.point.p_fake(np.concatenate(parts[target.name])) for target in self.targets}
        return CleanScores(np.concatenate(parts[""]), p_fake, unreadable)

    def run(self, plan: Plan, export: Export | None = None) -> list[Cell]:
        """Attack the images; returns one cell per target, without the facts that only the caller knows."""
        parts: dict[str | tuple[str, str], list[np.ndarray]] = defaultdict(list)
        failures: set[str] = set()
        seconds = 0.0
        title = f"{self.source.name} {self.listing.name} {plan.attack} {size_name(plan.eps)}"
        total = -(-len(self.listing.records) // self.batch_size)
        clean, batches = self.clean, batches_of(self.source, self.listing, self.batch_size)
        for batch in tqdm(batches, title, disable=None, leave=False, total=total):
            chosen = torch.isin(batch.labels, torch.tensor(DIRECTIONS[self.direction], device=batch.labels.device))
            started = time.perf_counter()
            adversarial = self._attack(plan, batch, chosen)
            seconds += time.perf_counter() - started
            failures.update(check_change(batch.images, adversarial, plan.eps, plan.norm))
            if export:
                export(batch.indices, adversarial)
            parts["attacked"].append(chosen.cpu().numpy())
            for norm in NORMS:
                parts[norm].append(change_size(adversarial - batch.images, norm).cpu().numpy())
            variants = zip(VARIANTS, (adversarial, rounded(adversarial), recompressed(adversarial)), strict=True)
            for (variant, images), target in product(variants, self.targets):
                parts[target.name, variant].append(self._logits(target, images))
        columns = {key: np.concatenate(part) for key, part in parts.items()}
        shared = {
            "seconds": seconds,
            "images_per_s": columns["attacked"].sum() / seconds if seconds else None,
            "failed": sorted(failures),
            "unreadable": clean.unreadable,
            "plan": asdict(plan),
            "direction": self.direction,
            "source": self.source.name,
            "n_images": len(self.listing.records),
            "data_fingerprint": self.listing.fingerprint,
            "dataset": self.listing.name,
            "split": self.listing.split,
        }
        return [self._cell(target, plan, columns, shared) for target in self.targets]

    def _attack(self, plan: Plan, batch: Batch, chosen: Tensor) -> Tensor:
        """Attack the chosen images of a batch, with a seed that depends on the batch; keep the others."""
        adversarial = batch.images.clone()
        if chosen.any():
            plan = replace(plan, seed=plan.seed + int(batch.indices[0]))
            with attackable(self.source.candidate.detector):
                adversarial[chosen] = run_attack(plan, self.source.boundary, batch.images[chosen], batch.labels[chosen])
        return adversarial

    @torch.no_grad()
    def _logits(self, target: Target, images: Tensor) -> np.ndarray:
        """Logits ``(N,)`` float64 of a target on images in the geometry of the source."""
        view = member_view(images, self.source.candidate.detector.geometry, target.candidate.detector.geometry)
        return (target.boundary(view) + target.boundary.threshold).double().cpu().numpy()

    def _cell(self, target: Target, plan: Plan, columns: dict[Any, np.ndarray], shared: dict[str, Any]) -> Cell:
        scores = Scores(self.clean.indices, columns[target.name, "adversarial"])
        tier = f"{plan.attack} {plan.norm} {size_name(plan.eps)}"
        table = score_table(self.listing.records, scores, target.point, self.listing.name, tier)
        extra = {name: columns[name].astype(float) for name in ("attacked", *NORMS)}
        extra["clean_p_fake"] = self.clean.p_fake[target.name]
        for variant in VARIANTS[1:]:
            extra[f"{variant}_p_fake"] = target.point.p_fake(columns[target.name, variant])
        model, threshold = target.candidate.checkpoint["model"], target.point.threshold()
        info = shared | {"checkpoint": target.name, "model": model, "threshold": threshold}
        info["digests"] = {other.name: other.candidate.digest for other in (target, self.source)}
        return Cell(table.relative_to(self.listing.root), extra, info)

    @cached_property
    def data_digest(self) -> str:
        return labelled_digest(self.listing)

    def key(self, target: Target, plan: Plan) -> str:
        """Digest of everything that decides the numbers of a cell."""
        return cell_key(
            source=self.source.candidate.digest,
            target=target.candidate.digest,
            data=self.data_digest,
            plan=asdict(plan),
            direction=self.direction,
            batch_size=self.batch_size,
            arithmetic=self.source.arithmetic,
        )

    def cell_name(self, target: Target, plan: Plan) -> str:
        """Name the files of a cell, such as ``cnn-demo__demo__test__pgd-linf-2_255``; only unusual settings follow."""
        name = f"{target.name}__{self.listing.name}__{self.listing.split}"
        name += f"__{plan.attack}-{plan.norm}-{size_name(plan.eps).replace('/', '_')}"
        name += "".join(f"-{setting.replace(' ', '')}" for setting in unusual_settings(asdict(plan)).values())
        name += "" if self.direction == "both" else f"-{self.direction}"
        return name + ("" if self.source is target else f"__from-{self.source.name}")


def cell_key(**settings: Any) -> str:
    """Digest of settings, code and library versions: together they decide the numbers of a result."""
    facts = {**settings, "code": code_digest(*CELL_CODE), "versions": versions()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
