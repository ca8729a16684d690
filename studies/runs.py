"""Training runs and evaluations that a study resumes: reused only while everything they depend on is unchanged."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.listing.records import LABEL_NAMES
from datasets.listing.spec import Listing, open_records
from utils.errors import UserError
from utils.files import read_json, write_json

PLAN = "plan.json"


def digests(files: Sequence[Path], listings: Sequence[Listing]) -> dict[str, Any]:
    """Identify the code, the files and the images that a result depends on."""
    from utils.files import file_digest
    from utils.scoring.cache import listing_digest
    from utils.source import code_digest

    images = [[listing.name, listing.split, listing_digest(listing)] for listing in listings]
    return {
        "code": code_digest("train.py", "evaluate.py", "models/**/*.py"),
        "files": {str(file): file_digest(file) for file in files},
        "images": images,
    }


def initial_files(flags: Mapping[str, Any], run: str = "") -> dict[str, str]:
    """Return the files that train.py learns from, by their flags; ``{run}`` in a path becomes ``run``."""
    embedding = str(dict(flags["model_args"]).get("features", "")).partition("embedding:")[2]
    files = {
        "--weights": None if flags["weights"] == "imagenet" else flags["weights"],
        "--teacher": flags["teacher"],
        "--model-args features=embedding:FILE": embedding if Path(embedding.replace("{run}", run)).exists() else None,
    }
    return {flag: file.replace("{run}", run) for flag, file in files.items() if file}


def seen_sources(file: str) -> list[set[str]]:
    """Return the names of the data sets whose reals and whose fakes a checkpoint has seen; none for other weights."""
    from utils.checkpoint_files import check_checkpoint_file
    from utils.checkpoints.weights import read_tensors

    content = read_tensors(check_checkpoint_file(file) if Path(file).is_dir() else file)
    entries = content.get("data") or [] if "format_version" in content else []
    training = [entry for entry in entries if entry["split"] == "train"]
    # Old checkpoints do not say how many images of each class they have seen.
    return [{entry["dataset"] for entry in training if entry.get(f"n_{label}", 1)} for label in LABEL_NAMES]


def train_once(run: Path, flags: Sequence[str], inputs: dict[str, Any], machine: Sequence[str] = ()) -> float:
    """Run train.py in the folder ``run`` and return the minutes of training.

    A finished run is skipped and an interrupted one is resumed, as long as its ``inputs`` (see :func:`digests`) are
    unchanged; otherwise it is trained again. The ``machine`` flags do not affect the result.

    Raises:
        UserError: the folder holds a run with other flags.
    """
    import train

    plan = run / PLAN
    known = read_json(plan) if plan.exists() else {}
    if known and known["flags"] != list(flags):
        raise UserError(f"expected the flags of the run in {run}, got others; choose another --runs-dir")
    is_current = known.get("inputs") == inputs
    if is_current and "minutes" in known:
        return known["minutes"]
    if known and not is_current:
        print(f"{run}: the code or the inputs have changed since; training again", file=sys.stderr)
    wanted = {"flags": list(flags), "inputs": inputs}
    started = time.perf_counter()
    if is_current and (run / "last.pt").exists():
        train.main(["--resume", "--output-dir", str(run)])
    else:
        write_json(plan, wanted)
        train.main([*flags, *machine, "--output-dir", str(run), "--overwrite"])
    minutes = (time.perf_counter() - started) / 60
    if (run / "log.csv").exists():  # includes the epochs before an interruption
        with (run / "log.csv").open(encoding="utf-8") as file:
            minutes = sum(float(row["train_seconds"]) for row in csv.DictReader(file)) / 60
    write_json(plan, {**wanted, "minutes": minutes})
    return minutes


def evaluate_once(checkpoint: Path, specs: Sequence[str], folder: Path) -> list[dict]:
    """Evaluate a checkpoint unless its results are in ``folder``; returns the metrics rows over all generators."""
    import evaluate

    inputs = digests([checkpoint], [open_records(spec) for spec in specs])
    plan, wanted = folder / PLAN, {"specs": list(specs), "inputs": inputs}
    if not plan.exists() or read_json(plan) != wanted:
        flags = ["--checkpoint", str(checkpoint), "--data", *specs, "--output-dir", str(folder), "--n-boot", "0"]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate.main(flags)
        write_json(plan, wanted)
    return [row for row in read_json(folder / "metrics.json") if row["generator"] == "all"]
