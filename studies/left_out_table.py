"""The table of sources left out in turn: a function of the scores files that leave_source_out.py writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.listing.records import LABEL_NAMES
from models.operating_point import OperatingPoint
from utils.errors import UserError
from utils.evaluation.left_out import LEFT_OUT
from utils.evaluation.operating_point import fit_operating_point
from utils.evaluation.scored_sets import ScoredSet, read_evaluations
from utils.files import write_json
from utils.metrics.binary import wilson
from utils.metrics.bootstrap import LEVEL
from utils.metrics.ranked import logit
from utils.metrics.source_pairs import mix_auc, pair_aucs
from utils.scoring.table import ScoreTable
from utils.tables import columns, format_value, write_table

AUCS = ("auc_fakes", "auc_reals", "auc_own")
RATES = ("real_fake", "real_unsure", "fake_fake", "fake_unsure")
COLUMNS = [
    *columns(left_out="Left out", source="Source", tier="Tier", n_real="Real", n_fake="Fake"),
    *columns(auc_fakes="AUC of its fakes", auc_reals="AUC of its reals", auc_own="AUC of both"),
    *columns(real_fake="Reals called fake", real_unsure="Reals unsure", fake_fake="Fakes called fake"),
]
CAPTION = (
    "Sources left out of training. AUC of the fakes against the reals of all other sources, of the reals against the "
    "fakes of all others, and of both against each other, with 95 % bootstrap intervals. Verdicts, with Wilson's, are "
    "those of one operating point fitted on all sources left out, as that of a release is."
)
Draws = Mapping[str, np.ndarray]  # (1 + n_boot,) each: the observed AUC and its resamples


def write_left_out(files: Sequence[Path], folder: Path, n_boot: int) -> tuple[list[dict], dict[str, dict], int]:
    """Write sources.csv, .md, .tex and .json, and print the means of each tier.

    Returns:
        The rows, one per source left out and tier; the means by tier; the number of unreadable images.
    """
    sets = read_evaluations(files)
    rows: list[dict[str, Any]] = []
    means: dict[str, dict[str, Any]] = {}
    for tier in dict.fromkeys(scored.tier for scored in sets):
        drawn: list[Draws] = []
        seen: list[float] = []
        point = fit_on_all([scored.table for scored in sets if (scored.tier, scored.info["split"]) == (tier, LEFT_OUT)])
        for number, run in enumerate(dict.fromkeys(scored.info["checkpoint"] for scored in sets)):
            own = [scored for scored in sets if scored.tier == tier and scored.info["checkpoint"] == run]
            found, figures, value = measure_run(own, point, n_boot, number)
            rows, drawn, seen = rows + found, drawn + figures, [*seen, value]
        means[tier] = {**summarise(drawn), "seen": float(np.nanmean(seen))}
        for key in RATES:
            rates = [row[key] for row in rows if row["tier"] == tier and key in row]
            means[tier][key] = float(np.mean(rates)) if rates else None
        rows.append({"left_out": "mean", "source": "all", "tier": tier, **means[tier]})
    write_json(folder / "sources.json", {"rows": rows, "means": means})
    write_table(rows, COLUMNS, folder / "sources", CAPTION)
    print((folder / "sources.md").read_text(encoding="utf-8").partition("\n\n")[2], end="")
    for tier, mean in means.items():
        text = {key: format_value(mean[key], interval=mean.get(f"{key}_ci")) for key in (*AUCS, "figure")}
        print("{}: fakes {auc_fakes}, reals {auc_reals}, own {auc_own}: {figure}".format(tier, **text))
    failed = {(scored.info["checkpoint"], item["path"]) for scored in sets for item in scored.info["unreadable"]}
    return rows, means, len(failed)


def fit_on_all(tables: Sequence[ScoreTable]) -> OperatingPoint | None:
    """Fit an operating point on the scores of all sources left out; None if they are of one class."""
    labels = {label for table in tables for label in table.label.tolist()}
    return fit_operating_point([on_one_scale(table) for table in tables]) if len(labels) == 2 else None


def on_one_scale(table: ScoreTable) -> ScoreTable:
    """Take logits from p_fake, which each run has calibrated: the logits of different runs differ in scale."""
    return replace(table, logit=logit(table.p_fake))


def measure_run(
    sets: Sequence[ScoredSet], point: OperatingPoint | None, n_boot: int, seed: int
) -> tuple[list[dict], list[Draws], float]:
    """Measure what one run left out, with the verdicts of ``point``.

    Returns:
        One row per source left out, the draws of its AUCs, and the AUC over the validation images of the others.

    Raises:
        UserError: the scores of what was left out or of the other sources are not among the files.
    """
    parts: dict[str, dict[str, list[ScoreTable]]] = {LEFT_OUT: {}, "valid": {}}
    for scored in sets:
        if scored.info["split"] not in parts or "left_out" not in scored.info:
            raise UserError(f"expected scores written by leave_source_out.py, got those of {scored.name}")
        parts[scored.info["split"]].setdefault(scored.info["dataset"], []).append(scored.table)
    if not all(parts.values()):
        raise UserError(
            f"expected both files of each run, *__left-out.csv.gz and *__valid.csv.gz, got one of {sets[0].name}"
        )
    left_out = {name: ScoreTable.join(tables) for name, tables in parts[LEFT_OUT].items()}
    kept = {name: ScoreTable.join(tables) for name, tables in parts["valid"].items()}
    names = list(dict.fromkeys([*left_out, *kept]))
    # A source may have one class left out and the other not: its images form one source all the same.
    whole = [ScoreTable.join([part[name] for part in (left_out, kept) if name in part]) for name in names]
    sources = [(table.label, table.p_fake) for table in whole]
    aucs = pair_aucs(sources)
    if n_boot:
        aucs = np.concatenate([aucs, pair_aucs(sources, n_boot, 1000 * seed)])
    rows, draws = [], []
    for number, (name, table) in enumerate(left_out.items()):
        draws.append(source_draws(aucs, number, table))
        identity = {"left_out": sets[0].info["left_out"], "source": name, "tier": sets[0].tier}
        rows.append({**identity, **with_intervals(draws[-1]), **verdicts(table, point)})
    seen = mix_auc(pair_aucs([(table.label, table.p_fake) for table in kept.values()]))[0]
    return rows, draws, float(seen)


def source_draws(aucs: np.ndarray, number: int, table: ScoreTable) -> Draws:
    """Return the AUCs of the source with this number, of whose images ``table`` was left out, where they exist."""
    has_real, has_fake = (bool(np.any(table.label == label)) for label in (0, 1))
    others = np.arange(aucs.shape[-1]) != number
    pairs = {
        "auc_fakes": aucs[:, number, others] if has_fake else aucs[:, 0, :0],
        "auc_reals": aucs[:, others, number] if has_real else aucs[:, 0, :0],
        "auc_own": aucs[:, number, [number]] if has_real and has_fake else aucs[:, 0, :0],
    }
    known = {key: values[:, ~np.isnan(values[0])] for key, values in pairs.items()}
    return {key: values.mean(axis=1) for key, values in known.items() if values.shape[1]}


def summarise(draws: Sequence[Draws]) -> dict[str, Any]:
    """Return the mean of each AUC over the sources, and the ``figure`` to choose a recipe by, with intervals.

    The figure is that of :func:`utils.metrics.source_pairs.mix_auc`: half of it are pairs of one source, the other
    half pairs of two, where both exist. The intervals take the runs as independent of each other.
    """
    known = {key: [own[key] for own in draws if key in own] for key in AUCS}
    means = {key: np.mean(values, axis=0) for key, values in known.items() if values}
    across = [values for key, values in means.items() if key != "auc_own"]
    halves = [np.mean(across, axis=0), *([means["auc_own"]] if "auc_own" in means else [])]
    return {**dict.fromkeys(AUCS), **with_intervals({**means, "figure": np.mean(halves, axis=0)})}


def with_intervals(draws: Draws) -> dict[str, Any]:
    """Return each observed figure and, where there are resamples, its percentile interval under ``<key>_ci``."""
    found: dict[str, Any] = {}
    for key, values in draws.items():
        found[key] = float(values[0])
        if len(values) > 1:
            low, high = np.percentile(values[1:], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
            found[f"{key}_ci"] = [float(min(low, values[0])), float(max(high, values[0]))]
    return found


def verdicts(table: ScoreTable, point: OperatingPoint | None) -> dict[str, Any]:
    """Return the numbers of reals and fakes, and how often their verdict is fake or unsure."""
    row: dict[str, Any] = {}
    said = np.array(point.verdicts(point.p_fake(on_one_scale(table).logit)) if point else [""] * len(table))
    for number, label in enumerate(LABEL_NAMES):
        own = said[table.label == number]
        row[f"n_{label}"] = len(own)
        for verdict in ("fake", "unsure") if point and len(own) else ():
            times = int(np.sum(own == verdict))
            row |= {f"{label}_{verdict}": times / len(own), f"{label}_{verdict}_ci": wilson(times, len(own))}
    return row
