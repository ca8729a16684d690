"""What is made of a finished study: table and figures of its trials, and the best settings against the default ones."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.figures import GREY, PALETTE, interval_bar_figure, legend_below, new_figure, save_figure, styled
from utils.files import atomic_write_text
from utils.search.study import import_optuna
from utils.tables import csv_table, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def finished_trials(study: Any) -> list[Any]:
    """The completed and pruned trials in the order of their numbers."""
    trials = study.get_trials(deepcopy=False)
    return sorted((t for t in trials if t.state.name in ("COMPLETE", "PRUNED")), key=lambda trial: trial.number)


def trial_rows(study: Any) -> list[dict[str, Any]]:
    """One row per finished trial; the value of a pruned one is the best that it had reached."""
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


def reached(trial: Any) -> float | None:
    """Validation AUC of a trial, None if it failed before its first epoch."""
    return trial.value if trial.value is not None else max(trial.intermediate_values.values(), default=None)


def write_trials(study: Any, names: Sequence[str], folder: Path) -> None:
    """Write trials.csv, history.pdf/.png and, where it can be told, importance.csv/.pdf/.png."""
    keys = ("trial", "state", "valid_auc", "epochs", "seconds", *names, "error")
    atomic_write_text(folder / "trials.csv", csv_table(trial_rows(study), [(key, key) for key in keys]))
    save_figure(history_figure(study), folder / "history")
    shares = importance(study)
    if not shares:
        print("importance is left out: it takes several completed trials of different values", file=sys.stderr)
        return
    table = [{"setting": name, "importance": share} for name, share in shares.items()]
    columns = [("setting", "setting"), ("importance", "importance")]
    atomic_write_text(folder / "importance.csv", csv_table(table, columns))
    figure = interval_bar_figure(list(shares), list(shares.values()), x_label="Share of the variance of validation AUC")
    save_figure(figure, folder / "importance")


def importance(study: Any) -> dict[str, float]:
    """Share of each setting in the variance of the completed trials, largest first; {} if they are too few.

    Hutter et al., "An efficient approach for assessing hyperparameter importance" (fANOVA), ICML 2014. Settings that
    depend on others are judged on the trials that have them, and their shares scaled to all others' afterwards.
    """
    optuna = import_optuna()
    complete = [trial for trial in finished_trials(study) if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in complete}) < 4:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    everywhere = set.intersection(*(set(trial.params) for trial in complete))
    shares = dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    for name in sorted({name for trial in complete for name in trial.params} - everywhere):
        having = [trial for trial in complete if name in trial.params]
        if len({trial.value for trial in having}) >= 4:
            part = optuna.importance.get_param_importances(study, evaluator=evaluator, params=[*everywhere, name])
            shares[name] = part.get(name, 0.0)
    total = sum(shares.values())
    return dict(sorted(((k, v / total) for k, v in shares.items()), key=lambda item: -item[1])) if total else {}


@styled
def history_figure(study: Any) -> Figure:
    """Validation AUC of every trial by its number, the best so far, and the default settings as a line."""
    from matplotlib.ticker import MaxNLocator

    trials = [(trial, value) for trial in finished_trials(study) if (value := reached(trial)) is not None]
    figure, (axes,) = new_figure(6.6, 3.6)
    for state, marker, colour in (("COMPLETE", "o", PALETTE[0]), ("PRUNED", "X", PALETTE[4])):
        points = [(trial.number, value) for trial, value in trials if trial.state.name == state]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                linestyle="none",
                marker=marker,
                color=colour,
                label=state.lower(),
                markersize=7,
            )
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
    """Mean and standard deviation over the seeds, per setting and data set.

    Args:
        results: one per run: ``setting``, ``seed`` and ``figures``, a list of ``{"dataset", "valid_auc", "test_auc",
            "test_acc"}``.
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


def write_confirmation(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write confirmation.csv, .md and .tex."""
    caption = "Best and default settings, retrained with seeds that the search did not use; mean and deviation."
    write_table(rows, CONFIRMATION_COLUMNS, folder / "confirmation", caption)
