"""The recipe of a training run: its command-line flags and the typed record made from them. Needs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from datasets.listing.spec import parse_spec
from utils.args import add_face_detector, add_seed, float_in, int_in, key_value
from utils.attacks.threat_model import check_linf_eps, parse_size
from utils.checkpoint_files import check_checkpoint_file, check_weights_source
from utils.errors import UserError
from utils.model_names import check_model_name

ADV_EPS, ADV_STEPS = 2 / 255, 3  # of adversarial training by default
# What only training by gradient steps reads; a classical model is fitted in one call.
NEURAL_ONLY = (
    *("adversarial", "compile", "teacher", "token_views", "prune", "freeze", "balance", "augmentation", "train_size"),
    *("epochs", "accumulate", "lr", "weight_decay", "warmup", "ema_decay", "patience"),
)


@dataclass(frozen=True)
class Recipe:
    """All settings that decide the weights of a run; a resumed run has those of the interrupted one.

    The fields are named after the flags of train.py; a checkpoint stores them as ``train_args``.
    """

    command: str
    model: str
    model_args: dict[str, Any]
    data: list[str]
    exclude_generator: list[str]
    weights: str | None
    geometry: str
    image_size: int | None
    resize_to: int | None
    margin: float | None
    face_detector: str | None
    train_size: int | None
    augmentation: str
    balance: bool
    epochs: int
    batch_size: int
    accumulate: int
    lr: float
    weight_decay: float
    warmup: float
    ema_decay: float
    patience: int
    calibration: str
    seed: int
    freeze: str
    token_views: int
    adversarial: str | None
    adv_eps: float
    adv_steps: int
    prune: float
    teacher: str | None
    precision: str
    compile: bool = False


def recipe_values(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that belong to a recipe, as plain values. Raises UserError: the teacher is no checkpoint."""
    names = {field.name for field in fields(Recipe)}
    values = {key: value for key, value in flags.items() if key in names}
    if values.get("teacher"):
        values["teacher"] = str(check_checkpoint_file(values["teacher"], "--teacher"))
    return values | ({"model_args": dict(values["model_args"])} if "model_args" in values else {})


def run_name(model: str, specs: Sequence[str]) -> str:
    """Name a run after its model and its datasets: ``cnn-demo``."""
    names = [Path(parse_spec(text).location or "demo").stem for text in specs]
    return "-".join([model.replace("/", "_"), *names])


def make_recipe(flags: Mapping[str, Any], command: str) -> Recipe:
    """Check the flags of a new run and make its recipe.

    Raises:
        UserError: a name or file does not exist, or two flags contradict each other.
    """
    recipe = recipe_values(flags)
    check_model_name(recipe["model"])
    check_weights_source(recipe["weights"])
    for flag, default in (("adv_eps", ADV_EPS), ("adv_steps", ADV_STEPS)):
        if recipe[flag] is None:
            recipe[flag] = default
        elif not recipe["adversarial"]:
            raise UserError("expected --adversarial with --adv-eps and --adv-steps, got none; add it, or drop the flag")
    check_linf_eps(recipe["adv_eps"], "--adv-eps")
    if recipe["geometry"] != "face" and (recipe["margin"] or recipe["face_detector"]):
        raise UserError(
            f"expected --geometry face with --margin and --face-detector, got {recipe['geometry']}; drop these flags"
        )
    if recipe["token_views"] and recipe["adversarial"]:
        raise UserError("expected either --token-views or --adversarial, got both; attacks change images, not tokens")
    if recipe["geometry"] in ("face", "resize") and recipe["resize_to"]:
        raise UserError(f"expected --geometry crop with --resize-to, got {recipe['geometry']}; drop --resize-to")
    if recipe["teacher"] and recipe["adversarial"]:
        raise UserError("expected either --teacher or --adversarial, got both; distil first, then harden")
    if recipe["compile"] and recipe["adversarial"]:
        raise UserError("expected either --compile or --adversarial, got both; attacks run uncompiled")
    return Recipe(command=command, **recipe)


def check_classical(recipe: Recipe) -> None:
    """Raise UserError for the first flag that a classical model would ignore, unless it has its default value."""
    parser = argparse.ArgumentParser()
    add_recipe_flags(parser)
    for name in NEURAL_ONLY:
        if getattr(recipe, name) != parser.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"expected a neural --model with {flag}, got {recipe.model}; drop {flag}")


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a recipe, except --precision, which belongs to the device group."""
    data = parser.add_argument_group("model and data")
    data.add_argument("--model", default="cnn", help="a name from --list-models or any timm backbone (default: cnn)")
    data.add_argument(
        "--model-args", type=key_value, nargs="+", default=[], metavar="KEY=VALUE", help="arguments of the model"
    )
    data.add_argument("--data", nargs="+", default=["demo"], metavar="SPEC", help="datasets to mix (default: demo)")
    data.add_argument(
        "--exclude-generator",
        nargs="+",
        default=[],
        metavar="NAME",
        help="generators whose fakes are left out of training and validation",
    )
    data.add_argument(
        "--weights",
        metavar="FILE",
        help="initial weights: `imagenet` for those of timm's hub, or a .safetensors, .pth or .pt file",
    )

    shape = parser.add_argument_group("geometry and augmentation")
    shape.add_argument(
        "--geometry",
        choices=("crop", "resize", "face"),
        default="crop",
        help="crop at native resolution, resize the whole image, or frame the largest face (default: crop)",
    )
    shape.add_argument("--image-size", type=int_in(16, 4096), help="input size in px (default: the model's)")
    shape.add_argument(
        "--resize-to", type=int_in(16, 8192), help="scale the shorter side to this size before cropping, px (crop)"
    )
    shape.add_argument(
        "--margin", type=float_in(0.5, 5), help="side of the frame / longer side of the face (face; default: 1.3)"
    )
    add_face_detector(shape)
    shape.add_argument("--train-size", type=int_in(16, 4096), help="size of training crops, px (default: --image-size)")
    shape.add_argument(
        "--augmentation",
        choices=("none", "light", "forensic", "delivery", "graded", "wild"),
        default="light",
        help="see docs/method.md (default: light)",
    )
    shape.add_argument("--balance", action="store_true", help="sample classes, and the sources of each, equally")

    fit = parser.add_argument_group("optimisation")
    fit.add_argument("--epochs", type=int_in(1), default=12, help="default: 12")
    fit.add_argument("--batch-size", type=int_in(2), default=32, help="images per batch and process (default: 32)")
    fit.add_argument("--accumulate", type=int_in(1), default=1, help="batches per optimiser step (default: 1)")
    fit.add_argument("--lr", type=float_in(0, 10), default=1e-3, help="peak learning rate (default: 0.001)")
    fit.add_argument("--weight-decay", type=float_in(0, 10), default=0.05, help="default: 0.05")
    fit.add_argument("--warmup", type=float_in(0, 1), default=0.1, help="share of warm-up steps (default: 0.1)")
    fit.add_argument(
        "--ema-decay", type=float_in(0, 1), default=0.998, help="decay of the averaged weights; 0: off (default: 0.998)"
    )
    fit.add_argument(
        "--patience",
        type=int_in(0),
        default=0,
        metavar="N",
        help="stop after N epochs without improvement; 0: off (default)",
    )
    fit.add_argument(
        "--calibration",
        choices=("temperature", "isotonic", "none"),
        default="temperature",
        help="mapping from logit to p_fake (default: temperature)",
    )
    add_seed(fit)
    fit.add_argument(
        "--compile", action="store_true", help="compile the training step with torch.compile; the first step is slow"
    )

    transfer = parser.add_argument_group("transfer learning and compression")
    transfer.add_argument("--freeze", default="none", metavar="N", help="freeze none, backbone, or the first N stages")
    transfer.add_argument(
        "--token-views",
        type=int_in(0, 1000),
        default=0,
        metavar="N",
        help="cache the frozen part of the model or its teacher (foundation) for N augmented views; 0: off (default)",
    )
    transfer.add_argument(
        "--prune", type=float_in(0, 0.95), default=0.0, metavar="SHARE", help="share of channels to prune"
    )
    transfer.add_argument("--teacher", metavar="PT", help="checkpoint to distil, a detector or an ensemble")

    attack = parser.add_argument_group("adversarial training")
    attack.add_argument("--adversarial", choices=("fgsm", "pgd", "trades"), help="attack the training images (Linf)")
    attack.add_argument("--adv-eps", type=parse_size, help="pixel units (default: 2/255)")
    attack.add_argument("--adv-steps", type=int_in(1, 100), help=f"steps of pgd and trades (default: {ADV_STEPS})")
