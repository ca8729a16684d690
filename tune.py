"""Search the settings of train.py that suit a model and its data, and retrain the best ones over several seeds.

  python tune.py --model cnn --data data/140k --trials 30 --train --epochs 4
  python tune.py --model tf_efficientnet_b0 --data data/140k --train --weights imagenet --epochs 3
  python tune.py --model lightgbm --data data/140k --search rounds leaves learning_rate --trials 20
  python tune.py --model cnn --data data/140k --storage postgresql://user@host/studies --output-dir runs/tune/shared

What is searched follows from the model: learning rate, weight decay, augmentation, crop and dropout; with --weights
also the depth of freezing, the decay of the rate per layer and the rate of the head; for classical models their own
arguments and the feature banks. Flags after --train go to train.py and are not searched. The first trial has the
default settings. Trials are drawn by a tree-structured Parzen estimator, and after every epoch only the better
third of them goes on (successive halving). The value of a trial is its AUC on validation; the test split is not looked
at before the search is over.

The study is a file in --output-dir, or any database that Optuna can use. The same command, started again after it
was killed, goes on with the study; started several times at once, on one machine or many, the processes share it. The
last one to finish writes trials.csv, tune.json, confirmation.csv, .md and .tex, and the figures history and
importance, and prints the result and the command of the best settings:

  | Setting | Seeds | Data | Valid AUC |    sd | Test AUC |    sd | Test acc |    sd |
  | best    |     3 | demo |     0.990 | 0.002 |    0.987 | 0.003 |    0.940 | 0.004 |
  | default |     3 | demo |     0.982 | 0.004 |    0.980 | 0.002 |    0.929 | 0.007 |
  best python train.py --model cnn --data demo --lr 0.003011 ...
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import train
from datasets.splits import TrainingData, open_training_data
from utils.args import (
    EXIT_DONE,
    add_seed,
    check_output_dir,
    check_passed_on,
    check_weights_source,
    int_in,
    key_value,
    make_parser,
    run_script,
)
from utils.errors import UserError
from utils.model_names import check_model_name
from utils.search.space import BANKS, Space, build_space, default_values, draw, narrow_space, to_flags
from utils.search.study import DEFAULT_TRIAL, import_optuna, open_study, queue_once, run_trials

RESERVED = ("--model", "--model-args", "--data", "--output-dir", "--seed", "--resume", "--overwrite", "--list-models")
MAX_ERRORS = 3  # trials in a row that end with a complaint: then it is not the settings that are at fault


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of tune.py."""
    parser = make_parser(__doc__, "tune.py")
    parser.add_argument("--model", default="cnn", help="as for train.py (default: cnn)")
    parser.add_argument("--model-args", type=key_value, nargs="+", default=[], metavar="KEY=VALUE", help="not searched")
    parser.add_argument("--data", nargs="+", default=["demo"], metavar="SPEC", help="data sets (default: demo)")
    parser.add_argument("--trials", type=int_in(1), default=30, help="trials to finish in all (default: 30)")
    parser.add_argument("--search", nargs="+", default=[], metavar="NAME", help="only these settings (default: all)")
    parser.add_argument("--seeds", type=int_in(0, 100), default=3, help="retrainings of the best settings (default: 3)")
    parser.add_argument("--storage", metavar="URL", help="database URL (default: a SQLite file in --output-dir)")
    parser.add_argument("--name", help="of the study in the storage (default: <model>-<data>)")
    parser.add_argument("--output-dir", metavar="DIR", help="default: runs/tune/<model>-<data>")
    add_seed(parser)
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], metavar="FLAG", help="flags of train.py; last")
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Search and retrain; returns ``{"best": values, "command": line, "rows": confirmation, "exit_code": 0}``.

    While other workers still run trials of the study, ``best`` is None and the last of them reports.
    """
    args = get_args_parser().parse_args(argv)
    args.command = shlex.join(["python", "tune.py", *(sys.argv[1:] if argv is None else argv)])
    check_passed_on(args.train, train.get_args_parser(), RESERVED)
    check_model_name(args.model)
    fixed = ["--model", args.model, "--data", *args.data, *args.train]
    settings = train.get_args_parser().parse_args(fixed)
    settings.model_args = args.model_args
    check_weights_source(settings.weights)
    name = args.name or train.run_name(args.model, args.data)
    folder = check_output_dir(args.output_dir or f"runs/tune/{name}")
    data = open_training_data(args.data, settings.exclude_generator)
    space = find_space(args, settings, data)

    url = args.storage or f"sqlite:///{folder}/study.db"
    study = open_study(url, name, describe(args, space, data), args.seed)
    queue_once(study, default_values(space), DEFAULT_TRIAL)
    trainer = Trainer(fixed, dict(args.model_args), space, args.seed)
    others = run_trials(study, lambda trial: trainer.search(trial, folder / "trials"), args.trials)
    if others:
        return leave_to_others(others)
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if not complete:
        raise UserError("expected at least one trial to end with a detector, but all failed; see trials in the study")
    best = max(complete, key=lambda trial: (trial.value, -trial.number))
    return report(args, study, best, trainer, url, folder)


def find_space(args: argparse.Namespace, settings: argparse.Namespace, data: TrainingData) -> Space:
    """Read off the model what can be searched, and leave out what the command line decides."""
    from models.registry import create_model, model_arguments
    from utils.training.finetune import stages

    detector = create_model(args.model, **dict(args.model_args))
    records = [record for listing in data.train for record in listing.records]
    size = settings.image_size or train.input_size(detector, records)
    n_stages = 0 if detector.is_classical else len(stages(detector)) - 1
    arguments = model_arguments(args.model)
    space = build_space(detector, arguments, size, bool(settings.weights), n_stages)
    fixed = [flag[2:].partition("=")[0] for flag in args.train if flag.startswith("--")]
    fixed += [key for key, _ in args.model_args]
    return narrow_space(space, args.search, [*fixed, *(BANKS if "features" in fixed else ())])


def describe(args: argparse.Namespace, space: Space, data: TrainingData) -> dict[str, Any]:
    """What decides the value of a trial, in plain values that are the same wherever a worker runs."""
    return {
        "model": args.model,
        "model_args": [list(pair) for pair in args.model_args],
        "train flags": list(args.train),
        "images": [entry["fingerprint"] for entry in data.describe()],
        "seed": args.seed,
        "search space": [dimension.describe() for dimension in space],
    }


class Trainer:
    """Turns settings into runs of train.py; one per worker."""

    def __init__(self, fixed: Sequence[str], model_args: Mapping[str, Any], space: Space, seed: int) -> None:
        self.fixed = list(fixed)
        self.model_args = model_args
        self.space = space
        self.seed = seed
        self.errors = 0

    def flags(self, values: Mapping[str, Any]) -> list[str]:
        """The whole command line of train.py but for seed and output folder."""
        return [*self.fixed, *to_flags(values, self.space, self.model_args)]

    def run(self, values: Mapping[str, Any], seed: int, run: Path, on_epoch: Callable | None = None) -> dict[str, Any]:
        """Train, from where this run was interrupted if it was; returns its checkpoint."""
        from utils.checkpoints.file import load_checkpoint

        start = [*self.flags(values), "--seed", str(seed), "--overwrite"]
        flags = ["--resume"] if (run / "last.pt").exists() else start
        with contextlib.redirect_stdout(io.StringIO()):  # its test rows are none of the search's business
            result = train.main([*flags, "--output-dir", str(run)], on_epoch)
        return load_checkpoint(result["checkpoint"])

    def search(self, trial: Any, runs: Path) -> float:
        """Run one trial; returns its validation AUC, and leaves no files unless it is interrupted."""
        optuna = import_optuna()
        values = draw(trial, self.space)
        run = runs / str(trial.user_attrs["run"])
        told: set[int] = set()

        def on_epoch(history: Sequence[Mapping[str, Any]]) -> None:
            for number, row in enumerate(history, start=1):
                if row["epoch"] not in told:
                    trial.report(max(entry["valid_auc"] for entry in history[:number]), row["epoch"])
                    told.add(row["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            value = valid_auc(self.run(values, self.seed, run, on_epoch))
            self.errors = 0
        except optuna.TrialPruned:
            self.errors = 0
            note(trial, "pruned", max(trial.study.trials[trial.number].intermediate_values.values()))
            shutil.rmtree(run, ignore_errors=True)
            raise
        except UserError as error:  # a rate that diverges, say: these settings are no good
            self.errors += 1
            if self.errors == MAX_ERRORS:
                raise UserError(f"{MAX_ERRORS} trials in a row have failed, the last with: {error}") from None
            trial.set_user_attr("error", str(error))
            note(trial, "failed", None)
            raise optuna.TrialPruned from None
        note(trial, "complete", value)
        shutil.rmtree(run, ignore_errors=True)
        return value


def note(trial: Any, state: str, value: float | None) -> None:
    """Tell how a trial went, on stderr."""
    values = " ".join(
        f"{key}={item:.3g}" if isinstance(item, float) else f"{key}={item}" for key, item in trial.params.items()
    )
    text = "" if value is None else f" valid_auc={value:.4f}"
    train.log(f"trial {trial.number} {state}{text} {values}")


def valid_auc(checkpoint: Mapping[str, Any]) -> float:
    """Mean validation AUC over the data sets that hold both classes."""
    return statistics.fmean(row["auc"] for row in checkpoint["metrics"]["valid"] if row["auc"] is not None)


def leave_to_others(running: int) -> dict:
    """Say that the study is not over yet but needs no further worker."""
    train.log(f"{running} trials still run in other workers; the last of them reports (or run this command again)")
    return {"best": None, "command": None, "rows": [], "exit_code": EXIT_DONE}


def report(args: argparse.Namespace, study: Any, best: Any, trainer: Trainer, url: str, folder: Path) -> dict:
    """Write tables and figures of the trials, retrain over the seeds, and write and print the comparison."""
    from utils.files import write_json
    from utils.runtime import git_commit, hardware, versions
    from utils.search.report import confirmation_rows, finished_trials, write_confirmation, write_trials

    write_trials(study, [dimension.name for dimension in trainer.space], folder)
    command = shlex.join(["python", "train.py", *trainer.flags(best.params)])
    facts = {
        "command": args.command,
        "n_trials": len(finished_trials(study)),
        "seed": args.seed,
        "best_trial": best.number,
        "best": best.params,
        "best_valid_auc": best.value,
        "best_command": command,
        "hardware": hardware(),
        "git_commit": git_commit(),
        "versions": versions(),
        "confirmation": [],
    }
    if args.seeds:
        results = retrain(args, study, best, trainer, url, folder)
        if results is None:
            return leave_to_others(1)
        facts["confirmation"] = confirmation_rows(results)
        write_confirmation(facts["confirmation"], folder)
        print((folder / "confirmation.md").read_text(encoding="utf-8").partition("\n\n")[2], end="")
    write_json(folder / "tune.json", facts)
    print(f"best {command}")
    return {"best": best.params, "command": command, "rows": facts["confirmation"], "exit_code": EXIT_DONE}


def retrain(args, study: Any, best: Any, trainer: Trainer, url: str, folder: Path) -> list[dict] | None:
    """Retrain best and default settings with new seeds; a small study, so that workers share this too.

    Returns:
        One dict per run, see ``confirmation_rows``; None while other workers still train.
    """
    values = {"best": best.params, "default": default_values(trainer.space)}
    if values["best"] == values["default"]:
        train.log("no trial was better than the default settings")
        del values["best"]
    seeds = [args.seed + 1 + number for number in range(args.seeds)]
    setting = {"of": study.user_attrs["setting"], "best": best.params}
    runs = open_study(url, f"{study.study_name}-confirm-{best.number}", setting, args.seed)
    jobs = [(name, seed) for seed in seeds for name in values]
    for name, seed in jobs:
        queue_once(runs, {"setting": name, "seed": seed}, key=DEFAULT_TRIAL - seed * 2 - (name == "best"))

    def objective(trial: Any) -> float:
        name, seed = trial.suggest_categorical("setting", ("best", "default")), trial.suggest_int("seed", 0, 2**31)
        run = folder / "confirm" / f"{name}-seed{seed}"
        checkpoint = trainer.run(values[name], seed, run)
        (run / "last.pt").unlink(missing_ok=True)
        trial.set_user_attr("figures", figures_of(checkpoint))
        train.log(f"{name} settings, seed {seed}: valid_auc={valid_auc(checkpoint):.4f}")
        return valid_auc(checkpoint)

    if run_trials(runs, objective, len(jobs)):
        return None
    done = [trial for trial in runs.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return [{**trial.params, "figures": trial.user_attrs["figures"]} for trial in done if trial.params["seed"] in seeds]


def figures_of(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Validation and test figures of a run, per data set."""
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


if __name__ == "__main__":
    run_script(main)
