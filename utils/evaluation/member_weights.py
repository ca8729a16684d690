"""Fit the weights of an ensemble's members: on validation images, or on sources that no member was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from datasets.listing.records import Listing, Record, relative_path
from datasets.loading import ImageDataset, make_loader
from datasets.perturbations import CLEAN
from datasets.transforms import EvalTransform
from models.detector import Detector
from models.ensemble import Ensemble
from models.operating_point import OperatingPoint, sigmoid
from utils.errors import UserError
from utils.evaluation.left_out import count_images, rescaled, save_fitted
from utils.evaluation.operating_point import image_weights
from utils.evaluation.scored_sets import is_among
from utils.metrics.source_pairs import mix_auc, pair_aucs
from utils.runtime import autocast
from utils.scoring.scorer import Scores, Settings, score_table
from utils.scoring.table import ScoreTable, read_scores, read_sidecar, write_scores, write_sidecar


def fit_on_images(
    ensemble: Ensemble, method: str, valid: Sequence[Listing], settings: Settings, device: torch.device
) -> Callable[[Detector], list[Scores]]:
    """Fit the weights on the validation images, and return what scores these without another pass."""
    found = [member_scores(ensemble, listing, settings, device) for listing in valid]
    firsts = [Scores(scores.indices, scores.logits[:, 0], scores.unreadable) for scores in found]
    rows = zip(valid, firsts, strict=True)
    table = ScoreTable.join([score_table(item.records, one, OperatingPoint(), item.name) for item, one in rows])
    logits = np.concatenate([scores.logits for scores in found])
    join = fit(ensemble, logits, table.label, method, image_weights(table), table.dataset)
    return lambda _: [Scores(s.indices, join(s.logits), s.unreadable) for s in found]


def fit_on_left_out(
    ensemble: Ensemble, parts: Sequence[MemberScores], target: Path, description: dict[str, Any]
) -> list[dict[str, Any]]:
    """Fit weights and operating point on scores of runs that left sources out; write checkpoint and scores.

    Sources left out and sources trained on each have half of the influence on the weights, since users bring pictures
    of both kinds. The operating point is fitted on sources left out only.

    Args:
        parts: what the members say, see :func:`read_members` and :func:`add_specialists`.
        target: the checkpoint to write; the scores of the ensemble go into ``scores/`` beside it.
        description: the entries of the checkpoint without weights and operating point.

    Returns:
        The verdicts, one row per source and class.

    Raises:
        UserError: the left-out sources have one class only, or there are no scores of other sources.
    """
    table, logits = select(parts, left_out=True)
    if len(set(table.label.tolist())) < 2:
        found = "fake" if table.label[0] else "real"
        raise UserError(f"expected left-out sources with reals and with fakes, got only {found} images; leave out more")
    seen, seen_logits = select(parts, left_out=False)
    if not len(seen):
        raise UserError(
            "expected both files of each run, *__left-out.csv.gz and *__valid.csv.gz, in each folder of --scores, "
            "found no image of a source that was trained on; copy the files *__valid.csv.gz there too"
        )
    counts = [image_weights(half) / len(half) * (len(table) + len(seen)) / 2 for half in (table, seen)]
    labels = np.concatenate([table.label, seen.label])
    join = fit(ensemble, np.concatenate([logits, seen_logits]), labels, "stacked", np.concatenate(counts))
    table = replace(table, logit=join(logits))
    settings = {**description["train_args"], "calibrated_on": count_images([table])}
    checkpoint = {**description, "train_args": settings, "state_dict": ensemble.state_dict()}
    point, rows = save_fitted(target, checkpoint, [table], "temperature")
    for part in parts:
        file, own = target.parent / "scores" / part.file, join(part.logits)
        write_scores(file, replace(part.table, logit=own, p_fake=point.p_fake(own)))
        own_point = {
            "calibration": point.calibration,
            "thresholds": dict(point.thresholds),
            "threshold": point.threshold(),
        }
        write_sidecar(file, **{**part.info, **own_point, "model": ensemble.name})
    return rows


def select(parts: Sequence[MemberScores], left_out: bool) -> tuple[ScoreTable, np.ndarray]:
    """Return the images of sources that were left out, or of those that were not, and the members' logits (N, M)."""
    rows = [part.left_out() == left_out for part in parts]
    table = ScoreTable.join([part.table.select(own) for part, own in zip(parts, rows, strict=True)])
    return table, np.concatenate([part.logits[own] for part, own in zip(parts, rows, strict=True)])


def fit(
    ensemble: Ensemble,
    logits: np.ndarray,
    labels: np.ndarray,
    method: str,
    counts: np.ndarray,
    sources: Sequence[str] = (),
) -> Callable[[np.ndarray], np.ndarray]:
    """Set the weights of an ensemble as :func:`fit_weights`; returns what joins logits ``(N, M)`` to ``(N,)``."""
    weights, bias = fit_weights(logits, labels, method, counts, sources)
    ensemble.weights.copy_(torch.tensor(weights, dtype=torch.float64))
    ensemble.bias.fill_(bias)
    return lambda columns: columns @ np.array(weights) + bias


def fit_weights(
    logits: np.ndarray, labels: np.ndarray, method: str, counts: np.ndarray | None = None, sources: Sequence[str] = ()
) -> tuple[list[float], float]:
    """Return weights (M,) and bias for logits (N, M): by validation AUC (weighted) or logistic regression (stacked).

    Each image enters the regression as often as ``counts`` ``(N,)`` says, by default once. The AUC is that of training
    (`mix_auc`) on the ``sources`` of the images, by default a single one.
    """
    if method == "stacked":
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(logits, labels, counts)
        return fitted.coef_[0].tolist(), float(fitted.intercept_[0])
    names = np.array(sources or [""] * len(labels))
    own = [names == name for name in dict.fromkeys(names.tolist())]
    aucs = [float(mix_auc(pair_aucs([(labels[at], sigmoid(column[at])) for at in own]))[0]) for column in logits.T]
    merits = [max(0.01, value - 0.5) for value in aucs]  # members at chance still make an ensemble
    return [merit / sum(merits) for merit in merits], 0.0


def member_scores(
    ensemble: Ensemble, listing: Listing, settings: Settings, device: torch.device, members: slice = slice(None)
) -> Scores:
    """Return what some members, by default all, add up (N, M) for the readable images of a listing."""
    dataset = ImageDataset(listing.records, EvalTransform(ensemble.geometry))
    indices, logits, unreadable = [], [np.empty((0, len(ensemble.members[members])))], []
    loader = make_loader(dataset, settings.batch_size, workers=settings.workers)
    for batch in tqdm(loader, f"{listing.name} {listing.split}", disable=None, leave=False):
        unreadable += [(item.index, item.reason) for item in batch.unreadable]
        if len(batch.images):
            indices += batch.indices.tolist()
            with torch.inference_mode(), autocast(device, settings.dtype):
                logits.append(ensemble.evidence(batch.images.to(device), members).cpu().numpy())
    return Scores(np.array(indices, np.int64), np.concatenate(logits), unreadable)


@dataclass
class MemberScores:
    """The images of a scores file that all members have scored.

    ``logits`` ``(N, M)`` are what the members add up: their logits, each as calibrated by its run, or the evidence of a
    specialist. ``info`` is the JSON file of the first
    member, with the training sources of all members under ``trained_on``.
    """

    file: str
    info: dict[str, Any]
    table: ScoreTable
    logits: np.ndarray

    def images(self) -> list[tuple[str, str]]:
        """Return the data set and the path of each image."""
        return list(zip(self.table.dataset, self.table.path, strict=True))

    def left_out(self) -> np.ndarray:
        """Return which images are of a source that no member was trained on, ``(N,)``."""
        seen = {name for name in set(self.table.dataset) if is_among(name, self.info["trained_on"])}
        return np.array([name not in seen for name in self.table.dataset], bool)


def read_members(folders: Sequence[str]) -> list[MemberScores]:
    """Read the scores of the members, one folder each, in files of the same names.

    Raises:
        UserError: a file has scores of test images or does not say how its run was calibrated, or the members have no
            image of a source left out in common.
    """
    names = [{file.name for file in Path(folder).glob("*.csv.gz")} for folder in folders]
    parts = []
    for name in sorted(set.intersection(*names)):
        files = [Path(folder) / name for folder in folders]
        tables, infos = [read_scores(file) for file in files], [read_sidecar(file) for file in files]
        for file, info in zip(files, infos, strict=True):
            if not (info.get("calibration") and info.get("trained_on")):
                raise UserError(
                    f"expected scores of a run with a calibration, got {file}; write them with studies.leave_source_out"
                )
            if info.get("split") == "test":
                raise UserError(f"expected no scores of test images in --scores, got {file}; remove it")
        rows = [
            {key: row for row, key in enumerate(zip(table.dataset, table.path, table.tier, strict=True))}
            for table in tables
        ]
        common = [key for key in rows[0] if all(key in of_member for of_member in rows)]
        if not common:
            continue
        columns = [
            rescaled(table.logit[[of_member[key] for key in common]], member.get("calibration"), None)
            for table, of_member, member in zip(tables, rows, infos, strict=True)
        ]
        info = {**infos[0], "trained_on": sorted({source for info in infos for source in info["trained_on"]})}
        parts.append(MemberScores(name, info, tables[0].take([rows[0][key] for key in common]), np.stack(columns, 1)))
    if not any(part.left_out().any() for part in parts):
        raise UserError(
            f"expected scores of the same left-out images by all members, got none in {', '.join(folders)}; run "
            "studies.leave_source_out with the same --data and --groups for each member"
        )
    return parts


def of_scores(listings: Sequence[Listing], parts: Sequence[MemberScores]) -> list[Listing]:
    """Return the images of some data sets that are among the scores.

    Raises:
        UserError: an image of the scores is in no data set, or was scored degraded.
    """
    if degraded := {tier for part in parts for tier in part.table.tier} - {CLEAN}:
        raise UserError(f"expected scores of the tier clean with --specialists, got {', '.join(sorted(degraded))}")
    missing = {image for part in parts for image in part.images()}
    found = []
    for listing in listings:
        records = [record for record in listing.records if image_key(listing, record) in missing]
        missing -= {image_key(listing, record) for record in records}
        found.append(replace(listing, records=records))
    if missing:
        name, path = min(missing)
        raise UserError(
            f"expected --data with all images of the scores, {len(missing):,} of them are missing, such as {path} of "
            f"{name}; name the data sets that were scored"
        )
    return found


def image_key(listing: Listing, record: Record) -> tuple[str, str]:
    """Return the name of the data set and the path of an image in it, as scores files have them."""
    return listing.name, relative_path(record.path, listing.root)


def add_specialists(
    parts: Sequence[MemberScores],
    ensemble: Ensemble,
    trained_on: set[str],
    listings: Sequence[Listing],
    settings: Settings,
    device: torch.device,
) -> None:
    """Append what the specialists, the last members of the ensemble, say about the images of all parts.

    They need no runs that leave sources out if they were trained on none of these sources.

    Args:
        trained_on: the sources that the specialists were trained on.
        listings: the images, see :func:`of_scores`.

    Raises:
        UserError: an image is unreadable.
    """
    specialists = slice(parts[0].logits.shape[1], None)
    found: dict[tuple[str, str], np.ndarray] = {}
    for listing in listings:
        scores = member_scores(ensemble, listing, settings, device, specialists)
        if scores.unreadable:
            index, reason = scores.unreadable[0]
            raise UserError(f"expected readable images of the scores, got {listing.records[index].path}: {reason}")
        keys = [image_key(listing, listing.records[index]) for index in scores.indices]
        found.update(zip(keys, scores.logits, strict=True))
    for part in parts:
        part.logits = np.concatenate([part.logits, np.stack([found[image] for image in part.images()])], axis=1)
        part.info["trained_on"] = sorted(trained_on.union(part.info["trained_on"]))
