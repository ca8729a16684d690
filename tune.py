"""Search for good settings of train.py for a model and its data, and retrain the best ones with several seeds.

  python tune.py --model cnn --data data/140k --trials 30 --train --epochs 4
  python tune.py --model tf_efficientnet_b0 --data data/140k --train --weights imagenet --epochs 3
  python tune.py --model lightgbm --data data/140k --search rounds leaves learning_rate --trials 20
  python tune.py --model cnn --data data/140k --storage postgresql://user@host/studies --output-dir runs/tune/shared

The search space depends on the model: learning rate, weight decay, augmentation, crop size and dropout; with --weights
also the number of frozen stages; for classical models their own arguments and the feature banks. Flags after --train
are passed to train.py and not searched. The first trial uses the default settings. A tree-structured Parzen estimator
draws the others, and after each epoch only the best third of them continues (successive halving). The value of a trial
is its validation AUC; the search never looks at the test split.

The study is stored in --output-dir or in any database that Optuna supports. Run the same command again to resume an
interrupted study; run it several times at once, on one or more machines, to share the study between workers. The last
worker writes trials.csv, tune.json, confirmation.csv, .md and .tex, and the figures history and importance, and prints
the result and the command with the best settings:

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
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import train
from datasets.listing.splits import TrainingData, open_training_data
from utils.args import (
    EXIT_DONE,
    add_seed,
    check_output_dir,
    check_passed_on,
    command_line,
    int_in,
    key_value,
    make_parser,
    run_script,
)
from utils.errors import UserError
from utils.search.space import BANKS, Space, build_space, default_values, draw, narrow_space, to_flags
from utils.search.study import DEFAULT_TRIAL, import_optuna, open_study, queue_once, run_trials
from utils.training.recipe import Recipe, check_classical, make_recipe, run_name

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

RESERVED = ("--model", "--model-args", "--data", "--output-dir", "--seed", "--resume", "--overwrite", "--list-models")
MAX_ERRORS = 3  # failed trials in a row that end the search: then the settings are not the cause


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of tune.py."""
    parser = make_parser(__doc__, "tune.py")
    parser.add_argument("--model", default="cnn", help="as for train.py (default: cnn)")
    parser.add_argument(
        "--model-args", type=key_value, nargs="+", default=[], metavar="KEY=VALUE", help="fixed arguments of the model"
    )
    parser.add_argument("--data", nargs="+", default=["demo"], metavar="SPEC", help="datasets (default: demo)")
    parser.add_argument("--trials", type=int_in(1), default=30, help="number of trials in total (default: 30)")
    parser.add_argument("--search", nargs="+", default=[], metavar="NAME", help="settings to search (default: all)")
    parser.add_argument("--seeds", type=int_in(0, 100), default=3, help="retrainings of the best settings (default: 3)")
    parser.add_argument("--storage", metavar="URL", help="database URL (default: a SQLite file in --output-dir)")
    parser.add_argument("--name", help="name of the study in the storage (default: <model>-<data>)")
    parser.add_argument("--output-dir", metavar="DIR", help="default: runs/tune/<model>-<data>")
    add_seed(parser)
    parser.add_argument(
        "--train", nargs=argparse.REMAINDER, default=[], metavar="FLAG", help="flags for train.py; must come last"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Search and retrain; returns ``{"best": values, "command": line, "rows": confirmation, "exit_code": 0}``.

    ``best`` is None while other workers still run trials of the study; the last worker reports.
    """
    args = get_args_parser().parse_args(argv)
    check_passed_on(args.train, train.get_args_parser(), RESERVED)
    fixed = ["--model", args.model, "--data", *args.data, *args.train]
    flags = vars(train.get_args_parser().parse_args(fixed))
    recipe = make_recipe({**flags, "model_args": args.model_args, "seed": args.seed}, command_line("tune.py", argv))
    name = args.name or run_name(args.model, args.data)
    folder = check_output_dir(args.output_dir or f"runs/tune/{name}")
    if "?" in str(folder) and not args.storage:  # it ends the path in the address of a database
        raise UserError(f"expected --output-dir without a question mark, got {str(folder)!r}; choose another folder")
    data = open_training_data(args.data, recipe.exclude_generator)
    decided = [flag[2:].partition("=")[0] for flag in args.train if flag.startswith("--")]
    trainer = Trainer(fixed, recipe.model_args, find_space(recipe, data, args.search, decided), args.seed)

    from utils.runtime import run_facts
    from utils.search.report import write_report

    url = args.storage or f"sqlite:///{folder}/study.db"
    setting = {  # what decides the value of a trial, the same for all workers
        "model": args.model,
        "model_args": [list(pair) for pair in args.model_args],
        "train flags": list(args.train),
        "images": [entry["fingerprint"] for entry in data.describe()],
        "seed": args.seed,
        "search space": [dimension.describe() for dimension in trainer.space],
    }
    study = open_study(url, name, setting, args.seed)
    queue_once(study, default_values(trainer.space), DEFAULT_TRIAL)
    if others := run_trials(study, lambda trial: trainer.search(trial, folder / "trials"), args.trials):
        print(f"other workers still run {others} trials; the last one reports, or run this again", file=sys.stderr)
        return {"best": None, "command": None, "rows": [], "exit_code": EXIT_DONE}
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if not complete:
        errors = [trial.user_attrs.get("error", "no message") for trial in study.get_trials(deepcopy=False)]
        raise UserError(f"expected at least one trial to train a detector, but all failed, the last with: {errors[-1]}")
    best = max(complete, key=lambda trial: (trial.value, -trial.number))
    results = retrain(study, best, trainer, args.seeds, folder)
    best_command = shlex.join(["python", "train.py", *trainer.flags(best.params)])
    names = [dimension.name for dimension in trainer.space]
    facts = {**run_facts(recipe.command), "seed": args.seed, "best_command": best_command}
    rows = write_report(study, best, names, results, facts, folder)
    print(f"best {best_command}")
    return {"best": best.params, "command": best_command, "rows": rows, "exit_code": EXIT_DONE}


def find_space(recipe: Recipe, data: TrainingData, wanted: Sequence[str], decided: Sequence[str]) -> Space:
    """Return the search space of a model: the ``wanted`` settings without those ``decided`` on the command line."""
    from models.registry import create_model, model_arguments
    from utils.training.finetune import stages
    from utils.training.setup import input_size

    detector = create_model(recipe.model, **recipe.model_args)
    records = [record for listing in data.train for record in listing.records]
    size = input_size(recipe, detector, records)
    if detector.is_classical:
        check_classical(recipe)
    n_stages = 0 if detector.is_classical else len(stages(detector)) - 1
    space = build_space(detector, model_arguments(recipe.model), size, bool(recipe.weights), n_stages)
    fixed = [*decided, *recipe.model_args]
    return narrow_space(space, wanted, [*fixed, *(BANKS if "features" in fixed else ())])


@dataclass
class Trainer:
    """Turns settings into runs of train.py; one per worker."""

    fixed: Sequence[str]
    model_args: Mapping[str, Any]
    space: Space
    seed: int
    errors: int = 0

    def flags(self, values: Mapping[str, Any]) -> list[str]:
        """Return the command line of train.py without the seed and the output folder."""
        return [*self.fixed, *to_flags(values, self.space, self.model_args)]

    def run(self, values: Mapping[str, Any], seed: int, run: Path, on_epoch: Callable | None = None) -> dict[str, Any]:
        """Train, or resume this run if it was interrupted; returns its checkpoint."""
        from utils.checkpoints.file import load_checkpoint

        how = "--resume" if (run / "last.pt").exists() else "--overwrite"
        flags = [*self.flags(values), "--seed", str(seed), how]
        with contextlib.redirect_stdout(io.StringIO()):  # a search does not show test figures
            result = train.main([*flags, "--output-dir", str(run)], on_epoch)
        return load_checkpoint(result["checkpoint"])

    def search(self, trial: Trial, runs: Path) -> float:
        """Run one trial and return its validation AUC; its files are kept only if it is interrupted."""

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
            value = self.run(values, self.seed, run, on_epoch)["metrics"]["valid_auc"]
        except optuna.TrialPruned:
            self.errors = 0
            note(trial, "pruned", max(trial.study.trials[trial.number].intermediate_values.values()))
            shutil.rmtree(run, ignore_errors=True)
            raise
        except UserError as error:  # for example a learning rate that diverges
            self.errors += 1
            if self.errors == MAX_ERRORS:
                raise UserError(f"{MAX_ERRORS} trials in a row have failed, the last with: {error}") from None
            trial.set_user_attr("error", str(error))
            note(trial, "failed", None)
            print(f"trial {trial.number}: {error}", file=sys.stderr)
            raise optuna.TrialPruned from None
        self.errors = 0
        note(trial, "complete", value)
        shutil.rmtree(run, ignore_errors=True)
        return value


def note(trial: Trial, state: str, value: float | None) -> None:
    """Report the outcome of a trial on stderr."""
    values = " ".join(
        f"{key}={item:.3g}" if isinstance(item, float) else f"{key}={item}" for key, item in trial.params.items()
    )
    print(f"trial {trial.number} {state}{'' if value is None else f' valid_auc={value:.4f}'} {values}", file=sys.stderr)


def retrain(study: Study, best: FrozenTrial, trainer: Trainer, n_seeds: int, folder: Path) -> list[dict[str, Any]]:
    """Retrain the best and the default settings with seeds that the search did not use; the study keeps the figures.

    Returns:
        One dict per run, see ``confirmation_rows``.
    """
    from utils.search.report import figures_of

    settings = {f"trial{best.number}": ("best", best.params), "default": ("default", default_values(trainer.space))}
    if best.params == settings["default"][1]:
        print("no trial was better than the default settings", file=sys.stderr)
        del settings[f"trial{best.number}"]
    results = []
    for seed in range(trainer.seed + 1, trainer.seed + 1 + n_seeds):
        for label, (name, values) in settings.items():
            run = folder / "confirm" / f"{label}-seed{seed}"
            if run.name not in study.user_attrs:
                checkpoint = trainer.run(values, seed, run)
                (run / "last.pt").unlink(missing_ok=True)
                study.set_user_attr(run.name, figures_of(checkpoint))
                value = checkpoint["metrics"]["valid_auc"]
                print(f"{name} settings, seed {seed}: valid_auc={value:.4f}", file=sys.stderr)
            results.append({"setting": name, "seed": seed, "figures": study.user_attrs[run.name]})
    return results


if __name__ == "__main__":
    run_script(main)
