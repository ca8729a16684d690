"""The Optuna study behind tune.py, shared by any number of worker processes.

Each trial records its worker. If the worker dies, on this machine or (by a missing heartbeat) on another one, the trial
is marked as failed and its settings are queued again.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from utils.errors import UserError

HEARTBEAT, GRACE = 60, 300  # seconds between heartbeats, and without one before a trial counts as abandoned
CONNECT_TIMEOUT = 10  # seconds
STARTUP_TRIALS = 10  # random trials before the estimator starts
REDUCTION = 3  # one trial in three is promoted at each rung of successive halving
DEFAULT_TRIAL = -1  # key of the trial with the default settings


class SurplusTrialError(Exception):
    """Ends a trial that is one too many, because two workers started at the same moment."""


def import_optuna() -> Any:
    """Import Optuna and silence its log.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("expected the package 'optuna' for tune.py, found none; pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def open_study(url: str, name: str, setting: Mapping[str, Any], seed: int) -> Any:
    """Create or resume a study.

    Args:
        url: an SQLAlchemy URL, such as ``sqlite:///study.db``.
        setting: plain values that decide the value of a trial; a study never mixes trials of two settings.

    Raises:
        UserError: the storage cannot be reached, or the study exists with another setting.
    """
    optuna = import_optuna()
    wait = {"timeout": 60} if url.startswith("sqlite") else {"connect_timeout": CONNECT_TIMEOUT}
    try:
        storage = optuna.storages.RDBStorage(
            url, engine_kwargs={"connect_args": wait}, heartbeat_interval=HEARTBEAT, grace_period=GRACE
        )
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            sampler=make_sampler(seed),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
        )
    except Exception as error:  # each database driver has different exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"expected --storage with a database that can be reached, got {url!r}: {reason}") from None
    known = study.user_attrs.get("setting")
    if known is None:
        study.set_user_attr("setting", json.dumps(setting))
    elif (found := json.loads(known)) != setting:
        differing = [key for key in {**found, **setting} if found.get(key) != setting.get(key)]
        key = differing[0]
        raise UserError(
            f"expected the flags of the study {name!r}, but {', '.join(differing)} differ "
            f"({key}: {found.get(key)} then, {setting.get(key)} now); choose another --output-dir or --name"
        )
    return study


def make_sampler(seed: int) -> Any:
    """Return a tree-structured Parzen estimator whose draws depend on the seed and the trial's number only.

    An interrupted study therefore resumes exactly, and workers with the same seed do not repeat each other. Bergstra et
    al., "Algorithms for hyper-parameter optimization", NeurIPS 2011; multivariate as in Falkner et al., BOHB, ICML 2018
    (arXiv 1807.01774).
    """
    base: Any = import_optuna().samplers

    class NumberedSampler(base.BaseSampler):
        sampler: Any = None

        def infer_relative_search_space(self, study, trial):
            self.sampler = base.TPESampler(
                seed=(seed * 100_003 + trial.number) % 2**32,
                n_startup_trials=STARTUP_TRIALS,
                multivariate=True,
                group=True,
                constant_liar=True,
            )
            return self.sampler.infer_relative_search_space(study, trial)

        def sample_relative(self, study, trial, search_space):
            return self.sampler.sample_relative(study, trial, search_space)

        def sample_independent(self, study, trial, param_name, param_distribution):
            return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    return NumberedSampler()


def queue_once(study: Any, params: Mapping[str, Any], key: int, **attributes: Any) -> None:
    """Queue settings unless a trial with this ``key`` exists; if two workers queue them at once, one is surplus."""
    if all(trial.user_attrs.get("retry_of") != key for trial in study.get_trials(deepcopy=False)):
        study.enqueue_trial(dict(params), user_attrs={"retry_of": key, **attributes})


def run_trials(study: Any, objective: Callable[[Any], float], n_trials: int) -> int:
    """Run trials until ``n_trials`` are finished or running in other workers; returns how many still run there.

    Finished means completed or pruned. The user attribute ``run`` of a trial is the number of the first trial with its
    settings.
    """
    optuna = import_optuna()

    def guarded(trial: Any) -> float:
        trial.set_user_attr("owner", f"{socket.gethostname()}:{os.getpid()}")
        if is_surplus(study, trial.number, n_trials):
            trial.set_user_attr("surplus", True)
            raise SurplusTrialError
        if "run" not in trial.user_attrs:
            trial.set_user_attr("run", trial.number)
        return objective(trial)

    while True:
        requeue_interrupted(study)
        states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
        running = states.count("RUNNING")
        if states.count("COMPLETE") + states.count("PRUNED") + running >= n_trials:
            return running
        try:
            study.optimize(guarded, n_trials=1)
        except SurplusTrialError:
            continue
        except optuna.exceptions.StorageInternalError as error:
            raise UserError(f"expected --storage to stay reachable, but {error}; run the command again") from None


def is_surplus(study: Any, number: int, n_trials: int) -> bool:
    """Tell whether a new trial is one too many; all workers agree, since the answer depends on the trials' numbers."""
    alive = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "FAIL"]
    seen: set[int] = set()
    counted = []
    for trial in sorted(alive, key=lambda trial: trial.number):
        key = trial.user_attrs.get("retry_of")
        if key is None or key not in seen:
            counted.append(trial.number)
        if key is not None:
            seen.add(key)
    return number not in counted[:n_trials]


def requeue_interrupted(study: Any) -> None:
    """Queue the settings of trials whose process died or was interrupted again, each once."""
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state.name == "RUNNING" and is_abandoned(trial):
            try:
                study.tell(trial.number, state=import_optuna().trial.TrialState.FAIL)
            except (ValueError, RuntimeError):  # another worker was faster
                continue
    for trial in study.get_trials(deepcopy=False):
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if trial.state.name == "FAIL" and params and not trial.user_attrs.get("surplus"):
            queue_once(study, params, trial.number, run=trial.user_attrs.get("run", trial.number))


def is_abandoned(trial: Any) -> bool:
    """Tell whether the process of a trial on this machine is gone; Optuna watches other machines by their heartbeat."""
    host, _, process = str(trial.user_attrs.get("owner", "")).rpartition(":")
    if not process:  # killed before it recorded its owner
        return datetime.now() - (trial.datetime_start or datetime.now()) > timedelta(seconds=GRACE)
    if host != socket.gethostname() or int(process) == os.getpid():
        return host == socket.gethostname()  # our own last trial, which ended with an exception
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
