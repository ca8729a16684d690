"""Training on cached tokens: the frozen part of a detector sees each image once, not once per epoch.

Each training image has ``--token-views`` views, augmented as in direct training; an epoch takes one of them at
random. The caches are kept per listing, so that runs on other mixtures of the same datasets share them.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.listing.records import Listing, relative_path
from datasets.listing.splits import TrainingData
from datasets.listing.storage import file_state
from datasets.loading import ImageDataset
from datasets.transforms import EvalTransform, TrainTransform, as_floats
from models.detector import Detector
from utils.args import check_output_dir
from utils.distributed import gather
from utils.engines.exported import openvino_core
from utils.errors import UserError
from utils.files import file_digest
from utils.runtime import autocast
from utils.training.log import log
from utils.training.recipe import Recipe
from utils.training.state import TrainingState
from utils.training.token_cache import TokenCache, TokenDataset

TOKEN_CACHE = "cache/tokens"
FORMAT_VERSION = 1  # increase it when tokens change for a reason that `facts` does not hold
WORTH_CONVERTING = 500  # images; OpenVINO takes a while to convert and compile a network


class OnTokens(nn.Module):
    """A detector whose input is the output of its frozen part."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``(N, R, D)`` into logits ``(N,)``."""
        return self.detector.from_tokens(tokens)


def cache_tokens(
    recipe: Recipe, state: TrainingState, data: TrainingData, transform: TrainTransform, root: Path, workers: int
) -> TokenDataset:
    """Open the caches of all listings below ``root``, compute what they lack, and return the training views.

    Sets ``state.valid_tokens``; the answers of ``state.teacher``, which is removed, are cached with the tokens.

    Raises:
        UserError: the disk lacks room, or cannot be written to.
    """
    check_output_dir(root, "--cache")
    detector = state.detector.eval()
    shared, evaluation = detector_facts(detector, state.dtype), EvalTransform(detector.geometry)
    facts = {**shared, "teacher": file_digest(recipe.teacher) if recipe.teacher else None}
    shapes = [token_shape(detector, side) for side in (transform.size, evaluation.geometry.size)]
    train = training_caches(root, facts, recipe, data, transform, shapes[0])
    valid = [plain_cache(root, shared, listing, evaluation, shapes[1]) for listing in data.valid]
    check_room([*train, *valid], root)
    with torch.random.fork_rng(devices=[]):  # a run is the same whether its tokens were cached before or not
        tokens_of = frozen_part(detector, state.dtype, sum(cache.missing for cache in (*train, *valid)))
        started = time.perf_counter()
        images = sum(cache.build(lambda x: answered(state, tokens_of, x), workers) for cache in train)
        images += sum(cache.build(lambda x: (tokens_of(x), None), workers) for cache in valid)
    if images := sum(gather(images)):  # under torchrun, whoever comes first computes
        rate = images / (time.perf_counter() - started)
        log(f"tokens: {images:,} images computed, {rate:.1f} images/s, {train[0].row.itemsize:,} bytes per image")
    state.valid_tokens, state.teacher = valid, None
    return TokenDataset(train)


def training_caches(
    root: Path,
    facts: dict[str, Any],
    recipe: Recipe,
    data: TrainingData,
    transform: TrainTransform,
    shape: tuple[int, int],
) -> list[TokenCache]:
    """Open the caches of the augmented views of each training listing."""
    augmented = {
        "augmentation": recipe.augmentation,
        "train_size": transform.size,
        "seed": recipe.seed,
        "views": recipe.token_views,
    }
    return [
        open_cache(
            root,
            {**facts, **augmented},
            listing,
            ImageDataset(listing.records, transform),
            view_seeds(recipe.seed, len(listing.records), recipe.token_views),
            shape,
        )
        for listing in data.train
    ]


def open_cache(
    root: Path,
    facts: dict[str, Any],
    listing: Listing,
    dataset: ImageDataset,
    seeds: np.ndarray,
    shape: tuple[int, int],
) -> TokenCache:
    """Open the cache of a listing; its folder is named after everything that decides the tokens."""
    facts = {**facts, "listing": f"{listing.name} {listing.split}", "files": files_digest(listing)}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    return TokenCache(root / digest, facts, dataset, seeds, shape)


def plain_cache(
    root: Path, facts: dict[str, Any], listing: Listing, transform: EvalTransform, shape: tuple[int, int]
) -> TokenCache:
    """Open the cache of the images of a listing as they are scored, one view each."""
    seeds = np.zeros((len(listing.records), 1), np.int64)
    return open_cache(root, facts, listing, ImageDataset(listing.records, transform), seeds, shape)


def detector_facts(detector: Detector, dtype: torch.dtype) -> dict[str, Any]:
    """Return what decides the tokens of an input: the frozen part, its weights and their arithmetic."""
    return {
        "format": FORMAT_VERSION,
        "model": detector.name,
        "model_args": detector.model_args,
        "frozen_weights": weights_digest(detector.fixed_parameters()),
        "geometry": detector.geometry.to_dict(),
        "precision": str(dtype),
    }


def weights_digest(tensors: Iterable[Tensor]) -> str:
    """Return a digest of weights in half precision, since files may hold them as such."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().half().cpu().numpy().tobytes())
    return digest.hexdigest()


def files_digest(listing: Listing) -> str:
    """Return a digest of the images, wherever their folder is: paths, labels, sizes, modification times, faces."""
    files = [
        (relative_path(item.path, listing.root), item.label, file_state(item.path), *(item.faces or ()))
        for item in listing.records
    ]
    return hashlib.sha256(repr(files).encode("utf-8", "surrogateescape")).hexdigest()


def view_seeds(seed: int, images: int, views: int) -> np.ndarray:
    """Return the seeds of the views, ``(images, views)``; each depends on the run's seed, the view and the image."""
    return np.stack([np.random.default_rng([seed, view]).integers(0, 2**31, images) for view in range(views)], axis=1)


def check_room(caches: Sequence[TokenCache], root: Path) -> None:
    """Say how large the caches are. Raises UserError if the disk has no room for what they lack."""
    views = sum(cache.seeds.size for cache in caches)
    size = sum(cache.seeds.size * cache.row.itemsize for cache in caches)
    needed = sum(cache.missing * cache.row.itemsize for cache in caches)
    free = shutil.disk_usage(root).free
    log(f"tokens: {views:,} views of images in {root}, {size / 1e6:,.0f} MB, {needed / 1e6:,.0f} MB of it to compute")
    if needed > free:
        raise UserError(
            f"expected {needed / 1e6:,.0f} MB of free space in {root} for the tokens, got {free / 1e6:,.0f}; lower "
            "--token-views, or pass --cache DIR on another disk"
        )


def token_shape(detector: Detector, side: int) -> tuple[int, int]:
    """Return the shape (R, D) of the tokens of an image of ``side`` px."""
    with torch.inference_mode():
        tokens = detector.frozen_tokens(torch.zeros(1, 3, side, side, device=detector.mean.device))
    return tokens.shape[1], tokens.shape[2]


def answered(
    state: TrainingState, tokens_of: Callable[[Tensor], Tensor], images: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the tokens of images as a loader yields them, and the logits of the teacher, if there is one."""
    tokens = tokens_of(images)
    if state.teacher is None:
        return tokens, None
    with autocast(state.device, state.dtype):
        return tokens, state.teacher(as_floats(images.to(state.device)))


def frozen_part(detector: Detector, dtype: torch.dtype, images: int) -> Callable[[Tensor], Tensor]:
    """Return the frozen part of a detector as a function of images as a loader yields them.

    On a CPU, bfloat16 is faster in OpenVINO than in torch, if it is installed and there are enough images to come.
    """
    device = detector.mean.device
    is_worth_it = device.type == "cpu" and dtype == torch.bfloat16 and images >= WORTH_CONVERTING
    compiled = functools.cache(functools.partial(in_openvino, detector))

    def tokens_of(batch: Tensor) -> Tensor:
        inputs = as_floats(batch.to(device))
        if is_worth_it and importlib.util.find_spec("openvino"):
            return compiled(inputs.shape[-1])(inputs)
        with torch.inference_mode(), autocast(device, dtype):
            return detector.frozen_tokens(inputs)

    return tokens_of


def in_openvino(detector: Detector, side: int) -> Callable[[Tensor], Tensor]:
    """Convert ``frozen_tokens`` to OpenVINO in bfloat16.

    Position embeddings are resized before, because OpenVINO would weigh them differently (`utils/engines/resizing.py`).
    """
    import openvino

    detector = copy.deepcopy(detector)
    tower: Any = detector.get_submodule("backbone")
    patch = tower.patch_embed.patch_size[0]
    tower.set_input_size((-(-side // patch) * patch,) * 2)

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, images: Tensor) -> Tensor:
            return self.detector.frozen_tokens(images)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: its constants hold for inputs of this size
        example = torch.zeros(2, 3, side, side)
        network = openvino.convert_model(Frozen().eval(), example_input=example, input=[-1, 3, side, side])
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino_core().compile_model(network, "CPU", settings)
    return lambda images: torch.from_numpy(compiled([images.contiguous().numpy()])[0])
