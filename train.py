"""Fit one detector and write checkpoints/<run>/{best.pt,last.pt,log.csv,curves.pdf,curves.png}.

  python train.py                                          train `cnn` on the generated demo set
  python train.py --model cnn --data data/140k --epochs 30
  python train.py --model tf_efficientnet_b0 --weights imagenet --data data/140k data/openforensics
  python train.py --adversarial fgsm --adv-eps 2/255       resist attacks of 2 grey levels
  python train.py --resume --output-dir checkpoints/cnn-demo          go on where a run was interrupted

The best epoch is chosen by AUC on the validation split (its mean over the data sets), and the thresholds and
the calibration are fitted there too. With --adversarial it is chosen by validation accuracy under PGD, and a run
whose robustness collapses says so, and goes back to its best epoch or stops (utils/training/adversarial.py). The
last lines on stdout are one row per test split and the checkpoint:

  test demo n_real=240 n_fake=240 auc=0.981 [0.970,0.990] acc=0.931 [0.908,0.952] threshold=0.47
  checkpoint checkpoints/cnn-demo/best.pt
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets.spec import parse_spec
from datasets.splits import TrainingData, open_training_data
from utils.args import (
    EXIT_DONE,
    EXIT_PARTIAL,
    add_device_group,
    check_checkpoint_file,
    check_output_dir,
    check_weights_source,
    key_value,
    make_parser,
    run_script,
)
from utils.attacks.threat_model import add_adversarial_group, check_linf_eps
from utils.errors import UserError
from utils.model_names import check_model_name, own_names
from utils.training.flags import add_compression_group, add_optimisation_group, add_shape_group, add_transfer_group

DIVERGED = 100.0  # mean cross-entropy of an epoch; NaN counts as diverged too
MEMORY_LIMIT = 2 * 2**30  # bytes of decoded training images that are kept, so that small sets are decoded once


def get_args_parser() -> argparse.ArgumentParser:
    """Declare the flags of train.py."""
    parser = make_parser(__doc__, "train.py")
    data = parser.add_argument_group("model and data")
    data.add_argument("--model", default="cnn", help="a name from --list-models or any timm backbone (default: cnn)")
    data.add_argument("--model-args", type=key_value, nargs="+", default=[], metavar="KEY=VALUE", help="its options")
    data.add_argument("--data", nargs="+", default=["demo"], metavar="SPEC", help="data sets to mix (default: demo)")
    data.add_argument(
        "--exclude-generator", nargs="+", default=[], metavar="NAME", help="leave their fakes to the test split"
    )
    data.add_argument("--weights", metavar="FILE", help="start from `imagenet` (timm's hub) or a safetensors/pth file")
    data.add_argument("--list-models", action="store_true", help="print the names of this project's models and leave")
    add_shape_group(parser)
    add_optimisation_group(parser)
    add_transfer_group(parser)
    add_adversarial_group(parser)
    add_compression_group(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--output-dir", metavar="DIR", help="run folder (default: checkpoints/<model>-<data>)")
    run.add_argument("--cache", metavar="DIR", help="keep decoded images there: faster epochs for disk space")
    run.add_argument(
        "--images-in",
        choices=("auto", "host", "device"),
        default="auto",
        help="where training images are kept; auto: on a GPU if it can hold and augment them",
    )
    run.add_argument("--feature-cache", default="data/features", metavar="DIR", help="of classical models")
    run.add_argument("--resume", action="store_true", help="go on from last.pt of --output-dir with its settings")
    run.add_argument("--overwrite", action="store_true", help="replace an existing run in --output-dir")
    add_device_group(parser)
    return parser


def main(argv: Sequence[str] | None = None, on_epoch: Callable[[list[dict]], object] | None = None) -> dict:
    """Train; returns ``{"checkpoint": path, "rows": test rows, "history": log rows, "exit_code": 0 or 1}``.

    ``on_epoch`` is called with the log rows so far whenever an epoch is finished and saved.
    """
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if args.list_models:
        print("\n".join(sorted(own_names())))
        return {"models": sorted(own_names()), "exit_code": EXIT_DONE}
    args.command = shlex.join(["python", "train.py", *(sys.argv[1:] if argv is None else argv)])
    folder = Path(args.output_dir or f"checkpoints/{run_name(args.model, args.data)}")
    check_model_name(args.model)
    check_weights_source(args.weights)
    check_linf_eps(args.adv_eps, "--adv-eps")
    if args.teacher:
        args.teacher = str(check_checkpoint_file(args.teacher, "--teacher"))
        if args.adversarial:
            raise UserError("expected either --teacher or --adversarial, got both; distil first, then harden")
    if args.resume:
        from utils.training.state import settings_of_run

        args = settings_of_run(folder, parser, argv)
    elif not args.overwrite and any((folder / name).exists() for name in ("best.pt", "last.pt")):
        raise UserError(f"expected a new run folder, got a run in {folder}; pass --resume, --overwrite or --output-dir")
    forger = None
    if not args.forgeries and args.forgery_share != parser.get_default("forgery_share"):
        raise UserError(f"expected --forgeries with --forgery-share {args.forgery_share:g}, got none; name some")
    if args.forgeries or args.forgery_decoder:
        from datasets.forgeries.forger import make_forger

        decoder = None
        if args.forgery_decoder and not args.resume:
            from utils.training.forgery_decoder import load_decoder

            decoder = load_decoder(args.forgery_decoder)
        forger = make_forger(args.forgeries or "", args.forgery_share, decoder)
    check_output_dir(folder)
    data = open_training_data(args.data, args.exclude_generator)
    for note in data.notes:
        log(note)

    from datasets.image_cache import cache_listing
    from datasets.loading import label_groups
    from utils.distributed import check_enough, expecting_peers, join_team
    from utils.runtime import pick_device, set_threads

    device = pick_device(args.device)
    set_threads(args.threads)
    join_team(device)
    if args.cache:
        train, valid = ([cache_listing(item, Path(args.cache)) for item in part] for part in (data.train, data.valid))
        data = dataclasses.replace(data, train=train, valid=valid)
    records = data.train_records
    check_enough(len(records))
    detector = build_detector(args, records, device)
    if detector.is_classical:  # classical: it learns in one call
        if forger or args.balance:
            raise UserError(f"expected a neural model for --forgeries and --balance, got {args.model}; drop the flags")
        return finish(args, data, folder, device, fit_once(args, data, detector, folder))
    groups = label_groups(data.train) if args.balance else None
    if forger:
        from utils.training.forgery_decoder import with_decoder

        forger = with_decoder(forger, records, folder, args.seed, args.resume)
    state, loader, dtype = prepare(args, detector, records, device, forger, groups)
    if args.resume:
        state.restore(folder / "last.pt", data.describe())
    else:  # what --overwrite replaces must not be resumed in place of this run
        (folder / "last.pt").unlink(missing_ok=True)
    try:
        with expecting_peers():
            unreadable = fit(args, data, state, loader, device, dtype, folder, on_epoch)
        return {**finish(args, data, folder, device, unreadable), "history": state.history}
    except KeyboardInterrupt:
        if (folder / "last.pt").exists():
            log(f"interrupted; go on with: python train.py --resume --output-dir {shlex.quote(str(folder))}")
        raise


def build_detector(args: argparse.Namespace, records, device):
    """Build the detector with its geometry and its initial weights."""
    import torch

    from datasets.transforms import Geometry
    from models.detector import count_parameters
    from models.pruning import prune_channels
    from models.registry import create_model
    from utils.checkpoints.weights import load_weights
    from utils.training.classical import resolve_embedding

    torch.manual_seed(args.seed)
    model_args, embedding_weights = resolve_embedding(args.model_args, device)
    args.model_args = list(model_args.items())
    detector = create_model(args.model, **model_args)
    if embedding_weights:
        detector.get_submodule("embedder.detector").load_state_dict(embedding_weights)
    size = args.image_size or input_size(detector, records)
    detector.geometry = Geometry(args.geometry, size, args.resize_to)
    if args.weights and not args.resume:
        log(f"{args.weights}: {load_weights(detector, args.weights)}")
    if args.prune and not args.resume:  # a resumed run has the widths in its model_args
        args.model_args.append(("channels", prune_channels(detector, args.prune)))
        log(f"{count_parameters(detector):,} parameters after pruning")
    return detector.to(device)


def prepare(args: argparse.Namespace, detector, records, device, forger=None, groups=None):
    """Make the training loader and the optimiser; freeze what is to stay as it is."""
    import torch
    from timm.utils import ModelEmaV3

    from datasets.device_images import make_training_loader
    from datasets.loading import EpochSampler, ImageDataset
    from datasets.transforms import TrainTransform
    from utils.distributed import team
    from utils.runtime import depthwise_in_fp32, pick_precision, pick_workers
    from utils.training.distillation import Teacher
    from utils.training.finetune import frozen_stages, parameter_groups, set_frozen
    from utils.training.state import TrainingState

    dtype = pick_precision(args.precision, device, training=True)
    detector.to(memory_format=torch.channels_last)
    if device.type == "cpu" and dtype == torch.bfloat16:
        depthwise_in_fp32(detector)
    frozen = frozen_stages(args.freeze, detector)
    set_frozen(detector, frozen)
    transform = TrainTransform(detector.geometry, args.augmentation, args.train_size, as_bytes=True)
    workers = pick_workers(args.workers, device)
    loader, where = make_training_loader(
        ImageDataset(records, transform, memory_limit=0 if workers else MEMORY_LIMIT, forger=forger),
        args.batch_size,
        EpochSampler(len(records), args.seed, team.rank, team.size, groups),
        workers,
        len(records) // team.size >= args.batch_size,  # a last batch of one image would break batch norm
        device,
        args.images_in,
    )
    if where:
        log(where)
    groups = parameter_groups(detector, args.weight_decay, args.layer_decay, args.head_lr)
    state = TrainingState(
        detector=detector,
        ema=ModelEmaV3(detector, decay=args.ema_decay, use_warmup=True) if args.ema_decay else None,
        optimizer=torch.optim.AdamW(groups, args.lr),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        frozen=frozen,
        teacher=Teacher(Path(args.teacher), device) if args.teacher else None,
    )
    return state, loader, dtype


def fit_once(args, data: TrainingData, detector, folder: Path) -> dict[str, str]:
    """Fit a classical detector and write best.pt. Returns the unreadable images."""
    from utils.checkpoints.file import save_checkpoint
    from utils.training.classical import fit_classical
    from utils.training.state import describe_run

    unreadable = fit_classical(detector, data, folder, args.seed, Path(args.feature_cache), args.batch_size)
    description = describe_run(args, detector, data.describe(), epoch=1)
    save_checkpoint(folder / "best.pt", {**description, "state_dict": detector.state_dict()})
    return unreadable


def input_size(detector, records) -> int:
    """The detector's own input size, or less where the images are smaller: enlarging them would add nothing."""
    from datasets.loading import typical_side

    side = typical_side(records) or detector.geometry.size
    return min(detector.geometry.size, max(32, side // 32 * 32)) if detector.any_size else detector.geometry.size


def fit(args, data: TrainingData, state, loader, device, dtype, folder: Path, on_epoch=None) -> dict[str, str]:
    """Run the remaining epochs; keep best.pt, last.pt and log.csv current. Returns the unreadable images."""
    from utils.checkpoints.file import save_checkpoint
    from utils.distributed import wait_for_all
    from utils.evaluation.finalize import report_unreadable
    from utils.training.adversarial import has_collapsed, reason_to_stop, selection_score
    from utils.training.log import write_log
    from utils.training.state import describe_run
    from utils.training.throughput import throughput_line

    unreadable: dict[str, str] = {}
    while state.epoch < args.epochs:
        if reason := reason_to_stop(args.patience, args.adversarial, state):
            log(reason)
            break
        started, known = time.perf_counter(), len(unreadable)
        loader.sampler.epoch = state.epoch
        train_loss, images = train_epoch(args, state, loader, device, dtype, unreadable)
        report_unreadable(list(unreadable.items())[known:])
        seconds = time.perf_counter() - started
        valid = validate(args, data, state.scored_detector(), dtype)
        state.epoch += 1
        if args.adversarial:
            ramp_is_over = state.epoch > args.adv_ramp * args.epochs
            valid["collapsed"] = float(has_collapsed(state.history, valid, ramp_is_over))
        state.history.append(
            {
                "epoch": state.epoch,
                "lr": state.optimizer.param_groups[0]["lr"],
                "train_loss": train_loss,
                **valid,
                "train_seconds": seconds,
                "images_per_second": images / seconds,
                "data_share": state.waited / seconds,
            }
        )
        log("  ".join(f"{key} {value:.4g}" for key, value in state.history[-1].items()))
        log(throughput_line(images, seconds, state.waited, device.type, loader.num_workers))
        description = describe_run(args, state.detector, data.describe(), state.epoch)
        if selection_score(valid) > state.best_auc:
            state.best_auc, state.best_epoch = selection_score(valid), state.epoch
            save_checkpoint(folder / "best.pt", {**description, "state_dict": state.scored_detector().state_dict()})
        if valid.get("collapsed"):
            wait_for_all()
            log(f"collapsed in epoch {state.epoch}: back to the best weights so far, of epoch {state.best_epoch}")
            state.go_back(folder / "best.pt")
        # last.pt comes last: a run that is killed before it repeats this epoch, files and all.
        write_log(folder, state.history)
        state.save(folder / "last.pt", description)
        if on_epoch:
            on_epoch(state.history)
    return unreadable


def train_epoch(args, state, loader, device, dtype, unreadable: dict[str, str]) -> tuple[float, int]:
    """One pass over the training images; returns the mean loss and the number of images."""
    import torch
    from tqdm import tqdm

    from datasets.loading import stand_in
    from datasets.transforms import as_floats
    from utils.distributed import gather, parallel
    from utils.runtime import autocast
    from utils.training.adversarial import make_adversary
    from utils.training.distillation import training_loss
    from utils.training.finetune import mix_images, set_frozen, train_mode, warmup_cosine
    from utils.training.throughput import Stopwatch

    adversary = make_adversary(vars(args), state.history)
    total_steps = args.epochs * math.ceil(len(loader) / args.accumulate)
    total_loss, images, has_gradient = torch.zeros((), device=device), 0, False
    thawed = state.epoch // args.unfreeze_every if args.unfreeze_every else 0
    set_frozen(state.detector, max(0, state.frozen - thawed))
    train_mode(state.detector)
    model = parallel(state.detector, device)
    watch = Stopwatch(loader, device)
    bar = tqdm(watch, desc=f"epoch {state.epoch + 1}/{args.epochs}", total=len(loader), disable=None, leave=False)
    for number, batch in enumerate(bar, start=1):
        unreadable.update((loader.dataset.records[item.index].path, item.reason) for item in batch.unreadable)
        weight = stand_in(batch, args.train_size or state.detector.geometry.size)
        if len(batch.images) > 1:  # batch norm cannot be trained on one image
            x = as_floats(batch.images.to(device, non_blocking=True))  # (N, 3, H, W) in [0, 1]
            y = batch.labels.to(device, non_blocking=True)  # (N,): real = 0, fake = 1
            x, y = mix_images(x, y, args.mixup, args.cutmix)
            smooth = y * (1 - args.label_smoothing) + args.label_smoothing / 2
            if adversary:
                loss = adversary.loss(model, x, smooth, state.step / total_steps, dtype)
            else:
                with autocast(device, dtype):
                    logits = model(x)  # (N,)
                    answers = state.teacher(x) if state.teacher else None
                loss = training_loss(logits.float(), smooth, answers)
            state.scaler.scale(weight * loss / args.accumulate).backward()
            n = weight * len(y)
            total_loss, images, has_gradient = total_loss + loss.detach() * n, images + n, True
        if not has_gradient or (number % args.accumulate and number < len(loader)):
            continue
        for group in state.optimizer.param_groups:
            group["lr"] = (
                args.lr
                * group.get("lr_scale", 1.0)
                * warmup_cosine(state.step, total_steps, max(1, round(args.warmup * total_steps)))
            )
        if args.clip_grad:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.detector.parameters(), args.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        if state.ema:
            state.ema.update(state.detector, step=state.step)
        state.step += 1
        has_gradient = False
    shares = gather((total_loss.item(), images, unreadable))
    state.waited, images = watch.seconds, sum(count for _, count, _ in shares)
    mean_loss = sum(total for total, _, _ in shares) / max(1, images)
    for _, _, reasons in shares:
        unreadable.update(reasons)
    if not images or not mean_loss < DIVERGED:
        raise UserError(
            f"expected a training loss around or below 0.7 (chance), got {mean_loss:.3g} over {images} images in epoch "
            f"{state.epoch + 1}; lower --lr, or check the data with audit.py"
        )
    return mean_loss, images


def validate(args, data: TrainingData, detector, dtype) -> dict[str, float]:
    """Score the validation images, and in adversarial training attack some of them."""
    from utils.training.validation import clean_figures, robust_figures

    figures = clean_figures(detector, data.valid, args.batch_size, dtype)
    if args.adversarial:
        figures |= robust_figures(detector, data.valid, args.adv_eps, args.batch_size, dtype, args.seed)
    return figures


def finish(args, data: TrainingData, folder: Path, device, unreadable: dict[str, str]) -> dict:
    """Fit the operating point of best.pt on validation and report the test splits."""
    from utils.distributed import wait_for_all
    from utils.evaluation.finalize import finalize
    from utils.scoring.scorer import Settings

    wait_for_all()
    rows, failed = finalize(folder / "best.pt", data, Settings(args.batch_size), device, args.calibration)
    exit_code = EXIT_PARTIAL if unreadable or failed else EXIT_DONE
    return {"checkpoint": str(folder / "best.pt"), "rows": rows, "history": [], "exit_code": exit_code}


def run_name(model: str, specs: Sequence[str]) -> str:
    """Name a run after its model and its data sets: ``cnn-demo``."""
    names = [Path(parse_spec(text).location or "demo").stem for text in specs]
    return "-".join([model.replace("/", "_"), *names])


def log(line: str) -> None:
    """Tell the user something that is not a result."""
    from utils.distributed import is_first

    if is_first():
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_script(main)
