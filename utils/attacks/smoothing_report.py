"""Certified accuracy of detectors on a small sample: the table and the figure of ``attack.py --smoothing``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datasets.spec import Listing
from utils.attacks.gradient import attackable
from utils.attacks.report import wilson
from utils.attacks.runs import Target, batches_of
from utils.attacks.smoothing import DRAWS, FAILURE, certify
from utils.files import read_json, write_json
from utils.tables import write_table

RADII = (0.0, 0.5, 1.0, 1.5)  # in sigma; DRAWS draws cannot certify more than 1.9 sigma


def write_certificates(
    targets: Sequence[Target], listing: Listing, sigma: float, limit: int, seed: int, device: torch.device, folder: Path
) -> None:
    """Certify evenly spaced images of a listing with every detector and write the table ``smoothing``.

    A finished file in ``DIR/smoothing`` is taken as it is if its settings are the same.
    """
    records = listing.records[:: max(1, len(listing.records) // limit)][:limit]
    for target in targets:
        file = folder / "smoothing" / f"{target.name}__{listing.name}__{listing.split}__{sigma:g}.json"
        settings = {
            "digest": target.candidate.digest,
            "fingerprint": listing.fingerprint,
            "images": len(records),
            "sigma": sigma,
            "seed": seed,
            "draws": DRAWS,
            "failure": FAILURE,
        }
        if file.exists() and read_json(file).get("settings") == settings:
            continue
        images = certify_records(target, Listing(listing.name, listing.split, records, "", "", ()), sigma, seed, device)
        write_json(file, {"settings": settings, "checkpoint": target.name, "dataset": listing.name, "images": images})
    rows = [certified_row(read_json(file)) for file in sorted((folder / "smoothing").glob("*.json"))]
    columns = [("checkpoint", "Checkpoint"), ("dataset", "Data"), ("sigma", "Noise"), ("n", "n")]
    columns += [(f"r{number}", f"at {radius:g} sigma") for number, radius in enumerate(RADII)]
    caption = (
        f"Certified accuracy under L2 changes of a radius in units of the noise; {DRAWS} draws, failure {FAILURE}."
    )
    write_table(rows, columns, folder / "smoothing", caption)


def certify_records(
    target: Target, listing: Listing, sigma: float, seed: int, device: torch.device
) -> list[dict[str, Any]]:
    """Certify every image of a listing: ``{path, label, certified, radius}``."""
    generator = torch.Generator(device).manual_seed(seed)
    results = []
    with attackable(target.candidate.detector):
        for batch in tqdm(
            batches_of(target, listing, 1, device), f"smoothing {target.name}", disable=None, leave=False
        ):
            for image, label, index in zip(batch.images, batch.labels.tolist(), batch.indices.tolist(), strict=True):
                found = certify(target.boundary, image, sigma, generator)
                results.append(
                    {
                        "path": listing.records[index].path,
                        "label": int(label),
                        "certified": found.label,
                        "radius": found.radius,
                    }
                )
    return results


def certified_row(entry: dict[str, Any]) -> dict[str, Any]:
    """Certified accuracy at each of RADII with its interval."""
    sigma, images = entry["settings"]["sigma"], entry["images"]
    row = {"checkpoint": entry["checkpoint"], "dataset": entry["dataset"], "sigma": sigma, "n": len(images)}
    for number, radius in enumerate(RADII):
        right = sum(i["certified"] == i["label"] and i["radius"] >= radius * sigma for i in images)
        row[f"r{number}"], row[f"r{number}_ci"] = right / len(images), wilson(right, len(images))
    return row
