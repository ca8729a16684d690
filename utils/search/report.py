"""Tables and figures of a finished study: its trials, and the best settings against the default ones."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.figures import GREY, PALETTE, interval_bar_figure, legend_below, new_figure, save_figure, styled
from utils.files import atomic_write_text, write_json
from utils.search.study import import_optuna
from utils.tables import csv_table, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna import Study
    from optuna.trial import FrozenTrial

CONFIRMATION_COLUMNS = [
    ("setting", "Setting"),
    ("seeds", "Seeds"),
    ("dataset", "Data"),
    ("valid_auc", "Valid AUC"),
    ("valid_auc_sd", "sd"),
    ("test_auc", "Test AUC"),
    ("test_auc_sd", "sd"),
    ("test_acc", "Test acc"),
    ("test_acc_sd", "sd"),
]


def finished_trials(study: Study) -> list[FrozenTrial]:
    """Return the completed and pruned trials in the order of their numbers."""
    trials = study.get_trials(deepcopy=False)
    return sorted((t for t in trials if t.state.name in ("COMPLETE", "PRUNED")), key=lambda trial: trial.number)


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row per finished trial; the value of a pruned trial is the best one that it reached."""
    return [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "valid_auc": reached(trial),
            "epochs": max(trial.intermediate_values, default=None),
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "error": trial.user_attrs.get("error"),
            **trial.params,
        }
        for trial in finished_trials(study)
    ]


def reached(trial: FrozenTrial) -> float | None:
    """Return the validation AUC of a trial, None if it failed in its first epoch."""
    return trial.value if trial.value is not None else max(trial.intermediate_values.values(), default=None)


def write_trials(study: Study, names: Sequence[str], folder: Path) -> None:
    """Write trials.csv, history.pdf and .png, and importance.csv, .pdf and .png if there are enough trials."""
    keys = ("trial", "state", "valid_auc", "epochs", "seconds", *names, "error")
    atomic_write_text(folder / "trials.csv", csv_table(trial_rows(study), [(key, key) for key in keys]))
    save_figure(history_figure(study), folder / "history")
    shares = importance(study)
    if not shares:
        print("no importance figure: it needs at least four completed trials of different values", file=sys.stderr)
        return
    table = [{"setting": name, "importance": share} for name, share in shares.items()]
    columns = [("setting", "setting"), ("importance", "importance")]
    atomic_write_text(folder / "importance.csv", csv_table(table, columns))
    figure = interval_bar_figure(list(shares), list(shares.values()), x_label="Share of the variance of validation AUC")
    save_figure(figure, folder / "importance")


def importance(study: Study) -> dict[str, float]:
    """Return the share of each setting in the variance of the completed trials, largest first; {} if there are too few.

    Hutter et al., "An efficient approach for assessing hyperparameter importance" (fANOVA), ICML 2014.
    """
    optuna = import_optuna()
    complete = [trial for trial in finished_trials(study) if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in complete}) < 4:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(shares) if sum(shares.values()) else {}


@styled
def history_figure(study: Study) -> Figure:
    """Plot the validation AUC of each trial, the best so far, and the default settings as a line."""
    from matplotlib.ticker import MaxNLocator

    trials = [(trial, value) for trial in finished_trials(study) if (value := reached(trial)) is not None]
    figure, (axes,) = new_figure(6.6, 3.6)
    for state, marker, colour in (("COMPLETE", "o", PALETTE[0]), ("PRUNED", "X", PALETTE[4])):
        points = [(trial.number, value) for trial, value in trials if trial.state.name == state]
        if points:
            style = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 7}
            axes.plot(*zip(*points, strict=True), label=state.lower(), **style)
    complete = [(trial.number, value) for trial, value in trials if trial.state.name == "COMPLETE"]
    if complete:
        numbers, values = zip(*complete, strict=True)
        axes.step(numbers, np.maximum.accumulate(values), where="post", color=PALETTE[1], label="best so far")
    if trials and trials[0][0].number == 0:
        axes.axhline(trials[0][1], color=GREY, linewidth=1, linestyle=":", label="default settings")
    axes.set(xlabel="Trial", ylabel="Validation AUC")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes, n_columns=4)
    return figure


def confirmation_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean and standard deviation over the seeds, per setting and dataset.

    Args:
        results: one per run: ``setting``, ``seed`` and ``figures``, see :func:`figures_of`.
    """
    rows = []
    keys = dict.fromkeys((run["setting"], entry["dataset"]) for run in results for entry in run["figures"])
    for setting, dataset in sorted(keys, key=lambda key: (key[1], key[0])):
        entries = [e for run in results if run["setting"] == setting for e in run["figures"] if e["dataset"] == dataset]
        row: dict[str, Any] = {"setting": setting, "dataset": dataset, "seeds": len(entries)}
        for key in ("valid_auc", "test_auc", "test_acc"):
            values = [entry[key] for entry in entries if entry.get(key) is not None]
            row[key] = statistics.fmean(values) if values else None
            row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def figures_of(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the validation and test figures of a run: ``dataset``, ``valid_auc``, ``test_auc``, ``test_acc``."""
    tests = {row["dataset"]: row for row in checkpoint["metrics"]["test"]}
    return [
        {
            "dataset": row["dataset"],
            "valid_auc": row["auc"],
            "test_auc": tests.get(row["dataset"], {}).get("auc"),
            "test_acc": tests.get(row["dataset"], {}).get("acc"),
        }
        for row in checkpoint["metrics"]["valid"]
    ]


def write_report(
    study: Study,
    best: FrozenTrial,
    names: Sequence[str],
    results: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    folder: Path,
) -> list[dict[str, Any]]:
    """Write the tables and figures of a study with ``facts`` about it, and print the confirmation; returns its rows."""
    write_trials(study, names, folder)
    rows = confirmation_rows(results)
    if rows:
        caption = "Best and default settings, retrained with seeds that the search did not use; mean and deviation."
        write_table(rows, CONFIRMATION_COLUMNS, folder / "confirmation", caption)
        print((folder / "confirmation.md").read_text(encoding="utf-8").partition("\n\n")[2], end="")
    found = {"n_trials": len(finished_trials(study)), "best_trial": best.number, "best": best.params}
    write_json(folder / "tune.json", {**facts, **found, "best_valid_auc": best.value, "confirmation": rows})
    return rows
