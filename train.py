"""Fit one detector and write checkpoints/<run>/{best.pt,last.pt,log.csv,curves.pdf,curves.png}.

  python train.py                                              train `cnn` on the generated demo set
  python train.py --model cnn --data data/140k --epochs 30
  python train.py --model tf_efficientnet_b0 --weights imagenet --data data/140k data/openforensics
  python train.py --adversarial fgsm --adv-eps 2/255           resist attacks of 2 grey levels
  python train.py --resume --output-dir checkpoints/cnn-demo   resume an interrupted run

The best epoch has the highest validation AUC, averaged over the datasets, or over pairs of them where some have one
class only. Thresholds and calibration are fitted on the same split. With --adversarial, the best epoch has the highest
validation accuracy under PGD; if robustness collapses, the run returns to its best epoch or stops. stdout ends with
one row per test split and the checkpoint:

  test demo n_real=240 n_fake=240 auc=0.981 [0.970,0.990] acc=0.931 [0.908,0.952] threshold=0.47
  checkpoint checkpoints/cnn-demo/best.pt
"""

from __future__ import annotations

import argparse
import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets.listing.splits import TrainingData, open_training_data
from utils.args import (
    EXIT_DONE,
    add_device_group,
    check_output_dir,
    command_line,
    exit_code,
    given_flags,
    make_parser,
    run_script,
)
from utils.errors import UserError
from utils.files import locked
from utils.model_names import own_names
from utils.training.recipe import Recipe, add_recipe_flags, make_recipe, run_name

if TYPE_CHECKING:
    from utils.training.setup import TrainingLoader
    from utils.training.state import TrainingState

LABEL_SMOOTHING = 0.05


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of train.py."""
    parser = make_parser(__doc__, "train.py")
    parser.add_argument("--list-models", action="store_true", help="print the names of this project's models and exit")
    add_recipe_flags(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--output-dir", metavar="DIR", help="run folder (default: checkpoints/<model>-<data>)")
    run.add_argument("--cache", metavar="DIR", help="cache for decoded images, tokens or classical features")
    run.add_argument("--resume", action="store_true", help="resume the run in --output-dir with its settings")
    run.add_argument("--overwrite", action="store_true", help="replace an existing run in --output-dir")
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None, on_epoch: Callable[[list[dict]], object] | None = None) -> dict:
    """Train; returns ``{"checkpoint": path, "rows": test rows, "history": log rows, "exit_code": 0 or 1}``.

    ``on_epoch`` is called with the log rows so far after each epoch is saved.
    """
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if args.resume and args.overwrite:
        raise UserError("expected --resume or --overwrite, got both; drop one")
    if args.list_models:
        print("\n".join(sorted(own_names())))
        return {"models": sorted(own_names()), "exit_code": EXIT_DONE}
    folder = Path(args.output_dir or f"checkpoints/{run_name(args.model, args.data)}")
    interrupted = None
    if args.resume:
        from utils.training.state import load_run, recipe_of_run

        interrupted = load_run(folder)
        recipe = recipe_of_run(interrupted, given_flags(parser, argv))
    else:
        recipe = make_recipe(vars(args), command_line("train.py", argv))
    with locked(check_output_dir(folder)):
        found = [name for name in ("last.pt", "best.pt") if (folder / name).exists()]
        if found and not (args.resume or args.overwrite):
            ways = "--resume, --overwrite" if "last.pt" in found else "--overwrite"
            raise UserError(f"expected a new run folder, got a run in {folder}; pass {ways} or --output-dir")
        run = (args.cache, args.device, args.workers, args.threads, on_epoch)
        return train_detector(recipe, folder, interrupted, *run)


def train_detector(
    recipe: Recipe,
    folder: Path,
    interrupted: dict[str, Any] | None,
    cache: str | None,
    device_name: str,
    workers: int | None,
    threads: int | None,
    on_epoch: Callable[[list[dict]], object] | None,
) -> dict[str, Any]:
    """Fit the detector and its operating point, and report; ``interrupted`` is the last.pt of a run to resume."""
    data = open_training_data(recipe.data, recipe.exclude_generator)

    from datasets.faces.boxes import with_faces
    from datasets.faces.finder import open_finder
    from datasets.image_cache import cache_listing

    finder = open_finder(recipe.face_detector) if recipe.geometry == "face" else None

    from models.classical import ClassicalDetector
    from utils.distributed import check_enough, expecting_peers, wait_for_all
    from utils.evaluation.finalize import finalize
    from utils.runtime import set_up
    from utils.scoring.scorer import Settings
    from utils.training.classical import FEATURE_CACHE, fit_classical
    from utils.training.log import log
    from utils.training.setup import build_detector, prepare
    from utils.training.state import remove_run
    from utils.training.token_cache import valid_scorer

    for note in data.notes:
        log(note)
    machine = set_up(device_name, workers=workers, threads=threads)
    device, n_workers = machine.device, machine.workers
    check_enough(len(data.train_records))
    detector = build_detector(recipe, data.train_records, device, interrupted["model_args"] if interrupted else None)
    if finder:
        data = data.map(lambda listing: with_faces(listing, finder))
    history: list[dict] = []
    score_valid = None
    if isinstance(detector, ClassicalDetector):
        remove_run(folder)
        unreadable = fit_classical(recipe, detector, data, folder, Path(cache or FEATURE_CACHE), n_workers)
    else:
        if cache and not recipe.token_views:
            train, valid = ([cache_listing(item, Path(cache)) for item in part] for part in (data.train, data.valid))
            data = replace(data, train=train, valid=valid)
        state, loader = prepare(recipe, detector, data, folder, device, n_workers, interrupted, cache)
        if not interrupted:
            remove_run(folder)
        history = state.history
        score_valid = valid_scorer(state.valid_tokens, Settings(recipe.batch_size))
        try:
            with expecting_peers():
                unreadable = fit(recipe, data, state, loader, folder, n_workers, on_epoch)
        except KeyboardInterrupt:
            if (folder / "last.pt").exists():
                log(f"interrupted; resume with: python train.py --resume --output-dir {shlex.quote(str(folder))}")
            raise
    wait_for_all()
    settings = Settings(recipe.batch_size, n_workers)
    rows, failed = finalize(folder / "best.pt", data, settings, device, recipe.calibration, score_valid=score_valid)
    code = exit_code(len(unreadable) + len(failed))
    return {"checkpoint": str(folder / "best.pt"), "rows": rows, "history": history, "exit_code": code}


def fit(
    recipe: Recipe,
    data: TrainingData,
    state: TrainingState,
    loader: TrainingLoader,
    folder: Path,
    workers: int,
    on_epoch: Callable[[list[dict]], object] | None = None,
) -> dict[str, str]:
    """Run the remaining epochs; keep best.pt, last.pt and log.csv current. Returns the unreadable images."""
    from utils.checkpoints.file import save_checkpoint
    from utils.distributed import wait_for_all
    from utils.evaluation.finalize import report_unreadable
    from utils.training.adversarial import reason_to_stop, selection_score
    from utils.training.log import log, throughput_line, write_log
    from utils.training.state import describe_run
    from utils.training.validation import validate

    unreadable: dict[str, str] = {}
    if state.history:  # the run may have been killed before it wrote its last row
        write_log(folder, state.history)
    while state.epoch < recipe.epochs:
        if reason := reason_to_stop(recipe.patience, recipe.adversarial, state):
            log(reason)
            break
        known = len(unreadable)
        loader.sampler.epoch = state.epoch
        epoch = train_epoch(recipe, state, loader, unreadable)
        report_unreadable(list(unreadable.items())[known:])
        valid = validate(recipe, data.valid, state, workers)
        state.epoch += 1
        state.history.append(
            {
                "epoch": state.epoch,
                "lr": state.optimizer.param_groups[0]["lr"],
                "train_loss": epoch.loss,
                **valid,
                "train_seconds": epoch.seconds,
                "images_per_second": epoch.images / epoch.seconds,
                "data_share": epoch.waited / epoch.seconds,
            }
        )
        log("  ".join(f"{key} {value:.4g}" for key, value in state.history[-1].items()))
        log(throughput_line(*epoch[1:], state.device.type, loader.num_workers, bool(state.valid_tokens)))
        description = describe_run(recipe, state.detector, data.describe(), state.epoch)
        if selection_score(valid) > state.best_score:
            state.best_score, state.best_epoch = selection_score(valid), state.epoch
            save_checkpoint(folder / "best.pt", {**description, "state_dict": state.averaged().state_dict()})
        if valid.get("collapsed"):
            wait_for_all()
            log(f"collapsed in epoch {state.epoch}: restored the best weights so far (epoch {state.best_epoch})")
            state.go_back(folder / "best.pt")
        # After best.pt: a run killed before this point repeats the whole epoch. Before the log, which takes longer and
        # which a resumed run writes again: until the first last.pt, there is nothing to resume.
        state.save(folder / "last.pt", description)
        write_log(folder, state.history)
        if on_epoch:
            on_epoch(state.history)
    return unreadable


class Epoch(NamedTuple):
    """The mean loss, the number of images, and the seconds in all and spent waiting for data."""

    loss: float
    images: int
    seconds: float
    waited: float


def train_epoch(recipe: Recipe, state: TrainingState, loader: TrainingLoader, unreadable: dict[str, str]) -> Epoch:
    """Run one pass over the training images; adds to ``unreadable``, ``{path: reason}``.

    Raises:
        UserError: the loss diverged, or no batch had two readable images.
    """
    import torch
    from tqdm import tqdm

    from datasets.loading import stand_in
    from datasets.transforms import as_floats
    from utils.distributed import accumulating, gather, parallel, share_buffers
    from utils.runtime import autocast
    from utils.training.adversarial import make_adversary
    from utils.training.distillation import training_loss
    from utils.training.finetune import train_mode, warmup_cosine
    from utils.training.log import Stopwatch
    from utils.training.tokens import OnTokens
    from utils.training.validation import check_epoch

    started, device = time.perf_counter(), state.device
    adversary = make_adversary(recipe.adversarial, recipe.adv_eps, recipe.adv_steps, state.history)
    total_steps = recipe.epochs * math.ceil(len(loader) / recipe.accumulate)
    warmup_steps = max(1, round(recipe.warmup * total_steps))
    total_loss, images, has_gradient = torch.zeros((), device=device), 0, False
    train_mode(state.detector)
    model = parallel(OnTokens(state.detector) if state.valid_tokens else state.detector, device)
    compiled = torch.compile(model) if recipe.compile else model
    watch = Stopwatch(loader, device)
    bar = tqdm(watch, f"epoch {state.epoch + 1}/{recipe.epochs}", len(loader), disable=None, leave=False)
    for number, batch in enumerate(bar, start=1):
        unreadable.update((loader.dataset.records[item.index].path, item.reason) for item in batch.unreadable)
        weight = stand_in(batch, recipe.train_size or state.detector.geometry.size)
        ends_step = number % recipe.accumulate == 0 or number == len(loader)
        # The last group of an epoch may be smaller.
        group = min(recipe.accumulate, len(loader) - (number - 1) // recipe.accumulate * recipe.accumulate)
        if len(batch.images) > 1:  # batch norm cannot be trained on one image
            x = as_floats(batch.images.to(device, non_blocking=True))  # (N, 3, H, W) in [0, 1]
            y = batch.labels.to(device, non_blocking=True)  # (N,): real = 0, fake = 1
            y = y * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / 2
            with accumulating(model, not ends_step):
                if adversary:
                    loss = adversary.loss(model, x, y, state.step / total_steps, state.dtype)
                else:
                    with autocast(device, state.dtype):
                        # A batch of another size would be compiled anew.
                        logits = (compiled if len(x) == recipe.batch_size else model)(x)  # (N,)
                        answers = state.teacher(x) if state.teacher else batch.answers
                    loss = training_loss(logits.float(), y, answers)
                state.scaler.scale(weight * loss / group).backward()
            n = weight * len(y)
            total_loss, images, has_gradient = total_loss + loss.detach() * n, images + n, True
        if has_gradient and ends_step:
            state.take_step(recipe.lr * warmup_cosine(state.step, total_steps, warmup_steps))
            has_gradient = False
    share_buffers(state.detector, state.averaged())
    shares = gather((total_loss.item(), images, unreadable))
    images = sum(count for _, count, _ in shares)
    mean_loss = sum(total for total, _, _ in shares) / max(1, images)
    for _, _, reasons in shares:
        unreadable.update(reasons)
    check_epoch(mean_loss, images, len(unreadable), recipe, state.epoch + 1)
    return Epoch(mean_loss, images, time.perf_counter() - started, watch.seconds)


if __name__ == "__main__":
    run_script(main)
