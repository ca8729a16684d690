"""Set-up of a training run: the detector with its initial weights, the loader and the optimiser."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch.utils.data import Dataset

from datasets.balance import label_groups
from datasets.device_images import make_training_loader
from datasets.faces.framing import MARGIN
from datasets.listing.records import Record
from datasets.listing.splits import TrainingData
from datasets.loading import Batch, EpochSampler, ImageDataset, make_loader, typical_side
from datasets.transforms import Geometry, TrainTransform
from models.detector import Detector, count_parameters
from models.pruning import prune_channels
from models.registry import create_model
from utils.checkpoint_files import check_checkpoint_file
from utils.checkpoints.weights import load_weights
from utils.distributed import team
from utils.errors import UserError
from utils.runtime import depthwise_in_fp32, pick_precision
from utils.training.classical import resolve_embedding
from utils.training.distillation import Teacher
from utils.training.finetune import freeze, parameter_groups
from utils.training.log import log
from utils.training.recipe import Recipe, check_classical
from utils.training.state import TrainingState, WeightAverage
from utils.training.teacher_tokens import AnsweredImages, cache_answers
from utils.training.tokens import TOKEN_CACHE, cache_tokens

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded training images to keep, so that small sets are decoded once


class TrainingLoader(Protocol):
    """A DataLoader or a DeviceLoader over training images."""

    dataset: ImageDataset
    sampler: EpochSampler
    num_workers: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def build_detector(
    recipe: Recipe, records: Sequence[Record], device: torch.device, resumed: dict[str, Any] | None = None
) -> Detector:
    """Build the detector with its geometry and initial weights; ``resumed`` holds the model_args of a resumed run."""
    if recipe.compile and device.type == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch chooses it
        if not shutil.which(compiler):
            raise UserError(f"expected a C++ compiler for --compile, found no {compiler}; install it or drop --compile")
    torch.manual_seed(recipe.seed)
    model_args, embedding = resolve_embedding(recipe.model_args if resumed is None else resumed, device)
    detector = create_model(recipe.model, **model_args)
    if detector.is_classical:
        check_classical(recipe)
    if recipe.token_views and not detector.caches_tokens and not teaches_by_tokens(recipe, device):
        raise UserError(
            f"expected a --model or --teacher with a frozen part for --token-views, such as foundation, got "
            f"{recipe.model}; drop --token-views"
        )
    if embedding:
        cast(Detector, detector.get_submodule("embedder.detector")).take_weights(embedding)
        detector.earlier_data = embedding.earlier_data
    size = input_size(recipe, detector, records)
    detector.geometry = Geometry(recipe.geometry, size, recipe.resize_to, recipe.margin or MARGIN)
    detector.check_size(detector.geometry.size)
    if recipe.train_size:
        detector.check_size(recipe.train_size, "--train-size")
    if resumed is None:
        if recipe.weights:
            log(f"{recipe.weights}: {load_weights(detector, recipe.weights)}")
        elif detector.base_prefix:
            log(f"note: {detector.base_name} has random weights, most of which are never trained; pass --weights")
        if recipe.prune:
            detector.model_args = {**detector.model_args, "channels": prune_channels(detector, recipe.prune)}
            log(f"{count_parameters(detector):,} parameters after pruning")
    return detector.to(device)


def teaches_by_tokens(recipe: Recipe, device: torch.device) -> bool:
    """Tell whether there is a teacher whose frozen part can be cached."""
    if not recipe.teacher:
        return False
    return Teacher(check_checkpoint_file(recipe.teacher, "--teacher"), device).detector.caches_tokens


def input_size(recipe: Recipe, detector: Detector, records: Sequence[Record]) -> int:
    """Return --image-size, by default the detector's, or less where the images are smaller: upscaling adds nothing.

    Frames of faces keep the detector's size, since faces come in all sizes.
    """
    size = detector.geometry.size
    if recipe.image_size or recipe.geometry == "face":
        return recipe.image_size or size
    return detector.choose_size(typical_side(records) or size)


def prepare(
    recipe: Recipe,
    detector: Detector,
    data: TrainingData,
    folder: Path,
    device: torch.device,
    workers: int = 0,
    interrupted: dict[str, Any] | None = None,
    cache: str | None = None,
) -> tuple[TrainingState, TrainingLoader]:
    """Freeze stages, make the training loader and the optimiser, and restore the state of an interrupted run.

    ``cache`` is the folder of cached tokens.
    """
    records = data.train_records
    dtype = pick_precision(recipe.precision, device, training=True)
    detector.to(memory_format=torch.channels_last)
    if device.type == "cpu" and dtype == torch.bfloat16:
        depthwise_in_fp32(detector)
    freeze(detector, recipe.freeze)
    state = TrainingState(
        detector,
        ema=WeightAverage(detector, recipe.ema_decay) if recipe.ema_decay else None,
        optimizer=torch.optim.AdamW(parameter_groups(detector, recipe.weight_decay), recipe.lr),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        dtype=dtype,
        teacher=Teacher(check_checkpoint_file(recipe.teacher, "--teacher"), device) if recipe.teacher else None,
    )
    if state.teacher:
        detector.earlier_data = [*detector.earlier_data, *state.teacher.data]
    if team.rank:  # other dropout and other starts of attacks than in the first process
        torch.manual_seed(recipe.seed + team.rank)
    if interrupted:
        state.restore(interrupted, data.describe(), folder)
    transform = TrainTransform(detector.geometry, recipe.augmentation, recipe.train_size, as_bytes=True)
    groups = label_groups(data.train) if recipe.balance else None
    sampler = EpochSampler(len(records), recipe.seed, team.rank, team.size, groups)
    drop_last = len(records) // team.size >= recipe.batch_size  # a last batch of one image would break batch norm
    images = ImageDataset(records, transform, memory_limit=0 if workers else MEMORY_LIMIT)
    if recipe.token_views:  # after the restored weights
        job = (recipe, state, data, transform, Path(cache or TOKEN_CACHE), workers)
        views: Dataset = cache_tokens(*job) if detector.caches_tokens else AnsweredImages(images, *cache_answers(*job))
        loader = make_loader(views, recipe.batch_size, sampler, workers, drop_last, device.type == "cuda")
        return state, cast(TrainingLoader, loader)
    image_loader, where = make_training_loader(images, recipe.batch_size, sampler, workers, drop_last, device)
    if where:
        log(where)
    return state, cast(TrainingLoader, image_loader)
