"""Small runs on tokens that tests share."""

from pathlib import Path

import torch

import train
from datasets.listing.splits import open_training_data
from utils.training.recipe import make_recipe
from utils.training.setup import build_detector, prepare

CPU = torch.device("cpu")
MODEL = "--model foundation --model-args backbone=test_vit blocks=3-6 tune=norms_2 --image-size 32 --batch-size 4"
VIEWS = 3
AUGMENTED = ["--augmentation", "forensic"]


def flags(faces: Path, *more: str) -> list[str]:
    return [*MODEL.split(), "--precision", "fp32", "--token-views", str(VIEWS), "--data", str(faces), *more]


def open_tokens(faces: Path, *more: str, detector=None):
    """What train.py prepares with these flags: the recipe, the data, the state and the loader."""
    recipe = make_recipe(vars(train.get_args_parser().parse_args(flags(faces, *more))), "")
    data = open_training_data(recipe.data)
    detector = detector or build_detector(recipe, data.train_records, CPU)
    cache = str(faces.parent / "cache")
    return recipe, data, *prepare(recipe, detector, data, faces.parent, CPU, cache=cache)


def folders(faces: Path) -> set[str]:
    return {entry.name for entry in (faces.parent / "cache").iterdir()}
